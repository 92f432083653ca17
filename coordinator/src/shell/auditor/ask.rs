//! What the auditor tells of its walks, and that somebody asks for one. Both are in a hash of the partition:
//!
//! | field | |
//! |---|---|
//! | `asked_ms` | when somebody asked last |
//! | `at_ms`, `runs`, `suspects` | the last walk over open runs: when it ended, what it looked at, what is to be looked at again |
//! | `clear_ms` | what was nowhere in a look before this time has had its second look |
//! | `swept_from_ms`, `swept_ms` | the first walk over open runs that began after somebody had asked |
//! | `letters_from_ms`, `letters_ms` | the same over failed runs |
//!
//! All times are Unix milliseconds of the partition's server.

use std::collections::BTreeSet;

use stepfleet_protocol::id::PartitionId;

use super::{ASKS_PER_TRIP, Auditor};
use crate::{
    shell::links::Ask,
    store::{link::Dial, reply},
};

/// Two readings of the server's time, each moved on by this host's clock, may differ by as much, in milliseconds.
const MARGIN_MS: u64 = 100;

/// Somebody asked, and these walks are still to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at_ms: u64,
    open: bool,
    failed: bool,
}

/// A walk over a partition that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) runs: u64,
    pub(super) began_ms: u64,
    /// Over open runs; else over failed ones.
    pub(super) open: bool,
}

impl<D: Dial> Auditor<D> {
    /// Looks whether somebody asks. Then walks begin as soon as those under way are done.
    pub(super) async fn hear(&mut self, owned: &BTreeSet<PartitionId>) {
        self.asked.retain(|partition, _| owned.contains(partition));
        let ask = |partition: &PartitionId| {
            let key = self.keys.partition(*partition).audited();
            let mut get = redis::cmd("HMGET");
            get.arg(&key).arg("asked_ms").arg("swept_from_ms").arg("letters_from_ms");
            Ask::new(&key, vec![get])
        };
        let answers = self.links.gather(owned.iter().map(ask).collect(), ASKS_PER_TRIP).await;
        for (partition, answer) in owned.iter().zip(answers) {
            let Some(found) = answer.ok().and_then(|answer| answer.replies.into_iter().next()) else { continue };
            let fields = reply::array(&found).unwrap_or_default();
            let number = |at: usize| fields.get(at).and_then(reply::number).map_or(0, i64::unsigned_abs);
            let (at_ms, open, failed) = (number(0), number(1) < number(0), number(2) < number(0));
            if at_ms == 0 || !(open || failed) {
                self.asked.remove(partition);
            } else if self.asked.insert(*partition, Asked { at_ms, open, failed }).is_none_or(|a| a.at_ms < at_ms) {
                (self.walked, self.failed_walked) = (None, None);
            }
        }
    }

    /// Notes that a walk over the partition is done, for those who ask how things are.
    pub(super) async fn say(&mut self, partition: PartitionId, end_ms: u64, done: Done) {
        let key = self.keys.partition(partition).audited();
        let of = self.suspects.iter().filter(|(subject, _)| subject.run.partition() == partition);
        let (suspects, oldest) = of.fold((0, 0), |(count, oldest), (_, suspect)| {
            (count + 1, oldest.max(suspect.since.elapsed().as_millis() as u64 + MARGIN_MS))
        });
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg("clear_ms").arg(end_ms.saturating_sub(oldest));
        if done.open {
            set.arg("at_ms").arg(end_ms).arg("runs").arg(done.runs).arg("suspects").arg(suspects);
        }
        let asked = self.asked.get(&partition).filter(|asked| done.began_ms >= asked.at_ms);
        if let Some(Asked { open, failed, .. }) = asked {
            if done.open && *open {
                set.arg("swept_from_ms").arg(done.began_ms).arg("swept_ms").arg(end_ms);
            } else if !done.open && *failed {
                set.arg("letters_from_ms").arg(done.began_ms).arg("letters_ms").arg(end_ms);
            }
        }
        match self.links.one(&key, set).await {
            Ok(_) => {
                if let Some(asked) = self.asked.get_mut(&partition).filter(|asked| done.began_ms >= asked.at_ms) {
                    *(if done.open { &mut asked.open } else { &mut asked.failed }) = false;
                }
            }
            Err(error) => tracing::debug!(%partition, %error, "the walk could not be noted"),
        }
    }
}
