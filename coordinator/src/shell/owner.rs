//! The owner loop of one partition: log -> decide -> fenced commit, one connection and one round trip a batch.
//!
//! A turn commits what the last batch decided and reads what came meanwhile. Everything is in mind or in the log; nothing is
//! awaited but the connection, and a rendering. Any doubt ends the owner, and a new one begins from what is stored.

mod begin;
mod poison;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures::FutureExt;
use redis::Value;
use stepfleet_protocol::{
    codec,
    id::{CommandId, RunId, StreamId},
    message::Reply,
    name::Name,
};

pub use self::poison::Memory;
use super::{
    core::{Core, Poison},
    inputs,
    intake::{self, Item, Malformed, Newer, Origin, Place, What},
    retention::{self, Retention},
    upkeep::{Chore, Upkeep},
};
use crate::{
    machine::{
        decide::Mint,
        event::{Event, Work},
    },
    store::{
        commit::Commit,
        link::Link,
        partition::{Ask, BLOCK_MAX, Partition, Turn, TurnError},
        record,
        reply::{self, Fields},
    },
};

/// Items of one batch: about 2,000 commands, which is below 5 ms of EXEC.
pub const BATCH_ITEMS_MAX: usize = 400;
/// Work items that one batch continues, of up to 100 steps each.
const WORK_PER_BATCH: usize = 4;
/// Log entries of one read, at most.
const READ_ENTRIES_MAX: usize = 512;
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
    /// Items decided.
    pub items: u64,
    /// Jobs dispatched.
    pub jobs: u64,
    /// Entries quarantined.
    pub quarantined: u64,
    /// Runs beyond retention that were deleted.
    pub expired: u64,
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
    entry_bytes: usize,
    pending: Option<Commit>,
    /// Items that the pending commit passes by: they are no danger any more.
    avoided: Vec<Place>,
    retention: Retention,
    next_retention_ms: u64,
    /// The server's time at the last turn.
    pub server_ms: u64,
    /// What it has done.
    pub done: Done,
}

impl<L: Link> Owner<L> {
    /// Tells how many slots workers have for each queue, in this partition's share.
    pub fn set_slots(&mut self, slots: BTreeMap<Name, u64>) {
        self.core.schedule.slots = slots;
    }

    /// What the next owner has to know.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Whether workers wait for a doorbell, and what is kept of finished runs.
    pub fn configure(&mut self, doorbell: bool, retention: Retention) {
        self.upkeep.doorbell = doorbell;
        self.retention = retention;
    }

    /// Whether everything that was decided is committed, so that the owner may leave.
    pub fn is_settled(&self) -> bool {
        self.pending.is_none()
    }

    /// One turn: commits, reads, decides. Waits up to half a second for something to do, unless it is `leaving`; then it
    /// commits and reads nothing.
    ///
    /// # Errors
    /// Any of them ends this owner.
    pub async fn turn(&mut self, leaving: bool) -> Result<(), OwnerError> {
        let commit = self.pending.take();
        let (chores, extra) = self.upkeep.due(&mut self.core.schedule, self.server_ms, self.partition.head.offset);
        let count = if self.backlog.is_empty() { self.read_count() } else { 0 };
        let block = if count > 0 { self.block(&chores) } else { None };
        if leaving {
            let turn = self.partition.turn(commit.as_ref(), Ask::default()).await?;
            self.server_ms = turn.now_ms;
            return Ok(());
        }
        let ask = Ask { count, after: self.read_to, block, extra };
        let turn = self.partition.turn(commit.as_ref(), ask).await?;
        if let Some(commit) = &commit {
            self.done.commits += 1;
            self.done.jobs += commit.jobs.len() as u64;
            // Only what is surely acked may be deleted behind a long job.
            for (queue, entries) in &commit.acks {
                self.core.schedule.queue(queue).behind.extend(entries);
            }
            // The server takes commits again: back to the normal size, step by step.
            let doubled = self.memory.batch_items * 2;
            self.memory.batch_items = if doubled < BATCH_ITEMS_MAX { doubled } else { 0 };
            self.memory.forget(self.avoided.drain(..));
        }
        self.server_ms = turn.now_ms;
        self.core.mint = Mint { reign: self.partition.reign, seq: self.partition.head.seq + 1, n: 0 };
        self.core.cache.shrink();
        let batch = AssertUnwindSafe(self.batch(turn, chores, count)).catch_unwind();
        batch.await.unwrap_or(Err(OwnerError::Panicked))
    }

    fn read_count(&self) -> usize {
        let limit = if self.memory.batch_items > 0 { self.memory.batch_items } else { READ_ENTRIES_MAX };
        (READ_BYTES / self.entry_bytes.max(1)).clamp(1, limit.min(READ_ENTRIES_MAX))
    }

