//! The owner loop of one partition: log -> decide -> fenced commit, one connection and one round trip a batch.
//!
//! A turn commits what the last batch decided and reads what came meanwhile. Everything is in mind or in the log; nothing is
//! awaited but the connection, and a rendering. Any doubt ends the owner, and a new one begins from what is stored.

// LENGTH: the loop is read as one piece; loading and quarantine could move out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use redis::Value;
use stepfleet_protocol::{
    codec,
    id::{CommandId, RunId, StreamId},
    keys::GROUP,
    message::{Answer, Command, Reply, Verb},
    name::Name,
};
use uuid::Uuid;

use super::{
    cache::Cache,
    core::{Core, Poison, Staged},
    inputs,
    intake::{self, Item, Malformed, Newer, Origin, What},
    retention::{self, Retention},
    schedule::{HORIZON_MS, Schedule},
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
        record::{self, RecordError},
        reply::{self, Fields},
    },
};

/// Items of one batch: about 2,000 commands, which is below 5 ms of EXEC.
pub const BATCH_ITEMS_MAX: usize = 400;
/// Work items that one batch continues, of up to 100 steps each.
const WORK_PER_BATCH: usize = 4;
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
    /// A rule panicked over an item. The next owner must pass it by.
    #[error("poison item {0:?}")]
    Poison(Poison),
    /// Something of a newer version is stored here: this program must leave the partition alone.
    #[error("the partition holds something of version {0}, newer than this program")]
    Newer(u8),
}

impl From<Newer> for OwnerError {
    fn from(newer: Newer) -> Self {
        Self::Newer(newer.0)
    }
}

/// What outlives an owner that ended in doubt.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Items that no batch may contain.
    pub poison: BTreeSet<(Origin, RunId)>,
    /// Items of a batch, halved each time the server refuses a commit; 0 for the normal limit.
    pub batch_items: usize,
    /// The origin of the only item of the last batch, if there was one.
    pub last_single: Option<(Origin, RunId)>,
}

impl Memory {
    /// The server refused a commit: the next batches are half as large, until the item that it cannot bear is alone, and
    /// is poison.
    pub fn halve(&mut self) {
        let size = if self.batch_items == 0 { BATCH_ITEMS_MAX } else { self.batch_items };
        match self.last_single.take() {
            Some(item) => {
                self.poison.insert(item);
                self.batch_items = 0;
            }
            None => self.batch_items = (size / 2).max(1),
        }
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
    /// Bytes of an entry, as the last reads have shown.
    entry_bytes: usize,
    /// Entries of the last read.
    last_read: usize,
    pending: Option<Commit>,
    retention: Retention,
    next_retention_ms: u64,
    /// The server's time at the last turn.
    pub server_ms: u64,
    /// What it has done.
    pub done: Done,
}

impl<L: Link> Owner<L> {
    /// Begins to own a partition: loads timers, work items and queues.
    ///
    /// # Errors
    /// The trip's, or that a newer program has been here.
    pub async fn begin(mut partition: Partition<L>, name: &str, memory: Memory) -> Result<Self, OwnerError> {
        let turn = partition.turn(None, Ask::default()).await?;
        let mut schedule = Schedule::default();
        schedule.timers.horizon_ms = turn.now_ms + HORIZON_MS;
        let mut pipe = redis::pipe();
        pipe.cmd("LRANGE").arg(partition.keys.todo()).arg(0).arg(-1);
        pipe.cmd("SMEMBERS").arg(partition.keys.queues());
        let replies = partition.load(&pipe).await?;
        let items = replies.first().and_then(reply::array).unwrap_or_default();
        let works: Option<_> = items.iter().map(|i| reply::bytes(i).and_then(record::unpack_work)).collect();
        schedule.todo = works.ok_or(OwnerError::Newer(record::VERSION + 1))?;
        let names = replies.get(1).and_then(reply::array).unwrap_or_default();
        let names: Vec<Name> = names.iter().filter_map(reply::text).filter_map(|t| Name::new(t).ok()).collect();
        let head = partition.head;
        let mint = Mint { reign: partition.reign, seq: head.seq + 1, n: 0 };
        let core = Core {
            cache: Cache::default(),
            schedule,
            staged: Staged::default(),
            mint,
            now_ms: head.now_ms,
            freed: None,
        };
        let upkeep = Upkeep::new(name, partition.keys.clone(), turn.now_ms);
        let mut owner = Self {
            partition,
            core,
            upkeep,
            memory,
            backlog: VecDeque::new(),
            read_to: head.offset,
            more_in_log: true,
            entry_bytes: 256,
            last_read: 0,
            pending: None,
            retention: Retention::default(),
            next_retention_ms: 0,
            server_ms: turn.now_ms,
            done: Done::default(),
        };
        for name in names {
            owner.make_queue(&name).await?;
        }
        owner.load_timers(0).await?;
        Ok(owner)
    }

