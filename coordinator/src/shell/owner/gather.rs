//! What a batch is made of, in order: log entries with the timers between them, then ready steps, then work items. And how
//! a batch is decided while the one before it is being committed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redis::Value;
use stepfleet_protocol::{gate::Gate, id::StreamId, name::Name};

use super::{
    super::{
        core::Core,
        inputs,
        intake::{self, Item, Malformed, Origin, Place, What},
        tally::Tally,
        upkeep::Chore,
    },
    BATCH_ITEMS_MAX, BATCH_ITEMS_MIN, Memory, Owner, OwnerError, WORK_PER_BATCH,
};
use crate::{
    machine::event::{Event, Work},
    mutants::mutant,
    store::{
        commit::Commit,
        link::Link,
        partition::{Turn, TurnError},
        record, reply,
    },
};

/// Where steps were looked at that may be released.
#[derive(Debug)]
pub(super) enum From {
    /// The ready set of a queue.
    Queue(Name),
    /// A gate.
    Gate(Gate),
}

/// The first of the steps that wait somewhere, as they were at the last commit.
#[derive(Debug)]
pub(super) struct Look {
    from: From,
    found: Value,
    /// Nothing was decided since, so that an empty answer is the truth.
    exact: bool,
}

/// A batch that is not decided yet.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) items: Vec<Item>,
    pub(super) malformed: Vec<Malformed>,
    /// The last entry that it is about.
    pub(super) offset: StreamId,
}

/// A batch that was looked at while the last one was being committed.
#[derive(Debug)]
pub(super) enum Ahead {
    /// It needs something that is not in mind: nothing was done with it.
    Untouched(Gathered),
    /// It is decided; something it led to must be read from the server first. Its items are gone.
    Decided { left: Gathered, items: usize, alone: Vec<Place> },
    /// It is decided, and its commit is ready.
    Sealed { commit: Box<Commit>, items: usize, alone: Vec<Place>, tally: Tally },
}

impl Gathered {
    /// Decides the batch as far as that goes without the server.
    ///
    /// # Errors
    /// The item over which something panicked, if it is known.
    pub(super) fn decide(self, core: &mut Core) -> Result<Ahead, OwnerError> {
        catch_unwind(AssertUnwindSafe(|| self.try_decide(core))).unwrap_or(Err(OwnerError::Panicked))
    }

    fn try_decide(mut self, core: &mut Core) -> Result<Ahead, OwnerError> {
        if !core.has_all(&self.items) {
            return Ok(Ahead::Untouched(self));
        }
        let (items, alone) = (self.items.len(), Memory::default().alone(&self.items));
        for item in self.items.drain(..) {
            core.item(item).map_err(OwnerError::Poison)?;
        }
        if self.malformed.is_empty() && inputs::resolve_at_hand(core)? {
            let mut commit = core.seal();
            commit.offset = self.offset;
            let tally = std::mem::take(&mut core.tally);
            return Ok(Ahead::Sealed { commit: Box::new(commit), items, alone, tally });
        }
        Ok(Ahead::Decided { left: self, items, alone })
    }
}

impl<L: Link> Owner<L> {
    /// The next batch; none if there is nothing to do. What is sent or committed so far goes up to `offset`.
    pub(super) fn gather(&mut self, offset: StreamId) -> Result<Option<Gathered>, OwnerError> {
        self.store_grown();
        let mut batch = self.next_entries(offset)?;
        // Timers must not overtake an entry that nobody has read or decided yet.
        let decided_ms = batch.items.last().map_or(0, |item| item.at_ms);
        let limit_ms = if self.backlog.is_empty() { decided_ms.max(self.known_ms) } else { decided_ms };
        // A full log must not starve timers and ready steps, unless a refused commit is being halved.
        let halved = self.memory.batch_items > 0;
        let room = if halved { self.batch_limit() } else { 2 * BATCH_ITEMS_MAX + batch.items.len() };
        let mut left = room.saturating_sub(batch.items.len());
        let timers = self.due_timers(limit_ms, left.min(BATCH_ITEMS_MAX))?;
        left = left.saturating_sub(timers.len());
        batch.items = intake::merge(batch.items, timers);
        for look in std::mem::take(&mut self.looked_at) {
            batch.items.extend(self.released(look, &mut left));
        }
        let at_ms = self.core.now_ms;
        let held = self.core.gates.due_checks().into_iter();
        let look = |(job, run, index)| Item { origin: Origin::Held, at_ms, run, what: What::Held { job, index } };
        batch.items.extend(held.map(look));
        if left > 0 || batch.items.is_empty() {
            batch.items.extend(self.next_work());
        }
        let nothing = batch.items.is_empty() && batch.malformed.is_empty() && batch.offset == offset;
        Ok((!nothing).then_some(batch))
    }