    /// How long to wait for the log: until the next timer, and not at all while there is something to do.
    fn block(&self, chores: &[Chore]) -> Option<Duration> {
        let schedule = &self.core.schedule;
        if self.next_retention_ms <= self.server_ms {
            return None;
        }
        if !schedule.todo.is_empty() || chores.iter().any(|c| matches!(c, Chore::Release(_))) {
            return None;
        }
        let wait = schedule.timers.next_look().saturating_sub(self.server_ms);
        let wait = Duration::from_millis(wait).min(BLOCK_MAX);
        (!wait.is_zero()).then_some(wait)
    }

    async fn batch(&mut self, turn: Turn, chores: Vec<Chore>, asked: usize) -> Result<(), OwnerError> {
        if asked > 0 {
            self.take_in(turn.entries, asked);
        }
        let mut ready = Vec::new();
        for (chore, value) in chores.into_iter().zip(turn.extra) {
            match chore {
                Chore::Release(queue) => ready.push((queue, value)),
                Chore::Timers { to_ms } => self.keep_timers(&value, to_ms),
                other => self.upkeep.finish(other, &value, &mut self.core.schedule, turn.now_ms),
            }
        }
        let (entries, mut malformed, offset) = self.next_entries()?;
        // Without a read in this very turn nobody knows what the log holds by now, and timers must not overtake it.
        let complete = asked > 0 && self.backlog.is_empty() && !self.more_in_log;
        let timer_limit = if complete { turn.before_ms } else { entries.last().map_or(0, |i| i.at_ms) };
        // A full log must not starve timers and ready steps, unless a refused commit is being halved.
        let halved = self.memory.batch_items > 0;
        let mut left = if halved { self.batch_limit().saturating_sub(entries.len()) } else { 2 * BATCH_ITEMS_MAX };
        let timers = self.due_timers(timer_limit, left.min(BATCH_ITEMS_MAX))?;
        left = left.saturating_sub(timers.len());
        let mut items = intake::merge(entries, timers);
        // Behind the look at the ready set, which still holds what is released here.
        for (queue, value) in ready {
            items.extend(self.released(&queue, &value, &mut left));
        }
        if left > 0 || items.is_empty() {
            items.extend(self.next_work());
        }
        self.memory.note(&items);
        self.repeat_answers(&mut items).await?;
        self.bring(&mut items, &mut malformed).await?;
        self.look_for_tombstones(&items).await?;
        self.decide(items, &mut malformed)?;
        inputs::resolve(&mut self.core, &mut self.partition).await?;
        self.quarantine(malformed);
        if complete && self.server_ms >= self.next_retention_ms {
            self.expire().await?;
        }
        let moved = offset > self.partition.head.offset;
        let offset = offset.max(self.partition.head.offset);
        let mut commit = self.core.seal();
        commit.offset = offset;
        commit.doorbell = self.upkeep.doorbell;
        for queue in commit.jobs.iter().map(|(q, _)| q.clone()).collect::<BTreeSet<_>>() {
            if !self.core.schedule.queue(&queue).exists {
                self.make_queue(&queue).await?;
            }
        }
        self.pending = (moved || !commit.is_empty()).then_some(commit);
        Ok(())
    }

    /// Looks for tombstones of runs that were sent before, perhaps, and are not known.
    async fn look_for_tombstones(&mut self, items: &[Item]) -> Result<(), OwnerError> {
        const PER_TRIP: usize = 500;
        let again = items.iter().filter(|item| matches!(item.what, What::New { again: true, .. }));
        let unknown = again.map(|item| item.run).filter(|run| !self.core.cache.runs.contains_key(run));
        let runs: Vec<RunId> = unknown.collect();
        for part in runs.chunks(PER_TRIP) {
            let mut pipe = redis::pipe();
            for run in part {
                pipe.cmd("EXISTS").arg(self.partition.keys.tombstone(run));
            }
            let replies = self.partition.load(&pipe).await?;
            let buried = part.iter().zip(&replies).filter(|(_, reply)| reply::number(reply) == Some(1));
            self.core.staged.tombstones.extend(buried.map(|(run, _)| *run));
        }
        Ok(())
    }

    /// Puts what was read behind what is left of earlier reads.
    fn take_in(&mut self, entries: Vec<(StreamId, Fields)>, asked: usize) {
        self.more_in_log = entries.len() == asked;
        if let Some((last, _)) = entries.last() {
            self.read_to = *last;
            let bytes: usize = entries.iter().flat_map(|(_, f)| f.iter().map(|(k, v)| k.len() + v.len())).sum();
            self.entry_bytes = (self.entry_bytes + bytes / entries.len()) / 2 + 1;
        }
        self.backlog.extend(entries);
    }

