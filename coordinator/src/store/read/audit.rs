//! The audit store, newest first, over all partitions and the fleet's own stream.

use std::{fmt, str::FromStr};

use redis::Cmd;
use stepfleet_protocol::{
    audit::AuditEntry,
    codec,
    id::{PartitionId, StreamId},
    keys::{PartitionKeys, slot, slot_of},
};

use super::{
    super::client::Client,
    ClientError, PlacedId, count, reply,
    streams::{LOOKS_AT_ONCE, Sifted, sift},
};
use crate::store::{ask, reply::Fields};

/// Entries that one trim takes.
const TRIMMED_AT_ONCE: usize = 200;

/// An entry: `<partition>-<milliseconds>-<sequence>`, or `fleet-<milliseconds>-<sequence>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditId {
    /// Its place in its stream.
    pub entry: StreamId,
    /// The partition; none for the fleet's own stream.
    pub partition: Option<PartitionId>,
}

impl fmt::Display for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(partition) => PlacedId { entry: self.entry, partition }.fmt(f),
            None => write!(f, "fleet-{}", self.entry),
        }
    }
}

impl FromStr for AuditId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("fleet-") {
            Some(entry) => Ok(Self { entry: entry.parse().map_err(|_| ())?, partition: None }),
            None => text.parse::<PlacedId>().map(|id| Self { entry: id.entry, partition: Some(id.partition) }),
        }
    }
}

/// Which entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this action; one that ends in `.` takes every action that begins so: `run.`.
    pub action: Option<String>,
    /// About this target; one that ends in `:` takes every target that begins so: `queue:`.
    pub target: Option<String>,
    /// Not before this time, in Unix milliseconds of the server.
    pub since_ms: Option<u64>,
    /// Not after this time.
    pub until_ms: Option<u64>,
}

impl Filter {
    fn takes(&self, entry: &AuditEntry) -> bool {
        let begins = |wanted: &Option<String>, end: char, found: &str| {
            wanted.as_ref().is_none_or(|w| w == found || (w.ends_with(end) && found.starts_with(w.as_str())))
        };
        self.actor.as_ref().is_none_or(|wanted| *wanted == entry.actor)
            && begins(&self.action, '.', &entry.action)
            && begins(&self.target, ':', &entry.target)
    }
}

impl Client {
    /// Appends an entry about something that belongs to no partition. Returns when it is written.
    ///
    /// # Errors
    /// [`ClientError`]; the entry may be there all the same.
    pub async fn audit_fleet(&self, entry: &AuditEntry) -> Result<(), ClientError> {
        let key = self.keys.fleet_audit();
        let mut pipe = redis::pipe();
        pipe.cmd("XADD").arg(&key).arg("*").arg(codec::FIELD_PLAIN).arg(codec::pack(entry));
        // Not twice: a second entry would say that somebody did it twice.
        ask::all_good(ask::ask(&self.redis, slot_of(key.as_bytes()), &pipe).await?)?;
        Ok(())
    }

