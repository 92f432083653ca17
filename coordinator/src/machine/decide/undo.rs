//! Undoing a run: its completed steps that say how, one after the other, what was needed last first.
//!
//! Undoing a step is a step of its own, behind those that were written, so that tries, losses, time-outs and letters are those
//! of any step. The run's time-out does not stop it. A step that cannot be undone is a dead letter, and the rest is not undone
//! before that letter is replayed; a cancel ends it for good. A run that was undone is not taken up again.

use std::sync::Arc;

use stepfleet_protocol::{message::Answer, state::State};

use super::{
    super::{
        decision::{Cause, Effect, Why},
        event::Timer,
        run::{Ending, Undoing},
    },
    Deciding,
};

impl Deciding<'_> {
    /// Begins to undo the run. False if there is nothing to undo.
    pub(super) fn begin_undo(&mut self, note: Option<Arc<str>>) -> bool {
        let Some(first) = self.to_undo(0) else { return false };
        self.run.ending = None;
        self.run.undoing = Undoing::Running;
        self.begin_run();
        if self.run.plan.timeout_ms > 0 {
            self.effect(Effect::ClearTimer { timer: Timer::Run });
        }
        self.remark_run(Why::Compensating, note);
        self.undo(first);
        true
    }

    /// The first step from a place in the order on that has something to undo.
    fn to_undo(&self, place: u32) -> Option<u32> {
        let plan = &self.run.plan;
        let open = |index: &u32| {
            let undoes = plan.steps[*index as usize].undoes.expect("it is one that undoes");
            self.run.step(undoes.of).state == State::Completed && self.run.step(*index).state == State::Created
        };
        plan.undo_order.get(place as usize..)?.iter().copied().find(open)
    }

    fn undo(&mut self, index: u32) {
        self.move_step(index, State::Queued, Why::Compensating, None, None);
        self.effect(Effect::Ready { index });
    }

    /// A step was undone: the next one is, or the run was.
    pub(super) fn undo_next(&mut self, place: u32) {
        if self.run.ending.is_some() {
            return;
        }
        match self.to_undo(place) {
            Some(index) => self.undo(index),
            None => self.run.undoing = Undoing::Done,
        }
    }

    /// What the letter of a step says that gave up; the run remembers if it was one that undoes another.
    pub(super) fn undo_failed(&mut self, index: u32, cause: Cause) -> Cause {
        if index < self.run.plan.regular {
            return cause;
        }
        self.run.undoing = Undoing::Failed;
        Cause::Compensation
    }

    /// Ends a run that is being undone and of which nothing is active.
    pub(super) fn settle_undo(&mut self) {
        match (self.run.ending, self.run.undoing) {
            (Some(Ending::Cancelled), undoing) => {
                if undoing == Undoing::Running {
                    self.run.undoing = Undoing::Failed;
                }
                self.end(State::Cancelled, Why::Cancelled);
            }
            (_, Undoing::Done) => self.end(State::Failed, Why::Compensated),
            (_, Undoing::Failed) => self.end(State::Failed, Why::GaveUp),
            // What is held goes on with a resume.
            (_, Undoing::Running | Undoing::None) => {}
        }
    }

    /// Undoes a failed run because somebody wishes it.
    pub(super) fn compensate(&mut self, reason: Option<Arc<str>>) -> Answer {
        match self.run.undoing {
            Undoing::None => {}
            Undoing::Running | Undoing::Done => return self.undone("compensate"),
            Undoing::Failed => return self.undo_again(reason),
        }
        let held = self.run.state == State::Suspended && self.run.active == 0 && self.run.work == 0;
        let failed = self.run.state == State::Failed || (held && self.run.given_up() > 0);
        if !(failed || self.run.is_held_failure()) || self.run.ending.is_some() {
            return self.conflict("compensate", "failed, or suspended with a failed step and nothing at work");
        }
        if self.to_undo(0).is_none() {
            let message = "no completed step of the run says how it is undone (`compensate`)".into();
            return Answer::Conflict { state: self.run.state, message };
        }
        self.reopen_to_undo(Why::Compensating, reason.clone());
        self.begin_undo(reason);
        self.done()
    }

    /// The run is at work again, without its time-out.
    pub(super) fn reopen_to_undo(&mut self, why: Why, reason: Option<Arc<str>>) {
        if self.run.state == State::Failed {
            self.move_run(State::Retrying, why, reason.clone());
        }
        self.move_run(State::Queued, why, reason);
    }

    /// Goes on undoing at the step that could not be undone.
    pub(super) fn undo_again(&mut self, reason: Option<Arc<str>>) -> Answer {
        let plan = self.run.plan.clone();
        let failed = plan.undo_order.iter().find(|index| self.run.step(**index).state == State::Failed);
        let open = self.run.state == State::Failed && self.run.ending.is_none();
        let Some(index) = failed.copied().filter(|_| open) else { return self.undone("compensate") };
        self.reopen_to_undo(Why::Retried, reason);
        self.run.undoing = Undoing::Running;
        self.reopen(index, Why::Retried);
        self.done()
    }

    /// Why nothing else can be done with a run that is or was undone.
    pub(super) fn undone(&self, wish: &str) -> Answer {
        let how = match self.run.undoing {
            Undoing::None | Undoing::Running => "is being compensated",
            Undoing::Done => "was compensated",
            Undoing::Failed => "was compensated in part",
        };
        let allowed = match self.run.undoing {
            Undoing::None | Undoing::Running => "cancel, suspend and resume",
            Undoing::Done => "a new run",
            Undoing::Failed => "retry, or a replay of the dead letter of the step that could not be undone",
        };
        let message = format!("cannot {wish} a run that {how}: allowed is {allowed}");
        Answer::Conflict { state: self.run.state, message }
    }
}
