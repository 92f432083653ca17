//! The time-outs of young runs, which an owner keeps in mind and writes when their runs are a minute old
//! ([`crate::store::young`]). A run that ends before costs the timers nothing.

use std::collections::{BTreeMap, VecDeque};

use stepfleet_protocol::id::RunId;

use crate::store::young::{TIMEOUT_MIN_MS, YOUNG_MS};

/// Time-outs in mind, at most; those of further runs are written at once.
const KEPT_MAX: usize = 100_000;
/// An id made further from the time of its submit says nothing about the age of its run, in milliseconds.
const APART_MS: u64 = 2_000;
/// The head tells of progress in steps of so much, in milliseconds: a new owner looks at the open runs of that much more.
const STEP_MS: u64 = 5_000;

/// Time-outs that are in mind only.
#[derive(Debug, Default)]
pub struct Young {
    /// When they are due. Ids begin with the time they were made.
    due_of: BTreeMap<RunId, u64>,
    /// Runs whose time-outs the last owner may have kept in mind only, and that were not looked at yet, oldest first.
    unseen: VecDeque<RunId>,
    /// Of runs made before, all that were here are stored, or staged.
    grown_to: u64,
    /// What the head says, or will say when what was sealed is committed: of runs made before, all are stored.
    stored_to: Option<u64>,
}

impl Young {
    /// For a new owner: what the head says, and the open runs made since then, oldest first.
    pub fn new(stored_to: Option<u64>, unseen: VecDeque<RunId>) -> Self {
        Self { unseen, stored_to, ..Self::default() }
    }

    /// Keeps the time-out of a run that was submitted at `now_ms`. False if it has to be written at once: it is short, the id
    /// of the run would hide it from the next owner, or there are too many.
    pub fn keep(&mut self, run: RunId, due_ms: u64, now_ms: u64) -> bool {
        let created_ms = run.created_ms();
        let found = created_ms.abs_diff(now_ms) <= APART_MS && self.stored_to.is_none_or(|to| created_ms >= to);
        let kept = found && due_ms >= now_ms + TIMEOUT_MIN_MS && self.due_of.len() < KEPT_MAX;
        if kept {
            self.due_of.insert(run, due_ms);
        }
        kept
    }

    /// Forgets the time-out of a run. True if it was in mind only.
    pub fn forget(&mut self, run: RunId) -> bool {
        self.due_of.remove(&run).is_some()
    }

    /// Whether the time-out of the run is, or may be, in mind only.
    pub fn may_keep(&self, run: RunId) -> bool {
        self.due_of.contains_key(&run) || self.unseen.contains(&run)
    }

    /// Takes up to `count` time-outs of runs that are old enough at `now_ms`, to be written.
    pub fn grown(&mut self, now_ms: u64, count: usize) -> Vec<(RunId, u64)> {
        let mut out = Vec::new();
        while out.len() < count
            && self.has_grown(now_ms)
            && let Some(first) = self.due_of.first_entry()
        {
            self.grown_to = first.key().created_ms() + 1;
            out.push(first.remove_entry());
        }
        out
    }

    /// Whether there is one of a run that is old enough at `now_ms`.
    pub fn has_grown(&self, now_ms: u64) -> bool {
        self.due_of.keys().next().is_some_and(|run| run.created_ms() + YOUNG_MS <= now_ms)
    }

    /// Whether no time-out is in mind only, but for those of the last owner.
    pub fn is_empty(&self) -> bool {
        self.due_of.is_empty()
    }

    /// Takes up to `count` of the last owner's runs, to be looked at.
    pub fn next_unseen(&mut self, count: usize) -> Vec<RunId> {
        let count = count.min(self.unseen.len());
        let runs: Vec<RunId> = self.unseen.drain(..count).collect();
        self.grown_to = runs.last().map_or(self.grown_to, |last| last.created_ms() + 1);
        runs
    }

    /// Whether every run of the last owner was looked at.
    pub fn all_seen(&self) -> bool {
        self.unseen.is_empty()
    }

