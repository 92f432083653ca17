//! What an owner keeps in mind of its partition: the timers that are near, the windows of its queues, the work items.
//!
//! All of it mirrors what is in Redis. The owner is the only writer, so a mirror is exact until a commit is in doubt, and
//! then the owner is dropped together with its mirrors.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use stepfleet_protocol::{id::StreamId, name::Name};

use crate::machine::event::Work;

/// Timers due within this time are kept in mind.
pub const HORIZON_MS: u64 = 120_000;
/// Dispatched, unfinished jobs per queue and partition, at least.
pub const WINDOW_MIN: u64 = 256;

/// The timers that are near.
#[derive(Debug, Default)]
pub struct Timers {
    by_due: BTreeSet<(u64, Vec<u8>)>,
    due_of: HashMap<Vec<u8>, u64>,
    /// Every timer due up to here is kept in mind.
    pub horizon_ms: u64,
}

impl Timers {
    /// Keeps a timer in mind if it is near. A timer that is set again moves.
    pub fn set(&mut self, due_ms: u64, member: Vec<u8>) {
        self.clear(&member);
        if due_ms <= self.horizon_ms {
            self.due_of.insert(member.clone(), due_ms);
            self.by_due.insert((due_ms, member));
        }
    }

    /// Forgets a timer.
    pub fn clear(&mut self, member: &[u8]) {
        if let Some((member, due_ms)) = self.due_of.remove_entry(member) {
            self.by_due.remove(&(due_ms, member));
        }
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<u64> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// Takes the next timer that is due at `limit_ms` or before.
    pub fn pop(&mut self, limit_ms: u64) -> Option<(u64, Vec<u8>)> {
        if self.next_due()? > limit_ms {
            return None;
        }
        let (due, member) = self.by_due.pop_first()?;
        self.due_of.remove(&member);
        Some((due, member))
    }
}

/// A queue of the partition.
#[derive(Debug, Default)]
pub struct Queue {
    /// Jobs on the stream that are not acked.
    pub outstanding: u64,
    /// Steps in the ready set.
    pub ready: u64,
    /// The priority of the most urgent of them, or more; 0 if none waits.
    pub urgent: u8,
    /// The stream and its group exist.
    pub exists: bool,
    /// Entries acked but not trimmed yet, while a long job at the head keeps them.
    pub behind: Vec<StreamId>,
    /// The lowest pending entry, and when it was first seen at the head.
    pub head: Option<(StreamId, u64)>,
}

/// Everything an owner keeps in mind.
#[derive(Debug, Default)]
pub struct Schedule {
    /// The timers that are near.
    pub timers: Timers,
    /// The queues.
    pub queues: BTreeMap<Name, Queue>,
    /// The work items, in their order in the list.
    pub todo: VecDeque<Work>,
    /// Live slots of workers by queue, as the observer sees them, divided by the number of partitions.
    pub slots: BTreeMap<Name, u64>,
}

impl Schedule {
    /// How many jobs of the queue may be on the stream at once.
    pub fn window(&self, queue: &Name) -> u64 {
        WINDOW_MIN.max(2 * self.slots.get(queue).copied().unwrap_or(0))
    }

    /// The queue, made if it is new.
    pub fn queue(&mut self, name: &Name) -> &mut Queue {
        if !self.queues.contains_key(name) {
            self.queues.insert(name.clone(), Queue::default());
        }
        self.queues.get_mut(name).expect("just made")
    }

    /// Whether a step that becomes ready now may go to the stream at once: nothing waits before it, and there is room.
    pub fn passes(&mut self, name: &Name) -> bool {
        let window = self.window(name);
        let queue = self.queue(name);
        queue.ready == 0 && queue.outstanding < window
    }

    /// Queues with waiting steps and room on the stream, with how many steps may go.
    pub fn releasable(&self) -> Vec<(Name, u64)> {
        let room = |name: &Name, q: &Queue| self.window(name).saturating_sub(q.outstanding);
        let waiting = self.queues.iter().filter(|(_, q)| q.ready > 0);
        // A quarter of the window at once, so that one command moves many steps.
        waiting
            .map(|(name, q)| (name.clone(), room(name, q)))
            .filter(|(name, room)| *room >= self.window(name) / 4)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_the_order_they_are_due_and_move_when_set_again() {
        let mut timers = Timers { horizon_ms: 1_000, ..Default::default() };
        timers.set(500, vec![1]);
        timers.set(300, vec![2]);
        timers.set(400, vec![1]);
        timers.set(2_000, vec![3]);
        timers.set(200, vec![4]);
        timers.clear(&[4]);
        assert_eq!(timers.pop(299), None);
        let all: Vec<_> = std::iter::from_fn(|| timers.pop(1_000)).collect();
        assert_eq!(all, [(300, vec![2]), (400, vec![1])], "beyond the horizon and cleared ones are not kept");
    }

    #[test]
    fn a_full_window_or_a_waiting_step_sends_the_next_one_to_the_ready_set() {
        let name = Name::new("q").expect("a legal name");
        let mut schedule = Schedule::default();
        assert!(schedule.passes(&name));
        schedule.queue(&name).outstanding = WINDOW_MIN;
        assert!(!schedule.passes(&name));
        schedule.queue(&name).outstanding = WINDOW_MIN / 2;
        schedule.queue(&name).ready = 1;
        assert!(!schedule.passes(&name), "nobody overtakes a waiting step");
        assert_eq!(schedule.releasable(), [(name.clone(), WINDOW_MIN / 2)]);
        schedule.slots.insert(name.clone(), 1_000);
        assert_eq!(schedule.window(&name), 2_000);
    }
}