    /// Takes in the replies of a turn: log entries behind what is left of earlier reads, ready steps, mirrors.
    /// `alone`: no batch was decided meanwhile.
    ///
    /// # Errors
    /// Something that must be read was refused.
    pub(super) fn take_in(
        &mut self,
        turn: Turn,
        chores: Vec<Chore>,
        asked: usize,
        alone: bool,
    ) -> Result<(), TurnError> {
        if asked > 0 {
            self.more_in_log = turn.entries.len() == asked;
            self.last_read = turn.entries.len();
            if !self.more_in_log {
                self.known_ms = turn.before_ms;
            }
        }
        if let Some((last, _)) = turn.entries.last() {
            self.read_to = *last;
            let bytes: usize = turn.entries.iter().flat_map(|(_, f)| f.iter().map(|(k, v)| k.len() + v.len())).sum();
            // It rises at once and falls slowly: a read that is too large is worse than one more read.
            let average = bytes / turn.entries.len();
            self.entry_bytes = average.max((self.entry_bytes + average) / 2) + 1;
        }
        self.backlog.extend(turn.entries);
        for (chore, value) in chores.into_iter().zip(turn.extra) {
            match chore {
                Chore::Release(queue) => {
                    self.core.schedule.queue(&queue).looked_at = true;
                    self.looked_at.push(Look { from: From::Queue(queue), found: readable(value)?, exact: alone });
                }
                Chore::Unpark(gate) => {
                    self.looked_at.push(Look { from: From::Gate(gate), found: readable(value)?, exact: alone });
                }
                Chore::Parked(gate) => {
                    let count = reply::number(&readable(value)?).unwrap_or(0) as u64;
                    self.core.gates.set_parked(&gate, count);
                    if count == 0 {
                        self.core.staged.commit.gates_removed.push(gate);
                    }
                }
                Chore::Timers { to_ms } => self.keep_timers(&readable(value)?, to_ms),
                other => self.upkeep.finish(other, &value, &mut self.core.schedule, turn.now_ms),
            }
        }
        Ok(())
    }

    /// Caps the items of the log in a batch, at least one, so that a simulation can break off between any two of them.
    pub fn bound_batches(&mut self, most: usize) {
        self.batch_most = most.clamp(1, BATCH_ITEMS_MAX);
    }

    /// Items of one batch now: fewer after the server refused one. Where more is there than one commit should take, or the
    /// next one can be decided while this one is sent, the rest waits.
    fn batch_limit(&self) -> usize {
        match self.memory.batch_items {
            0 => (self.backlog.len() / 2).clamp(BATCH_ITEMS_MIN, BATCH_ITEMS_MAX).min(self.batch_most),
            halved => halved.min(self.batch_most),
        }
    }

    /// The items of the next entries, up to the limit of a batch, and the last entry they come from. An entry of a newer
    /// version is an error as soon as everything before it is decided.
    fn next_entries(&mut self, mut offset: StreamId) -> Result<Gathered, OwnerError> {
        let limit = self.batch_limit();
        let (mut items, mut malformed) = (Vec::new(), Vec::new());
        while items.len() < limit
            && let Some(entry) = self.backlog.front()
        {
            match intake::from_log(vec![entry.clone()]) {
                Ok((_, bad)) if mutant("poison_repeats_for_ever") && !bad.is_empty() => {
                    return Err(OwnerError::Panicked);
                }
                Ok((more, bad)) => {
                    items.extend(more);
                    malformed.extend(bad);
                }
                Err(_) if !(items.is_empty() && malformed.is_empty()) => break,
                Err(newer) => return Err(newer.into()),
            }
            offset = entry.0;
            self.backlog.pop_front();
        }
        Ok(Gathered { items, malformed, offset })
    }

    /// Up to `count` timers that are due. One that cannot be read is of a newer program's making; one that has to wait for
    /// reports is set anew.
    fn due_timers(&mut self, limit_ms: u64, count: usize) -> Result<Vec<Item>, OwnerError> {
        let mut items = Vec::new();
        for _ in 0..count {
            let Some((due_ms, member)) = self.core.schedule.timers.pop(limit_ms) else { break };
            let (run, timer) = record::unpack_timer(&member).ok_or(OwnerError::Newer(record::VERSION + 1))?;
            if let Some(later_ms) = self.returning.holds(due_ms, timer) {
                self.core.schedule.timers.set(later_ms, member.clone());
                self.core.staged.commit.timers_set.push((later_ms, member));
                continue;
            }
            items.push(Item { origin: Origin::Timer, at_ms: due_ms, run, what: What::Event(Event::Timer(timer)) });
            self.core.staged.commit.timers_cleared.push(member);
        }
        Ok(items)
    }

    /// Up to `left` of the waiting steps that were looked at.
    fn released(&mut self, look: Look, left: &mut usize) -> Vec<Item> {
        let Look { from, found, exact } = look;
        let found = reply::array(&found).unwrap_or_default().iter().filter_map(reply::bytes);
        let mut members: Vec<Vec<u8>> = found.map(<[u8]>::to_vec).collect();
        let none = members.is_empty();
        members.truncate(*left);
        *left -= members.len();
        let (at_ms, count) = (self.core.now_ms, members.len() as u64);
        let origin = if let From::Queue(_) = from { Origin::Ready } else { Origin::Parked };
        let item = |(run, index)| Item { origin, at_ms, run, what: What::Event(Event::Release { index }) };
        let items = members.iter().filter_map(|m| record::unpack_ready(m)).map(item).collect();
        let commit = &mut self.core.staged.commit;
        match from {
            From::Queue(queue) => {
                let q = self.core.schedule.queue(&queue);
                q.looked_at = false;
                q.ready = if none && exact { 0 } else { q.ready.saturating_sub(count) };
                if count > 0 {
                    commit.ready_removed.entry(queue).or_default().extend(members);
                }
            }
            From::Gate(gate) => {
                self.core.gates.unpark(&gate, count);
                if count > 0 {
                    commit.parked_removed.entry(gate).or_default().extend(members);
                }
            }
        }
        items
    }

    fn next_work(&mut self) -> Vec<Item> {
        let take = self.core.schedule.todo.len().min(WORK_PER_BATCH);
        let works: Vec<Work> = self.core.schedule.todo.drain(..take).collect();
        self.core.staged.commit.work_taken = take;
        self.core.staged.work_of.extend(works.iter().map(|work| work.run));
        works.into_iter().map(|w| intake::from_work(w, self.core.now_ms)).collect()
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