    /// What the commit that is sealed now, at `now_ms`, tells the head; none if it has moved little, and nothing was stored.
    pub fn tell(&mut self, now_ms: u64) -> Option<u64> {
        let first = [self.unseen.front(), self.due_of.keys().next()].into_iter().flatten().min();
        let to = first.map_or(now_ms.saturating_sub(APART_MS).max(self.grown_to), RunId::created_ms);
        let step = |before: u64| if self.grown_to > before { 1 } else { STEP_MS };
        let moved = self.stored_to.is_none_or(|before| to >= before + step(before));
        moved.then(|| *self.stored_to.insert(to))
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::id::PartitionId;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn run(made_ms: u64, n: u64) -> RunId {
        RunId::new(PartitionId(0), made_ms, n)
    }

    fn keep(young: &mut Young, run: RunId, now_ms: u64) -> bool {
        young.keep(run, now_ms + TIMEOUT_MIN_MS, now_ms)
    }

    #[test]
    fn time_outs_are_written_at_the_age_of_a_minute_oldest_first_and_those_of_ended_runs_never() {
        let mut young = Young::default();
        assert!((0..5).all(|n| keep(&mut young, run(NOW + n, n), NOW + n)));
        assert!(young.forget(run(NOW + 1, 1)) && !young.forget(run(NOW + 1, 1)));
        assert_eq!((young.grown(NOW + YOUNG_MS - 1, 9), young.has_grown(NOW + YOUNG_MS - 1)), (vec![], false));
        assert_eq!(young.grown(NOW + YOUNG_MS + 3, 1), [(run(NOW, 0), NOW + TIMEOUT_MIN_MS)]);
        assert!(young.has_grown(NOW + YOUNG_MS + 3), "more than one was taken");
        let rest: Vec<_> = young.grown(NOW + YOUNG_MS + 3, 9).into_iter().map(|(run, _)| run).collect();
        assert_eq!(rest, [run(NOW + 2, 2), run(NOW + 3, 3)]);
        assert!(young.may_keep(run(NOW + 4, 4)) && !young.may_keep(run(NOW + 3, 3)));
        assert_eq!(
            (young.tell(NOW + 4), young.tell(NOW + 4)),
            (Some(NOW + 4), None),
            "of the stored ones the head knows"
        );
        young.grown(NOW + YOUNG_MS + 4, 9);
        assert_eq!((young.tell(NOW + 4), young.tell(NOW + 4)), (Some(NOW + 5), None));
    }

    #[test]
    fn what_the_next_owner_would_not_find_is_written_at_once() {
        let mut young = Young::default();
        assert!(!young.keep(run(NOW, 1), NOW + TIMEOUT_MIN_MS - 1, NOW), "it is short");
        assert!(!keep(&mut young, run(NOW - APART_MS - 1, 1), NOW), "its id is older than its submit");
        assert!(!keep(&mut young, run(NOW + APART_MS + 1, 1), NOW), "its id is of the future");
        assert_eq!(young.tell(NOW), Some(NOW - APART_MS));
        assert!(keep(&mut young, run(NOW - APART_MS, 1), NOW));
        assert_eq!(young.tell(NOW + 2 * STEP_MS), None, "one is in mind since then");
        assert!(young.forget(run(NOW - APART_MS, 1)));
        assert_eq!(young.tell(NOW + 2 * STEP_MS), Some(NOW + 2 * STEP_MS - APART_MS));
        assert!(!keep(&mut young, run(NOW + STEP_MS, 1), NOW + STEP_MS), "the head says that it is stored");
    }

    #[test]
    fn the_head_never_passes_a_run_of_the_last_owner_that_was_not_looked_at() {
        let mut young = Young::new(Some(NOW), [run(NOW + 1, 1), run(NOW + 9_000, 2)].into());
        assert_eq!(young.tell(NOW + 50_000), None);
        assert_eq!(young.next_unseen(1), [run(NOW + 1, 1)]);
        assert_eq!((young.tell(NOW + 50_000), young.tell(NOW + 50_000)), (Some(NOW + 9_000), None));
        assert!(!young.all_seen() && young.may_keep(run(NOW + 9_000, 2)));
        assert_eq!((young.next_unseen(9).len(), young.all_seen()), (1, true));
        assert_eq!(young.tell(NOW + 50_000), Some(NOW + 48_000));
    }
}
