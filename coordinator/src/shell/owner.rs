//! The owner loop of one partition: log -> decide -> fenced commit, one connection and one round trip a batch.
//!
//! A turn commits what the last batch decided and reads what came meanwhile. While the server is at it the owner decides the
//! next batch, if there is one and all that it needs is in mind. Nothing is awaited but the connection, and a rendering. Any
//! doubt ends the owner, and a new one begins from what is stored.

mod again;
mod begin;
mod gather;
mod poison;
mod returning;
#[cfg(test)]
mod tests;
mod young;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures::FutureExt;
use stepfleet_protocol::{id::StreamId, name::Name};
use tokio::time::Instant;

pub use self::poison::Memory;
use self::{
    gather::{Ahead, Gathered, Look},
    returning::Returning,
};
use super::{
    core::{self, Core, Poison},
    gates, inputs,
    intake::{Malformed, Newer, Place},
    retention::{self, Expired, Retention},
    tally::Tally,
    upkeep::{self, Chore, Upkeep},
};
use crate::{
    machine::rules::Rules,
    mutants::mutant,
    store::{
        commit::Commit,
        link::Link,
        partition::{Ask, BLOCK_MAX, Partition, TurnError},
        reply::Fields,
    },
};

/// Items of one batch: about 2,000 commands, which is below 5 ms of EXEC.
pub const BATCH_ITEMS_MAX: usize = 400;
/// Items of one batch while there is more to decide: what is left is decided while the server is at the commit.
const BATCH_ITEMS_MIN: usize = 128;
/// Work items that one batch continues, of up to 100 steps each.
const WORK_PER_BATCH: usize = 4;
/// Longest blocking read while a gate holds something back.
const GATES_EVERY: Duration = Duration::from_millis(50);
/// Longest blocking read while a place under a limit is wished for.
const WISH_EVERY: Duration = Duration::from_millis(10);
/// Log entries of one read, at most.
const READ_ENTRIES_MAX: usize = 512;
/// Entries of the first read, and of one after a quiet time, when nobody knows how large they are: a worker writes up to
/// 512 KiB in one.
const READ_ENTRIES_FIRST: usize = 8;
/// Bytes of one read, about.
const READ_BYTES: usize = 4 << 20;

/// Why an owner ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OwnerError {
    /// The commit or its connection.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// Something panicked over an item. The next owner must pass it by.
    #[error("poison item {0:?}")]
    Poison(Poison),
    /// Something panicked over a batch. Halving it will show over which item.
    #[error("a batch made the program panic")]
    Panicked,
    /// Something of a newer version is stored here: this program must leave the partition alone.
    #[error("the partition holds something of version {0}, newer than this program")]
    Newer(u8),
}

impl From<Newer> for OwnerError {
    fn from(newer: Newer) -> Self {
        Self::Newer(newer.0)
    }
}

/// What an owner has done, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Commits.
    pub commits: u64,
    /// Batches that were decided while the commit before them was on its way.
    pub ahead: u64,
    /// Items decided.
    pub items: u64,
    /// Entries quarantined.
    pub quarantined: u64,
    /// Places under limits that no job had any more.
    pub leaked: u64,
    /// What was beyond retention and was deleted.
    pub expired: Expired,
}

/// A commit that is to be sent, with the items that are to blame if the server cannot bear it and no smaller batch could
/// tell them apart.
#[derive(Debug, Default)]
struct Sealed {
    commit: Option<Commit>,
    alone: Vec<Place>,
    tally: Tally,
}

/// What the last turn committed, for metrics.
#[derive(Debug, Default)]
pub struct Committed {
    /// What it did.
    pub tally: Tally,
    /// How long its trip took, without the read of the log behind it.
    pub took: Duration,
    /// The server's time after it, in Unix milliseconds.
    pub at_ms: u64,
}