    /// Tells how many slots workers have for each queue, in this partition's share.
    pub fn set_slots(&mut self, slots: BTreeMap<Name, u64>) {
        self.core.schedule.slots = slots;
    }

    /// What the next owner has to know.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Whether it is on Cluster, where workers wait for a doorbell, and what is kept of finished runs.
    pub fn configure(&mut self, cluster: bool, retention: Retention) {
        self.upkeep.cluster = cluster;
        self.retention = retention;
    }

    /// Whether everything that was decided is committed, so that the owner may leave.
    pub fn is_settled(&self) -> bool {
        self.pending.is_none() && !self.partition.has_announcements()
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
        // What a commit announces goes with the trip behind it, which must not wait.
        let announces = commit.as_ref().is_some_and(Commit::announces);
        let block = if count > 0 && !announces { self.block(&chores) } else { None };
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
        }
        self.server_ms = turn.now_ms;
        self.core.mint = Mint { reign: self.partition.reign, seq: self.partition.head.seq + 1, n: 0 };
        self.core.cache.shrink();
        self.batch(turn, chores, count).await
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
        if self.next_retention_ms <= self.server_ms {
            return None;
        }
        if !schedule.todo.is_empty() || chores.iter().any(|c| matches!(c, Chore::Release(_))) {
            return None;
        }
        let wait = match schedule.timers.next_due() {
            Some(due) => Duration::from_millis(due.saturating_sub(self.server_ms)).min(BLOCK_MAX),
            None => BLOCK_MAX,
        };
        (!wait.is_zero()).then_some(wait)
    }

