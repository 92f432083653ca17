//! What an owner keeps in mind of its partition: the timers that are near, the windows of its queues, the work items.
//!
//! All of it, but for the time-outs of young runs, mirrors what is in Redis. The owner is the only writer, so a mirror is
//! exact until a commit is in doubt, and then the owner is dropped together with its mirrors.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use stepfleet_protocol::{id::StreamId, name::Name};

use super::young::Young;
use crate::machine::event::Work;

/// Timers due within this time are kept in mind.
pub const HORIZON_MS: u64 = 120_000;
/// Timers of one read: about 150 KiB, and a millisecond of the server.
pub const TIMERS_PER_READ: usize = 2_000;
/// Dispatched, unfinished jobs per queue and partition, at least.
pub const WINDOW_MIN: u64 = 256;

/// The timers that are near.
#[derive(Debug, Default)]
pub struct Timers {
    by_due: BTreeSet<(u64, Vec<u8>)>,
    due_of: HashMap<Vec<u8>, u64>,
    /// Every timer due up to here is kept in mind. It lags behind the clock while very many are due.
    pub horizon_ms: u64,
}

impl Timers {
    /// Whether it is time to read on: the horizon comes near, and there is room for more.
    pub fn wants_more(&self, now_ms: u64) -> bool {
        now_ms + HORIZON_MS / 2 > self.horizon_ms && self.by_due.len() < TIMERS_PER_READ / 2
    }

    /// Takes in the earliest timers that are stored, `page`, which were asked for up to `to_ms`. If there are more of them,
    /// the horizon ends before the last of the page: others may be due in its millisecond.
    pub fn take_in(&mut self, page: Vec<(u64, Vec<u8>)>, to_ms: u64) {
        let whole = page.len() < TIMERS_PER_READ;
        let last_ms = page.last().map_or(0, |(due, _)| *due);
        let seen_to_ms = if whole { to_ms } else { last_ms.saturating_sub(1) };
        self.horizon_ms = self.horizon_ms.max(seen_to_ms);
        for (due_ms, member) in page {
            self.keep(due_ms, member);
        }
    }

    /// Keeps a timer in mind if it is near. A timer that is set again moves.
    pub fn set(&mut self, due_ms: u64, member: Vec<u8>) {
        self.clear(&member);
        if due_ms <= self.horizon_ms {
            self.keep(due_ms, member);
        }
    }

    fn keep(&mut self, due_ms: u64, member: Vec<u8>) {
        self.due_of.insert(member.clone(), due_ms);
        self.by_due.insert((due_ms, member));
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

    /// When there may be something to do: the next timer is due, or one that is not in mind yet may be.
    pub fn next_look(&self) -> u64 {
        self.next_due().unwrap_or(u64::MAX).min(self.horizon_ms + 1)
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
    /// Some of them were looked at, and are about to be released.
    pub looked_at: bool,
    /// The stream and its group exist.
    pub exists: bool,
    /// The last trim of the stream left some that may go.
    pub trims: bool,
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
    /// Time-outs of runs that are not among the timers yet.
    pub young: Young,
    /// The queues.
    pub queues: BTreeMap<Name, Queue>,
    /// The work items, in their order in the list.
    pub todo: VecDeque<Work>,
    /// Queues that somebody paused: nothing of them goes to the stream.
    pub paused: BTreeSet<Name>,
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
        let (window, paused) = (self.window(name), self.is_paused(name));
        let queue = self.queue(name);
        queue.ready == 0 && queue.outstanding < window && !paused
    }

    /// Whether somebody paused the queue.
    pub fn is_paused(&self, name: &Name) -> bool {
        !self.paused.is_empty() && self.paused.contains(name)
    }

    /// Queues with waiting steps and room on the stream, with how many steps may go.
    pub fn releasable(&self) -> Vec<(Name, u64)> {
        let room = |name: &Name, q: &Queue| self.window(name).saturating_sub(q.outstanding);
        let waiting = self.queues.iter().filter(|(name, q)| q.ready > 0 && !q.looked_at && !self.is_paused(name));
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
    fn more_timers_than_one_read_brings_come_page_by_page_and_none_is_passed_by() {
        // Ten pages, with hundreds in every millisecond: stored order is by time, then by member.
        let mut stored: BTreeSet<(u64, Vec<u8>)> =
            (0..20_000u32).map(|n| (1_000 + u64::from(n) / 700, n.to_be_bytes().to_vec())).collect();
        let mut timers = Timers::default();
        let (mut fired, mut reads) = (Vec::new(), 0);
        while !stored.is_empty() {
            if timers.wants_more(5_000) {
                let page: Vec<_> = stored.iter().take(TIMERS_PER_READ).cloned().collect();
                timers.take_in(page, 5_000 + HORIZON_MS);
                reads += 1;
            }
            assert!(timers.by_due.len() <= TIMERS_PER_READ * 3 / 2, "what is in mind is bounded");
            for _ in 0..400 {
                let Some(timer) = timers.pop(5_000) else { break };
                stored.remove(&timer);
                fired.push(timer);
            }
        }
        assert!(fired.is_sorted_by_key(|(due, _)| *due) && fired.len() == 20_000);
        assert!(reads < 30, "{reads} reads");
        timers.take_in(Vec::new(), 5_000 + HORIZON_MS);
        assert_eq!((timers.horizon_ms, timers.wants_more(5_000)), (5_000 + HORIZON_MS, false));
    }

    #[test]
    fn a_page_of_one_and_the_same_millisecond_is_no_standstill() {
        let mut timers = Timers::default();
        timers.take_in((0..TIMERS_PER_READ as u32).map(|n| (1_000, n.to_be_bytes().to_vec())).collect(), 5_000);
        assert_eq!((timers.horizon_ms, timers.next_look()), (999, 1_000));
        for n in 0..TIMERS_PER_READ as u32 {
            assert_eq!(timers.pop(1_000), Some((1_000, n.to_be_bytes().to_vec())));
        }
        assert!(timers.wants_more(1_000) && timers.next_look() == 1_000, "what is not in mind is read before the wait");
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
