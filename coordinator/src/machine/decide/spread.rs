//! What spreads through the graph from one step: that it is settled, and that it is taken back.
//!
//! Each edge out of a settled step (completed, skipped, or given up with the run going on) has taken one from the needs of the
//! step at its other end, exactly once; taking a step back gives it back, exactly once. So the needs that are left are always
//! exact, however a graph is walked and whatever happens between two parts of it.

use std::sync::Arc;

use stepfleet_protocol::{message::Answer, state::State, workflow::StepOnFailure};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Work, WorkKind},
        run::{Step, Undoing},
    },
    Deciding,
};

impl Deciding<'_> {
    /// Walks from a step along its edges, part by part. Parts that are left become work items.
    pub(super) fn spread(&mut self, work: Work) {
        let begun = work.next > 0;
        let rewinds = matches!(work.kind, WorkKind::Rewind { .. });
        let (of, place) = match work.kind {
            WorkKind::Fan { of } => (of, work.next),
            WorkKind::Skip { of } | WorkKind::Rewind { of } => (of, work.next.saturating_sub(1)),
            WorkKind::Restart { .. } | WorkKind::Roots | WorkKind::Stop => unreachable!("it does not spread"),
            WorkKind::Resume | WorkKind::Reopen | WorkKind::Halt => unreachable!("it does not spread"),
            WorkKind::Recount { .. } => unreachable!("it does not spread"),
        };
        let plan = self.run.plan.clone();
        let mut left = vec![(of, place)];
        let mut touched = 0;
        while let Some((at, place)) = left.pop() {
            let Some(dependant) = plan.steps[at as usize].dependants.get(place as usize).copied() else { continue };
            if !self.may_touch(touched) {
                left.push((at, place));
                break;
            }
            touched += 1;
            left.push((at, place + 1));
            let goes_on = if rewinds { self.take_back(dependant) } else { self.need_met(dependant) };
            if goes_on {
                left.push((dependant, 0));
            }
        }
        left.retain(|(at, place)| (*place as usize) < plan.steps[*at as usize].dependants.len());
        self.run.work += left.len() as u32;
        for (at, place) in left {
            let same_fan = matches!(work.kind, WorkKind::Fan { .. }) && at == of;
            let (kind, next) = match (rewinds, same_fan) {
                (true, _) => (WorkKind::Rewind { of: at }, place + 1),
                (false, true) => (WorkKind::Fan { of }, place),
                (false, false) => (WorkKind::Skip { of: at }, place + 1),
            };
            self.effect(Effect::Work(Work { run: self.run.id, kind, next }));
        }
        if begun {
            self.run.work -= 1;
            self.settle();
        }
    }

    /// One of its needs is settled. True if the step is skipped, which its dependants have to hear.
    fn need_met(&mut self, index: u32) -> bool {
        let step = self.run.step_mut(index);
        step.needs_left -= 1;
        step.needs_left -= u32::from(crate::mutants::mutant("need_counted_twice")).min(step.needs_left);
        step.needs_left == 0 && step.state == State::Created && !self.go(index)
    }

    /// created -> queued or skipped, when every need is settled: false if it is skipped.
    fn go(&mut self, index: u32) -> bool {
        if self.run.ending.is_some() {
            return true;
        }
        if let Some(need) = self.run.skipped_for(index) {
            let name = &self.run.plan.steps[need as usize].name;
            let what = if self.run.step(need).state == State::Skipped { "was skipped" } else { "gave up" };
            let note: Arc<str> = format!("step `{name}` {what}").into();
            self.move_step(index, State::Skipped, Why::SkippedFor, None, Some(note));
            return false;
        }
        self.put_ready(index, Why::NeedsMet);
        true
    }

    fn put_ready(&mut self, index: u32, why: Why) {
        self.move_step(index, State::Queued, why, None, None);
        self.effect(Effect::Ready { index });
        self.arm_start(index);
    }

    /// Every need of a created step is settled. If it is skipped, its dependants hear of it in a work item.
    pub(super) fn enqueue(&mut self, index: u32) {
        if !self.go(index) && !self.run.plan.steps[index as usize].dependants.is_empty() {
            self.run.work += 1;
            self.effect(Effect::Work(Work { run: self.run.id, kind: WorkKind::Skip { of: index }, next: 1 }));
        }
    }

    /// Whether the run goes on without the step, as its author said.
    pub(super) fn tolerates(&self, index: u32) -> bool {
        self.run.plan.steps[index as usize].on_failure != StepOnFailure::Fail
    }

    /// The step gave up, and its dependants go on without its output or are skipped.
    pub(super) fn go_on_without(&mut self, index: u32) {
        self.run.tolerate(index);
        let word = match self.run.plan.steps[index as usize].on_failure {
            StepOnFailure::SkipDependents => "skip_dependents",
            StepOnFailure::Continue | StepOnFailure::Fail => "continue",
        };
        self.remark_step(index, Why::GaveUp, format!("the run goes on: its `on_failure` is `{word}`").into());
        self.work(Work { run: self.run.id, kind: WorkKind::Fan { of: index }, next: 0 });
    }

    /// Continues a run that stands still from one step: everything behind it is taken back first.
    pub(super) fn retry_from(&mut self, index: u32, reason: Option<Arc<str>>) -> Answer {
        if self.run.undoing != Undoing::None {
            return self.undone("retry");
        }
        if index >= self.run.plan.regular {
            return self.unknown_step(index);
        }
        let idle = self.run.active == 0 && self.run.work == 0 && self.run.ending.is_none();
        if !idle || !matches!(self.run.state, State::Failed | State::Suspended) {
            return self.conflict("retry from a step", "failed, or suspended with nothing at work");
        }
        let step = *self.run.step(index);
        if step.needs_left > 0 || step.state == State::Created {
            let name = &self.run.plan.steps[index as usize].name;
            let message = format!(
                "cannot retry from step `{name}`: {} of the steps it needs are not completed; allowed is a step whose needs are",
                step.needs_left
            );
            return Answer::Conflict { state: self.run.state, message };
        }
        self.reopen_run(Why::Retried, reason);
        self.run.rewinding = true;
        let told = self.run.is_settled(index);
        self.renew(index);
        if told {
            self.spread(Work { run: self.run.id, kind: WorkKind::Rewind { of: index }, next: 0 });
        }
        self.run.work += 1;
        self.restart(index, 0);
        self.settle();
        self.done()
    }

    /// Begins at the step as soon as this is the last work item of the run.
    pub(super) fn restart(&mut self, of: u32, looks: u32) {
        if self.run.work > 1 {
            let next = looks.saturating_add(1);
            return self.effect(Effect::Work(Work { run: self.run.id, kind: WorkKind::Restart { of }, next }));
        }
        self.run.work = 0;
        self.run.rewinding = false;
        if self.run.ending.is_none() {
            // Even one that was skipped: somebody wishes it.
            self.put_ready(of, Why::Retried);
            // What is held, or was cancelled by the run's time-out, goes on too: nothing else would ever move it.
            self.work(Work { run: self.run.id, kind: WorkKind::Resume, next: 0 });
        }
    }

    /// A step it needs is taken back, and so is it. True if its own dependants were told of it.
    fn take_back(&mut self, index: u32) -> bool {
        self.run.step_mut(index).needs_left += 1;
        let told = self.run.is_settled(index);
        match self.run.step(index).state {
            State::Created => return false,
            // RACE: a stop between two parts wins, and the step is not begun anew.
            State::Cancelled | State::Suspended if self.run.ending.is_some() => return false,
            State::Completed | State::Failed | State::Skipped | State::Cancelled | State::Suspended => {
                self.renew(index)
            }
            State::Queued | State::Processing | State::Waiting | State::Retrying => {
                unreachable!("nothing of the run is at work")
            }
        }
        if self.run.ending.is_some() {
            self.move_step(index, State::Cancelled, self.stop_why(), None, None);
        }
        told
    }

    /// A finished step is executed anew: a new generation of it, from its beginning.
    pub(super) fn renew(&mut self, index: u32) {
        let old = *self.run.step(index);
        if let Some(letter) = old.letter {
            self.effect(Effect::CloseLetter(letter));
        }
        if let Some(job) = old.job.filter(|_| old.has_output) {
            self.effect(Effect::DropValue { id: job.to_string() });
        }
        if old.state == State::Suspended {
            self.move_step(index, State::Cancelled, Why::Retried, None, None);
        }
        self.move_step(index, State::Created, Why::Retried, None, None);
        self.forget_errors(index);
        let generation = old.generation + 1;
        let fresh = Step { needs_left: old.needs_left, generation, patched: old.patched, ..Step::fresh(0) };
        let step = self.run.step_mut(index);
        *step = Step { dirty: step.dirty, ..fresh };
    }
}