/// The owner of a partition during one reign.
#[derive(Debug)]
pub struct Owner<L> {
    partition: Partition<L>,
    core: Core,
    upkeep: Upkeep,
    memory: Memory,
    backlog: VecDeque<(StreamId, Fields)>,
    read_to: StreamId,
    more_in_log: bool,
    /// Items of the log in one batch, at most.
    batch_most: usize,
    /// Bytes of an entry, as the last reads have shown.
    entry_bytes: usize,
    /// Entries of the last read.
    last_read: usize,
    pending: Option<Sealed>,
    /// Ready steps that were looked at and are not released yet, by queue.
    looked_at: Vec<Look>,
    /// Everything that came to the log before this time is read.
    known_ms: u64,
    /// Items that the pending commit passes by: they are no danger any more.
    avoided: Vec<Place>,
    gates: Option<gates::Link>,
    retention: Retention,
    next_retention_ms: u64,
    returning: Returning,
    /// The server's time at the last turn.
    pub server_ms: u64,
    /// What it has done.
    pub done: Done,
    /// What the last turn committed; none if it did not, or somebody took it.
    pub committed: Option<Committed>,
}

impl<L: Link> Owner<L> {
    /// Tells how many slots workers have for each queue, in this partition's share.
    pub fn set_slots(&mut self, slots: BTreeMap<Name, u64>) {
        self.core.schedule.slots = slots;
    }

    /// Lets it know how gates stand, and tell what results say about dependencies.
    pub fn attach(&mut self, mut link: gates::Link) {
        // What was granted to a reign before this one is not for it.
        link.inbox = gates::Inbox::default();
        self.core.gates.see(link.view.borrow().clone());
        self.gates = Some(link);
    }

    fn look_at_gates(&mut self) {
        let Some(link) = &mut self.gates else { return };
        link.exchange(&mut self.core.gates, self.server_ms);
        self.core.schedule.paused = self.core.gates.view().paused();
    }

    /// Gives it the policies that the next batches are decided with; their commits name the version.
    pub fn set_rules(&mut self, rules: Rules) {
        self.core.gates.follow(&rules);
        self.core.rules = rules;
    }

    /// What the next owner has to know.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Whether it is on Cluster, where workers wait for a doorbell, and what is kept of what is done with.
    pub fn configure(&mut self, cluster: bool, retention: Retention) {
        self.upkeep.cluster = cluster;
        self.upkeep.events_max = retention.events_max;
        self.retention = retention;
    }

    /// Whether everything that was decided is committed and nothing is in mind only, so that the owner may leave.
    pub fn is_settled(&self) -> bool {
        let kept = self.core.schedule.young.is_empty();
        kept && self.pending.is_none() && !self.partition.has_announcements()
    }

    /// One turn: commits, reads, decides. Waits up to half a second for something to do, unless it is `leaving`; then it
    /// commits, reads nothing, and stores what it had in mind only.
    ///
    /// # Errors
    /// Any of them ends this owner.
    pub async fn turn(&mut self, leaving: bool) -> Result<(), OwnerError> {
        let Sealed { commit, alone, tally } = self.pending.take().unwrap_or_default();
        self.memory.last_alone = alone;
        self.look_at_gates();
        let Core { schedule, gates, .. } = &mut self.core;
        let behind = self.upkeep.is_behind(schedule);
        let (chores, extra) = self.upkeep.due(schedule, gates, self.server_ms, self.partition.head.offset);
        if leaving {
            let begun = Instant::now();
            let turn = self.partition.turn(commit.as_ref(), Ask::default()).await?;
            self.server_ms = turn.now_ms;
            self.committed = commit.map(|_| Committed { tally, took: begun.elapsed(), at_ms: turn.now_ms });
            return self.store_young().await;
        }
        self.core.cache.shrink();
        let seq = self.partition.head.seq + u64::from(commit.is_some()) + 1;
        self.core.begin_batch(self.partition.reign, seq, self.server_ms);
        let gathered = match &commit {
            Some(sent) if self.may_decide_ahead(&chores) => self.gather(sent.offset).transpose(),
            _ => None,
        };
        let count = if self.backlog.is_empty() { self.read_count() } else { 0 };
        // What a commit announces goes with the trip behind it, which must not wait.
        let busy = behind || gathered.is_some() || commit.as_ref().is_some_and(Commit::announces);
        let block = if count > 0 && !busy { self.block(&chores) } else { None };
        let ask = Ask { count, after: self.read_to, block, extra };
        let Self { partition, core, .. } = self;
        let begun = Instant::now();
        // The request is on its way before the deciding begins.
        let (turn, ahead) =
            tokio::join!(partition.turn(commit.as_ref(), ask), async { gathered.map(|g| g?.decide(core)).transpose() });
        let turn = turn?;
        if let Some(commit) = &commit {
            self.applied(commit);
            let took = begun.elapsed().saturating_sub(turn.read);
            self.committed = Some(Committed { tally, took, at_ms: turn.before_ms });
        }
        self.returning.turned(self.server_ms, turn.now_ms);
        self.server_ms = turn.now_ms;
        // What was sent has applied: it is not to blame for anything any more.
        self.memory.last_alone.clear();
        let ahead = ahead?;
        if matches!(ahead, None | Some(Ahead::Untouched(_))) {
            // What is decided now came with this turn.
            self.core.tally.server_ms = self.server_ms;
        }
        self.take_in(turn, chores, count, ahead.is_none())?;
        let batch = AssertUnwindSafe(self.batch(ahead)).catch_unwind();
        batch.await.unwrap_or(Err(OwnerError::Panicked))
    }