    /// Items of one batch now: fewer after the server refused one.
    fn batch_limit(&self) -> usize {
        if self.memory.batch_items > 0 { self.memory.batch_items } else { BATCH_ITEMS_MAX }
    }

    /// The items of the next entries, up to the limit of a batch, and the last entry they come from.
    fn next_entries(&mut self) -> Result<(Vec<Item>, Vec<Malformed>, StreamId), OwnerError> {
        let limit = self.batch_limit();
        let (mut items, mut malformed) = (Vec::new(), Vec::new());
        let mut offset = self.partition.head.offset;
        while items.len() < limit
            && let Some(entry) = self.backlog.pop_front()
        {
            offset = entry.0;
            let (more, bad) = intake::from_log(vec![entry])?;
            items.extend(more);
            malformed.extend(bad);
        }
        Ok((items, malformed, offset))
    }

    /// Up to `count` timers that are due. One that cannot be read is of a newer program's making.
    fn due_timers(&mut self, limit_ms: u64, count: usize) -> Result<Vec<Item>, OwnerError> {
        let mut items = Vec::new();
        while items.len() < count
            && let Some((due_ms, member)) = self.core.schedule.timers.pop(limit_ms)
        {
            let (run, timer) = record::unpack_timer(&member).ok_or(OwnerError::Newer(record::VERSION + 1))?;
            items.push(Item { origin: Origin::Timer, at_ms: due_ms, run, what: What::Event(Event::Timer(timer)) });
            self.core.staged.commit.timers_cleared.push(member);
        }
        Ok(items)
    }

    /// Up to `left` of the ready steps that were looked at.
    fn released(&mut self, queue: &Name, value: &Value, left: &mut usize) -> Vec<Item> {
        let members = reply::array(value).unwrap_or_default().iter().filter_map(reply::bytes);
        let found: Vec<Vec<u8>> = members.map(<[u8]>::to_vec).collect();
        let members: Vec<Vec<u8>> = found.iter().take(*left).cloned().collect();
        *left -= members.len();
        let q = self.core.schedule.queue(queue);
        // An empty answer is exact: what the last batch added was committed before it.
        q.ready = if found.is_empty() { 0 } else { q.ready.saturating_sub(members.len() as u64) };
        let at_ms = self.core.now_ms;
        let item =
            |(run, index)| Item { origin: Origin::Ready, at_ms, run, what: What::Event(Event::Release { index }) };
        let items = members.iter().filter_map(|m| record::unpack_ready(m)).map(item).collect();
        if !members.is_empty() {
            self.core.staged.commit.ready_removed.entry(queue.clone()).or_default().extend(members);
        }
        items
    }

    fn next_work(&mut self) -> Vec<Item> {
        let take = self.core.schedule.todo.len().min(WORK_PER_BATCH);
        let works: Vec<Work> = self.core.schedule.todo.drain(..take).collect();
        self.core.staged.commit.work_taken = take;
        works.into_iter().map(|w| intake::from_work(w, self.core.now_ms)).collect()
    }

    /// A command that was sent before and has an answer is not decided again: its answer is announced again.
    async fn repeat_answers(&mut self, items: &mut Vec<Item>) -> Result<(), OwnerError> {
        let again: BTreeSet<CommandId> = items.iter().filter_map(Item::sent_before).collect();
        if again.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for id in &again {
            pipe.cmd("GET").arg(self.partition.keys.reply(id));
        }
        let replies = self.partition.load(&pipe).await?;
        let stored = replies.iter().filter_map(reply::bytes).filter_map(|b| codec::unpack::<Reply>(b).ok());
        let stored: BTreeMap<CommandId, Reply> = stored.map(|reply| (reply.id, reply)).collect();
        items.retain(|item| item.sent_before().is_none_or(|id| !stored.contains_key(&id)));
        self.core.staged.answers.extend(stored.into_iter().map(|(id, reply)| (id, reply.answers)));
        Ok(())
    }

    /// Deletes some runs that are beyond retention, in this batch's commit; more of them in the next, if there are more.
    async fn expire(&mut self) -> Result<(), OwnerError> {
        let Self { partition, core, retention, .. } = self;
        let expired = retention::expire(retention, partition, core, self.server_ms).await?;
        self.done.expired += expired.runs;
        let wait_ms = if expired.more { 0 } else { retention::EVERY_MS };
        self.next_retention_ms = self.server_ms + wait_ms;
        Ok(())
    }
}
