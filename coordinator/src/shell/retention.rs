//! What is kept of what is done with, and for how long: runs, dead letters, plans, the outbox. Deleting is bounded work of
//! the owner, part of its commits, and what goes is counted.
//!
//! The outbox is the exception: it is trimmed outside of commits, see `upkeep`, and only counted here. So are audit entries.

mod audit;
mod letters;
pub mod plans;
mod runs;

use std::ops::AddAssign;

use super::{core::Core, letters as letters_of};
use crate::store::{
    link::Link,
    partition::{Partition, TurnError},
};

/// Time between two looks, in milliseconds, when nothing is left to delete.
pub const EVERY_MS: u64 = 10_000;
/// Keys and letters that one commit deletes, about.
const DELETED_PER_COMMIT: usize = 400;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long completed, failed and cancelled runs are kept, in milliseconds after their end.
    pub completed_ms: u64,
    /// How many of each are kept in a partition.
    pub runs_max: u64,
    /// How long a dead letter is kept, in milliseconds; a failed run takes its letters along.
    pub letters_ms: u64,
    /// How many dead letters are kept in a partition.
    pub letters_max: u64,
    /// How many entries of the outbox are kept in a partition, about.
    pub events_max: u64,
    /// How long an audit entry is kept, in milliseconds.
    pub audit_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY_MS: u64 = 86_400_000;
        Self {
            completed_ms: 90 * DAY_MS,
            runs_max: 1_000_000,
            letters_ms: 365 * DAY_MS,
            letters_max: 100_000,
            events_max: 1_000_000,
            audit_ms: 365 * DAY_MS,
        }
    }
}

/// What was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Runs.
    pub runs: u64,
    /// Dead letters, with their run or by themselves.
    pub letters: u64,
    /// Plans that no run followed any more.
    pub plans: u64,
    /// Entries of the outbox.
    pub events: u64,
    /// Audit entries.
    pub audit: u64,
}

impl AddAssign for Expired {
    fn add_assign(&mut self, more: Self) {
        self.runs += more.runs;
        self.letters += more.letters;
        self.plans += more.plans;
        self.events += more.events;
        self.audit += more.audit;
    }
}

/// What one look did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// What is gone with this commit.
    pub expired: Expired,
    /// There is more to delete.
    pub more: bool,
}

/// Stages the deletion of what is beyond retention at `now_ms`, and counts it together with the `events` that were trimmed
/// since the last look. Everything of the batch must have been decided, and the log read to its end.
///
/// # Errors
/// The trip's.
pub async fn expire<L: Link>(
    retention: Retention,
    partition: &mut Partition<L>,
    core: &mut Core,
    now_ms: u64,
    events: u64,
) -> Result<Look, TurnError> {
    let out = Look { expired: Expired { events, ..Expired::default() }, more: false };
    let mut sweep = Sweep { retention, partition, core, now_ms, out };
    sweep.runs().await?;
    letters_of::close(sweep.core, sweep.partition).await?;
    sweep.letters().await?;
    sweep.plans().await?;
    sweep.audit().await?;
    let out = sweep.out;
    let Expired { runs, letters, plans, events, audit } = out.expired;
    let counts = [
        ("expired_runs", runs),
        ("expired_letters", letters),
        ("expired_plans", plans),
        ("expired_events", events),
        ("expired_audit", audit),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        *core.staged.commit.counters.entry(name).or_default() += count as i64;
    }
    Ok(out)
}

/// One look at what is beyond retention.
struct Sweep<'a, L> {
    retention: Retention,
    partition: &'a mut Partition<L>,
    core: &'a mut Core,
    now_ms: u64,
    out: Look,
}

impl<L> Sweep<'_, L> {
    /// Whether this commit deletes enough already.
    fn is_full(&self) -> bool {
        let deleted = self.core.staged.commit.keys_deleted.len() + self.out.expired.letters as usize;
        deleted >= DELETED_PER_COMMIT
    }
}
