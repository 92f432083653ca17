//! Transitions that are too large for one decision, part by part.

use stepfleet_protocol::{failure::Category, state::State};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Timer, Work, WorkKind},
        run::{Ending, Undoing},
    },
    Deciding, STEPS_PER_DECISION,
};

impl Deciding<'_> {
    /// Does one bounded part of a work item; what is left is a work item again.
    pub(super) fn work(&mut self, work: Work) {
        let begun = work.next > 0;
        let left = match work.kind {
            WorkKind::Fan { .. } | WorkKind::Skip { .. } | WorkKind::Rewind { .. } => return self.spread(work),
            WorkKind::Restart { of } => {
                self.restart(of, work.next);
                return self.settle();
            }
            WorkKind::Recount { from } => return self.recount(from, work.next),
            WorkKind::Roots => self.each_root(work.next),
            WorkKind::Stop => self.each_step(work.next, Self::stop_step),
            WorkKind::Halt => self.each_step(work.next, Self::halt_step),
            WorkKind::Resume => self.each_step(work.next, Self::resume_step),
            WorkKind::Reopen => self.each_step(work.next, Self::reopen_step),
        };
        match (begun, left) {
            (false, None) => {}
            (false, Some(next)) => {
                self.run.work += 1;
                self.effect(Effect::Work(Work { next, ..work }));
            }
            (true, Some(next)) => self.effect(Effect::Work(Work { next, ..work })),
            (true, None) => {
                self.run.work -= 1;
                self.settle();
            }
        }
    }

    /// Takes one step from what this decision and its commit may still touch. False if there is none left; each decision
    /// gets at least one.
    pub(super) fn may_touch(&mut self, touched: usize) -> bool {
        if touched == STEPS_PER_DECISION || (touched > 0 && self.mint.steps_left == 0) {
            return false;
        }
        self.mint.steps_left = self.mint.steps_left.saturating_sub(1);
        true
    }

    fn each_root(&mut self, next: u32) -> Option<u32> {
        let plan = self.run.plan.clone();
        for (place, index) in (next..).zip(&plan.roots[next as usize..]) {
            if !self.may_touch(place as usize - next as usize) {
                return Some(place);
            }
            if self.run.step(*index).state == State::Created {
                self.enqueue(*index);
            }
        }
        None
    }

    fn each_step(&mut self, next: u32, mut act: impl FnMut(&mut Self, u32) -> bool) -> Option<u32> {
        let mut acted = 0;
        for index in next..self.run.plan.steps.len() as u32 {
            if acted == STEPS_PER_DECISION || (acted > 0 && self.mint.steps_left == 0) {
                return Some(index);
            }
            let hit = act(self, index);
            acted += usize::from(hit);
            self.mint.steps_left = self.mint.steps_left.saturating_sub(usize::from(hit));
        }
        None
    }

    fn stop_step(&mut self, index: u32) -> bool {
        let step = *self.run.step(index);
        let why = self.stop_why();
        match step.state {
            State::Queued | State::Processing if step.in_flight => {
                if !step.stopping {
                    self.run.step_mut(index).stopping = true;
                    self.effect(Effect::Stop(step.job.expect("a step in flight has a job")));
                }
            }
            State::Queued => {
                self.effect(Effect::Unready { index });
                self.move_step(index, State::Cancelled, why, None, None);
            }
            State::Retrying => {
                if let Some(job) = step.job {
                    self.effect(Effect::ClearTimer { timer: Timer::Retry { index, job } });
                }
                self.move_step(index, State::Cancelled, why, None, None);
            }
            // One that undoes another and was not begun has nothing to be cancelled.
            State::Created if index >= self.run.plan.regular => return false,
            State::Created | State::Waiting | State::Suspended => {
                self.move_step(index, State::Cancelled, why, None, None);
            }
            // A run that ran out of time may be taken up again; one that was cancelled may not.
            State::Failed if step.letter.is_some() && self.run.ending == Some(Ending::Cancelled) => {
                let letter = self.run.step_mut(index).letter.take();
                self.effect(Effect::CloseLetter(letter.expect("just seen")));
            }
            State::Processing => unreachable!("a processing step is in flight"),
            State::Completed | State::Failed | State::Cancelled | State::Skipped => return false,
        }
        true
    }

    fn halt_step(&mut self, index: u32) -> bool {
        let step = *self.run.step(index);
        let hit = step.in_flight && !step.stopping && self.run.state == State::Suspended;
        if hit {
            self.run.step_mut(index).stopping = true;
            self.effect(Effect::Stop(step.job.expect("a step in flight has a job")));
        }
        hit
    }

    pub(super) fn resume_step(&mut self, index: u32) -> bool {
        // RACE: a suspend or a stop between two parts wins, and what is left stays as it is.
        if self.run.state == State::Suspended || self.run.ending.is_some() {
            return false;
        }
        match self.run.step(index).state {
            State::Suspended => {
                self.run.step_mut(index).unhandled_ms = 0;
                self.move_step(index, State::Queued, Why::Resumed, None, None);
                self.effect(Effect::Ready { index });
                self.arm_start(index);
            }
            State::Cancelled if self.run.undoing == Undoing::None => self.rebear(index),
            State::Created
            | State::Queued
            | State::Processing
            | State::Waiting
            | State::Completed
            | State::Failed
            | State::Retrying
            | State::Cancelled
            | State::Skipped => return false,
        }
        true
    }

    fn reopen_step(&mut self, index: u32) -> bool {
        let step = self.run.step(index);
        if step.state != State::Failed || step.tolerated || self.run.ending.is_some() {
            return self.resume_step(index);
        }
        self.reopen(index, Why::Retried);
        true
    }

    /// failed -> retrying -> queued with a fresh budget; the dead letter is closed.
    pub(super) fn reopen(&mut self, index: u32, why: Why) {
        let step = self.run.step_mut(index);
        step.spent = step.attempts;
        step.losses = 0;
        step.unhandled_ms = 0;
        let letter = step.letter.take();
        if let Some(letter) = letter {
            self.effect(Effect::CloseLetter(letter));
        }
        self.move_step(index, State::Retrying, why, None, None);
        self.forget_errors(index);
        self.retry_due(index);
        self.arm_start(index);
    }

    /// Errors of an earlier budget or generation are no part of a coming letter, and no reason to review the run.
    pub(super) fn forget_errors(&mut self, index: u32) {
        self.run.errors.retain(|e| e.index != index);
        let (run, data) = (&*self.run, Category::Data);
        let review = run.review
            && run.errors.iter().any(|e| e.failure.category == data && run.step(e.index).state == State::Failed);
        self.run.review = review;
    }

    /// A step that a time-out cancelled is executed anew, as soon as what it needs is settled.
    fn rebear(&mut self, index: u32) {
        self.renew(index);
        if self.run.step(index).needs_left == 0 {
            self.enqueue(index);
        }
    }
}