    async fn batch(&mut self, turn: Turn, chores: Vec<Chore>, asked: usize) -> Result<(), OwnerError> {
        if asked > 0 {
            self.take_in(turn.entries, asked);
        }
        let mut ready = Vec::new();
        for (chore, value) in chores.into_iter().zip(turn.extra) {
            match chore {
                Chore::Release(queue) => ready.push((queue, readable(value)?)),
                Chore::Timers { .. } => self.keep_timers(&readable(value)?),
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
        self.repeat_answers(&mut items).await?;
        self.bring(&items, &mut malformed).await?;
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
        commit.cluster = self.upkeep.cluster;
        for queue in commit.jobs.iter().map(|(q, _)| q.clone()).collect::<BTreeSet<_>>() {
            if !self.core.schedule.queue(&queue).exists {
                self.make_queue(&queue).await?;
            }
        }
        self.pending = (moved || !commit.is_empty()).then_some(commit);
        Ok(())
    }

    /// Puts what was read behind what is left of earlier reads.
    fn take_in(&mut self, entries: Vec<(StreamId, Fields)>, asked: usize) {
        self.more_in_log = entries.len() == asked;
        self.last_read = entries.len();
        if let Some((last, _)) = entries.last() {
            self.read_to = *last;
            let bytes: usize = entries.iter().flat_map(|(_, f)| f.iter().map(|(k, v)| k.len() + v.len())).sum();
            // It rises at once and falls slowly: a read that is too large is worse than one more read.
            let average = bytes / entries.len();
            self.entry_bytes = average.max((self.entry_bytes + average) / 2) + 1;
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

    /// Loads what the items are about. Items about a broken run are quarantined.
    async fn bring(&mut self, items: &[Item], malformed: &mut Vec<Malformed>) -> Result<(), OwnerError> {
        let (runs, plans) = Core::wanted(items);
        let Self { partition, core, .. } = self;
        core.cache.load_plans(partition, plans).await?;
        for (run, error) in core.cache.load_runs(partition, runs).await? {
            if let RecordError::Newer { version, .. } = error {
                return Err(OwnerError::Newer(version));
            }
            let why = format!("run {run}: {error}");
            malformed.push(Malformed { id: StreamId::ZERO, why, bytes: run.bytes().to_vec() });
        }
        Ok(())
    }

    fn decide(&mut self, items: Vec<Item>, malformed: &mut Vec<Malformed>) -> Result<(), OwnerError> {
        self.done.items += items.len() as u64;
        self.memory.last_single = match &items[..] {
            [only] => Some((only.origin, only.run)),
            _ => None,
        };
        for item in items {
            if !self.memory.poison.contains(&(item.origin, item.run)) {
                self.core.item(item).map_err(OwnerError::Poison)?;
                continue;
            }
            let why = format!("no rule could decide it: {:?}", item.what);
            let id = if let Origin::Entry(id, _) = item.origin { id } else { StreamId::ZERO };
            malformed.push(Malformed { id, why, bytes: item.run.bytes().to_vec() });
            if let Some(command) = item.command() {
                let message = "no rule could decide it; it is quarantined".into();
                let refused = Answer::Refused { code: "undecidable".into(), message };
                self.core.staged.answers.entry(command).or_default().push(refused);
            }
            self.suspend(item.run);
        }
        Ok(())
    }

    /// Holds a run about which something was quarantined, if it can be held.
    fn suspend(&mut self, run: RunId) {
        let command = Command {
            id: CommandId(Uuid::nil()),
            actor: "stepfleet".into(),
            run,
            reason: Some("an entry about it was quarantined".into()),
            verb: Verb::Suspend { now: false },
            again: false,
        };
        if self.core.cache.runs.contains_key(&run) {
            self.core.event(run, Event::Command(command));
        }
    }

    fn quarantine(&mut self, malformed: Vec<Malformed>) {
        for bad in malformed {
            self.done.quarantined += 1;
            tracing::error!(entry = %bad.id, why = bad.why, "quarantined");
            let commit = &mut self.core.staged.commit;
            *commit.counters.entry("quarantined").or_default() += 1;
            commit.quarantined.push((bad.why, bad.bytes));
        }
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

    /// Makes a queue's stream and group, and looks how much is on it.
    async fn make_queue(&mut self, name: &Name) -> Result<(), OwnerError> {
        let keys = &self.partition.keys;
        let mut pipe = redis::pipe();
        pipe.cmd("SADD").arg(keys.queues()).arg(name.as_str());
        // A group that is there already answers BUSYGROUP, which is as good.
        pipe.cmd("XGROUP").arg("CREATE").arg(keys.jobs(name)).arg(GROUP).arg(0).arg("MKSTREAM");
        pipe.cmd("XINFO").arg("GROUPS").arg(keys.jobs(name));
        pipe.cmd("ZCARD").arg(keys.ready(name));
        pipe.cmd("ZRANGE").arg(keys.ready(name)).arg(0).arg(0).arg("WITHSCORES");
        let replies = self.partition.attempt(&pipe).await?;
        if let Some(text) = replies.iter().filter_map(reply::error).find(|text| !text.starts_with("BUSYGROUP")) {
            return Err(TurnError::of_reply(text).into());
        }
        // Jobs that this very batch has dispatched are not on the stream yet.
        let staged = self.core.staged.commit.jobs.iter().filter(|(q, _)| q == name).count() as u64;
        let queue = self.core.schedule.queue(name);
        queue.exists = true;
        if queue.outstanding == 0 {
            queue.outstanding = staged + replies.get(2).and_then(super::upkeep::outstanding).unwrap_or(0);
        }
        if queue.ready == 0 {
            queue.ready = replies.get(3).and_then(reply::number).unwrap_or(0) as u64;
            let first = replies.get(4).and_then(reply::array).and_then(|pair| pair.get(1)).and_then(score);
            queue.urgent = first.map_or(0, record::priority_of);
        }
        Ok(())
    }

    async fn load_timers(&mut self, from_ms: u64) -> Result<(), OwnerError> {
        let mut pipe = redis::pipe();
        pipe.add_command(self.upkeep.timers(from_ms, self.core.schedule.timers.horizon_ms));
        let replies = self.partition.load(&pipe).await?;
        if let Some(value) = replies.first() {
            self.keep_timers(value);
        }
        Ok(())
    }

    fn keep_timers(&mut self, value: &Value) {
        for pair in reply::array(value).unwrap_or_default().chunks_exact(2) {
            if let (Some(member), Some(due)) = (reply::bytes(&pair[0]), score(&pair[1])) {
                self.core.schedule.timers.set(due, member.to_vec());
            }
        }
    }
}

/// What could not be read must not pass for empty: a key of a slot that is on its way to another node is refused, and the
/// steps and timers in it would be forgotten.
fn readable(value: Value) -> Result<Value, TurnError> {
    match reply::error(&value) {
        Some(text) => Err(TurnError::of_reply(text)),
        None => Ok(value),
    }
}

fn score(value: &Value) -> Option<u64> {
    match value {
        Value::Double(score) => Some(*score as u64),
        other => reply::text(other)?.parse::<f64>().ok().map(|s| s as u64),
    }
}