    /// What follows from a commit that has applied.
    fn applied(&mut self, commit: &Commit) {
        self.done.commits += 1;
        self.done.leaked += commit.counters.get(core::LEAKED).map_or(0, |n| n.unsigned_abs());
        // Only what is surely acked may be deleted behind a long job.
        for (queue, entries) in &commit.acks {
            self.core.schedule.queue(queue).behind.extend(entries);
        }
        // The server takes commits again: back to the normal size, step by step.
        let doubled = self.memory.batch_items * 2;
        self.memory.batch_items = if doubled < BATCH_ITEMS_MAX { doubled } else { 0 };
        self.memory.forget(self.avoided.drain(..));
    }

    /// Whether the next batch may be decided while the last one is being committed: nothing is suspected, and no reply of
    /// this turn tells a mirror how things stand, which would not know of that batch.
    fn may_decide_ahead(&self, chores: &[Chore]) -> bool {
        let suspects = self.memory.batch_items > 0 || !self.memory.poison.is_empty() || !self.memory.held.is_empty();
        // A run of the last owner is looked at as it is stored.
        let all_seen = self.core.schedule.young.all_seen();
        !suspects && all_seen && chores.iter().all(Chore::tells_no_mirror)
    }

    /// Entries of the next read: what fits by what is known of their size, and not many more than came last time, so that
    /// a flood of large ones after a quiet time is met before it is read.
    fn read_count(&self) -> usize {
        let limit = if self.memory.batch_items > 0 { self.memory.batch_items } else { READ_ENTRIES_MAX };
        let fits = (READ_BYTES / self.entry_bytes.max(1)).min(2 * self.last_read + READ_ENTRIES_FIRST);
        fits.clamp(1, limit.min(READ_ENTRIES_MAX))
    }

    /// How long to wait for the log: until the next timer, and not at all while there is something to do.
    fn block(&self, chores: &[Chore]) -> Option<Duration> {
        let schedule = &self.core.schedule;
        if self.retention_is_due() || !schedule.young.all_seen() || schedule.young.has_grown(self.server_ms) {
            return None;
        }
        if !schedule.todo.is_empty() || chores.iter().any(|c| matches!(c, Chore::Release(_) | Chore::Unpark(_))) {
            return None;
        }
        let wait = schedule.timers.next_look().saturating_sub(self.server_ms);
        // What is parked may pass as soon as the gate opens.
        let longest = match &self.core.gates {
            gates if gates.is_quiet() => BLOCK_MAX,
            gates if gates.waits() => WISH_EVERY,
            _ => GATES_EVERY,
        };
        let wait = Duration::from_millis(wait).min(longest);
        (!wait.is_zero()).then_some(wait)
    }

