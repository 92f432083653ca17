//! How many workers a queue wants: the figure that autoscalers follow.

use std::{collections::HashMap, time::Duration};

use super::super::view::QueueView;

/// Jobs of a queue that have run, and their time together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Ran {
    /// Jobs.
    pub(super) jobs: u64,
    /// Seconds.
    pub(super) seconds: f64,
}

/// A service time until a job has run.
const ASSUMED: Duration = Duration::from_secs(1);
/// Jobs that make a fresh average.
const JOBS_MIN: u64 = 20;

/// What is remembered of queues between two looks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    queues: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    /// All that had run when `service` was last told from new jobs.
    since: Ran,
    /// Seconds that a job takes.
    service: f64,
    /// Slots of a worker, as last seen.
    slots: f64,
}

impl Memory {
    /// Forgets queues that are not there any more.
    pub(super) fn keep(&mut self, queues: &[QueueView]) {
        self.queues.retain(|name, _| queues.iter().any(|queue| queue.name == *name));
    }

    /// How many workers are wanted so that what waits begins within `target`.
    ///
    /// Each job that a worker has keeps its slot: nobody is scaled away in the middle of work. A waiting job needs a slot for its
    /// service time out of the time that it may wait (Little's law), and one slot of its own at most. Both divided by the slots
    /// of a worker of this queue, rounded up. With work there is at least one; without any, none.
    pub(super) fn wanted(&mut self, queue: &QueueView, ran: Ran, target: Duration) -> u64 {
        let known = self.queues.entry(queue.name.clone()).or_insert(Known {
            since: Ran::default(),
            service: ASSUMED.as_secs_f64(),
            slots: 0.0,
        });
        let (jobs, seconds) = (ran.jobs.saturating_sub(known.since.jobs), ran.seconds - known.since.seconds);
        if jobs >= JOBS_MIN || (known.since.jobs == 0 && jobs > 0) {
            known.service = (seconds / jobs as f64).max(0.0);
            known.since = ran;
        }
        if queue.workers > 0 {
            known.slots = f64::from(queue.slots) / f64::from(queue.workers);
        }
        // What waits in a paused queue is nobody's work yet.
        let depth = if queue.paused.is_some() { 0 } else { queue.depth };
        if queue.pending + depth == 0 {
            return 0;
        }
        let share = (known.service / target.as_secs_f64().max(0.001)).min(1.0);
        let slots = queue.pending as f64 + depth as f64 * share;
        let workers = if known.slots > 0.0 { (slots / known.slots).ceil() } else { 1.0 };
        (workers as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(depth: u64, pending: u64, workers: u32) -> QueueView {
        QueueView { name: "q".into(), depth, pending, workers, slots: 4 * workers, ..QueueView::default() }
    }

    /// Wanted workers of four slots for jobs of one second that may wait ten.
    fn wanted(depth: u64, pending: u64, workers: u32) -> u64 {
        let (ran, target) = (Ran { jobs: 100, seconds: 100.0 }, Duration::from_secs(10));
        Memory::default().wanted(&queue(depth, pending, workers), ran, target)
    }

    #[test]
    fn what_runs_keeps_its_slot_and_what_waits_gets_a_share_of_one() {
        for (depth, pending, workers, expected) in [
            (0, 0, 3, 0),
            (0, 1, 3, 1),
            // Three workers are full of long jobs: none may go.
            (0, 12, 3, 3),
            // 400 jobs of a second in ten seconds: 40 slots.
            (400, 0, 3, 10),
            (400, 12, 3, 13),
            // Nobody is there: the first worker is wanted, and tells how many slots it has.
            (400, 0, 0, 1),
        ] {
            assert_eq!(wanted(depth, pending, workers), expected, "{depth} wait, {pending} run, {workers} workers");
        }
    }

    #[test]
    fn a_job_that_takes_longer_than_it_may_wait_gets_a_slot_of_its_own_and_no_more() {
        let (ran, target) = (Ran { jobs: 100, seconds: 100_000.0 }, Duration::from_secs(10));
        assert_eq!(Memory::default().wanted(&queue(8, 0, 1), ran, target), 2);
    }

    #[test]
    fn a_paused_queue_wants_those_at_work_alone() {
        let paused = crate::http::view::PauseView::default();
        for (pending, expected) in [(0, 0), (5, 2)] {
            let queue = QueueView { paused: Some(paused.clone()), ..queue(100_000, pending, 3) };
            let (ran, target) = (Ran { jobs: 100, seconds: 100.0 }, Duration::from_secs(10));
            assert_eq!(Memory::default().wanted(&queue, ran, target), expected, "{pending} run");
        }
    }

    #[test]
    fn the_service_time_follows_the_last_jobs_and_slots_are_remembered() {
        let (mut memory, target) = (Memory::default(), Duration::from_secs(10));
        let slow = Ran { jobs: 100, seconds: 100.0 };
        assert_eq!(memory.wanted(&queue(400, 0, 1), slow, target), 10);
        let few = Ran { jobs: 101, seconds: 100.1 };
        assert_eq!(memory.wanted(&queue(400, 0, 1), few, target), 10, "one job says little");
        let fast = Ran { jobs: 200, seconds: 110.0 };
        assert_eq!(
            memory.wanted(&queue(400, 0, 0), fast, target),
            1,
            "a tenth of a second each, on slots as last seen"
        );
    }
}