    /// At most `limit` entries behind `after`, newest first. Entries that cannot be read are left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(
        &self,
        filter: &Filter,
        after: Option<AuditId>,
        limit: usize,
    ) -> Result<Sifted<AuditId, AuditEntry>, ClientError> {
        let keep = |_, fields: &Fields| read(fields).filter(|entry| filter.takes(entry));
        let keys = || (PartitionKeys::audit as fn(&PartitionKeys) -> String, self.keys.fleet_audit());
        sift(after, limit, |after| self.everywhere(keys(), filter, after), keep).await
    }

    /// The next entries behind `after` in time, whatever they say, of a stream of every partition and one of the fleet. Of
    /// `filter` only the times count.
    pub(in crate::store) async fn everywhere(
        &self,
        (key_of, of_fleet): (fn(&PartitionKeys) -> String, String),
        filter: &Filter,
        after: Option<AuditId>,
    ) -> Result<Vec<(AuditId, Fields)>, ClientError> {
        let mut sources: Vec<Option<PartitionId>> = self.all_partitions().await?.into_iter().map(Some).collect();
        sources.push(None);
        let commands = sources.iter().map(|source| {
            let (slot, key) = match source {
                Some(p) => (slot(*p), key_of(&self.keys.partition(*p))),
                None => (slot_of(of_fleet.as_bytes()), of_fleet.clone()),
            };
            (slot, range(key, *source, filter, after))
        });
        let replies = self.ask_all(commands.collect()).await?;
        let mut out = Vec::new();
        for (partition, value) in sources.into_iter().zip(replies) {
            let found = reply::entries(value).into_iter();
            out.extend(found.map(|(entry, fields)| (AuditId { entry, partition }, fields)));
        }
        out.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        out.truncate(LOOKS_AT_ONCE);
        Ok(out)
    }

    /// Trims entries of the fleet's own stream from before `oldest_ms`, a bounded number of them, and counts them in the
    /// counter `expired_audit` of partition 0. Returns how many went.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn trim_fleet_audit(&self, oldest_ms: u64) -> Result<u64, ClientError> {
        let key = self.keys.fleet_audit();
        let mut look = redis::cmd("XRANGE");
        look.arg(&key).arg("-").arg(oldest_ms.saturating_sub(1)).arg("COUNT").arg(TRIMMED_AT_ONCE);
        let found = reply::entries(ask::one(&self.redis, &key, look).await?);
        let Some((last, _)) = found.last() else { return Ok(0) };
        let mut trim = redis::cmd("XTRIM");
        trim.arg(&key).arg("MINID").arg(last.next().to_string());
        let trimmed = count(Some(&ask::one(&self.redis, &key, trim).await?));
        let mut tally = redis::cmd("HINCRBY");
        tally.arg(self.keys.partition(PartitionId(0)).counters()).arg("expired_audit").arg(trimmed);
        self.ask_partition(PartitionId(0), tally).await?;
        Ok(trimmed)
    }
}

/// Entries of one source that come behind `after`. The order is total: time, then partition, the fleet's stream first.
fn range(key: String, source: Option<PartitionId>, filter: &Filter, after: Option<AuditId>) -> Cmd {
    let mut cmd = redis::cmd("XREVRANGE");
    cmd.arg(key);
    match (after, filter.until_ms) {
        (None, None) => cmd.arg("+"),
        (None, Some(until)) => cmd.arg(until),
        (Some(a), _) if source < a.partition => cmd.arg(a.entry.to_string()),
        // The smallest id has nothing before it, and Redis refuses to look.
        (Some(a), _) if a.entry == StreamId::ZERO => cmd.arg("0-0"),
        (Some(a), _) => cmd.arg(format!("({}", a.entry)),
    };
    match filter.since_ms {
        None => cmd.arg("-"),
        Some(since) => cmd.arg(since),
    };
    cmd.arg("COUNT").arg(LOOKS_AT_ONCE);
    cmd
}

fn read(fields: &Fields) -> Option<AuditEntry> {
    let (field, bytes) = fields.first()?;
    codec::decode(field, bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_the_order_is_that_of_the_pages() {
        for text in ["fleet-7-0", "3-7-0", "0-0-1"] {
            assert_eq!(text.parse::<AuditId>().map(|id| id.to_string()), Ok(text.to_owned()));
        }
        for bad in ["fleet", "fleet-x", "-7-0", ""] {
            assert_eq!(bad.parse::<AuditId>(), Err(()), "{bad}");
        }
        let id = |text: &str| text.parse::<AuditId>().expect("an id");
        assert!(id("fleet-7-0") < id("0-7-0") && id("0-7-0") < id("1-7-0") && id("9-6-9") < id("0-7-0"));
    }

    #[test]
    fn a_filter_takes_a_whole_word_or_everything_that_begins_so() {
        let entry = AuditEntry::new("me", "run.cancel", "run:1".into(), 0);
        let with = |action: &str, target: &str| Filter {
            action: Some(action.into()),
            target: Some(target.into()),
            ..Filter::default()
        };
        for (filter, taken) in [
            (with("run.cancel", "run:1"), true),
            (with("run.", "run:"), true),
            (with("run", "run:1"), false),
            (with("run.cancel", "run"), false),
            (with("run.cancel", "run:2"), false),
            (Filter { actor: Some("you".into()), ..Filter::default() }, false),
        ] {
            assert_eq!(filter.takes(&entry), taken, "{filter:?}");
        }
    }
}