    /// Makes the next commit: of what was decided ahead, or of everything that is there now.
    async fn batch(&mut self, ahead: Option<Ahead>) -> Result<(), OwnerError> {
        let undecided = match ahead {
            Some(Ahead::Sealed { commit, items, alone, tally }) => {
                self.done.items += items as u64;
                self.done.ahead += 1;
                return self.send_next(Sealed { commit: Some(*commit), alone, tally }).await;
            }
            Some(Ahead::Decided { left, items, alone }) => {
                self.done.items += items as u64;
                self.done.ahead += 1;
                return self.finish(left.malformed, left.offset, alone).await;
            }
            Some(Ahead::Untouched(gathered)) => Some(gathered),
            None => self.gather_anew().await?,
        };
        let Some(Gathered { mut items, mut malformed, offset }) = undecided else {
            return self.finish(Vec::new(), self.partition.head.offset, Vec::new()).await;
        };
        let alone = self.memory.alone(&items);
        self.memory.last_alone.clone_from(&alone);
        self.repeat_answers(&mut items).await?;
        self.bring(&mut items, &mut malformed).await?;
        self.look_for_tombstones(&items).await?;
        self.decide(items, &mut malformed)?;
        self.finish(malformed, offset, alone).await
    }

    /// Resolves what a batch has staged, and makes the commit of it.
    async fn finish(
        &mut self,
        malformed: Vec<Malformed>,
        offset: StreamId,
        alone: Vec<Place>,
    ) -> Result<(), OwnerError> {
        inputs::resolve(&mut self.core, &mut self.partition).await?;
        self.quarantine(malformed);
        if self.is_complete() && self.retention_is_due() {
            self.expire().await?;
        }
        let moved = offset > self.partition.head.offset;
        let mut commit = self.core.seal();
        let tally = std::mem::take(&mut self.core.tally);
        commit.offset = offset.max(self.partition.head.offset);
        let worth = moved || !commit.is_empty();
        if worth { self.send_next(Sealed { commit: Some(commit), alone, tally }).await } else { Ok(()) }
    }

    /// Has the next turn send a commit, whose queues must be there before their first jobs, and before the first step of a
    /// paused one: the next owner would not find it.
    async fn send_next(&mut self, mut sealed: Sealed) -> Result<(), OwnerError> {
        let Some(commit) = &mut sealed.commit else { return Ok(()) };
        let queues = commit.jobs.iter().map(|(queue, _)| queue).chain(commit.ready_added.keys());
        for queue in queues.cloned().collect::<BTreeSet<_>>() {
            if !self.core.schedule.queue(&queue).exists {
                self.make_queue(&queue).await?;
            }
        }
        commit.offset = if mutant("offset_passes_the_undecided") { self.read_to } else { commit.offset };
        commit.cluster = self.upkeep.cluster;
        let rules = self.core.rules.version;
        commit.rules = (rules != self.partition.head.rules).then_some(rules);
        commit.timed_to = self.core.schedule.young.tell(commit.now_ms);
        self.pending = Some(sealed);
        Ok(())
    }

    /// Whether everything that the log held at the last look is decided.
    fn is_complete(&self) -> bool {
        self.backlog.is_empty() && !self.more_in_log
    }

    fn retention_is_due(&self) -> bool {
        upkeep::is_due(self.next_retention_ms, retention::EVERY_MS, self.server_ms)
    }

    /// Deletes some of what is beyond retention, in this batch's commit; more of it in the next, if there is more.
    async fn expire(&mut self) -> Result<(), OwnerError> {
        let events = std::mem::take(&mut self.upkeep.events_dropped);
        let Self { partition, core, retention, .. } = self;
        let look = retention::expire(*retention, partition, core, self.server_ms, events).await?;
        self.done.expired += look.expired;
        let wait_ms = if look.more { 0 } else { retention::EVERY_MS };
        self.next_retention_ms = self.server_ms + wait_ms;
        Ok(())
    }
}
