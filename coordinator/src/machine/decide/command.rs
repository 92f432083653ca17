//! What people and programs wish: cancel, suspend, resume, retry, replay. Taking a run back to a step, resolving one and undoing
//! the run are in files of their own.

use std::sync::Arc;

use stepfleet_protocol::{
    id::StreamId,
    message::{Answer, Command, Verb},
    state::State,
    value::Payload,
};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Work, WorkKind},
        run::{Ending, Undoing},
    },
    Deciding,
};

impl Deciding<'_> {
    pub(super) fn command(&mut self, command: Command) {
        self.actor = Some(command.actor.into());
        let reason = command.reason.map(Arc::from);
        let answer = match command.verb {
            Verb::Cancel => self.cancel(reason),
            Verb::Suspend { now } => self.suspend(reason, now),
            Verb::Resume => self.resume(reason),
            Verb::Retry => self.retry(reason),
            Verb::Replay { index, letter, input } => self.replay(index, letter, input, reason),
            Verb::RetryFrom { index } => self.retry_from(index, reason),
            Verb::Resolve { index, resolution } => self.resolve(index, resolution, reason),
            Verb::Compensate => self.compensate(reason),
            Verb::Discard { index, letter } => self.discard(index, letter, reason),
        };
        self.effect(Effect::Answer(answer));
    }

    pub(super) fn done(&self) -> Answer {
        Answer::Done { state: self.run.state }
    }

    pub(super) fn conflict(&self, wish: &str, allowed: &str) -> Answer {
        let state = self.run.state;
        let also = match (self.run.ending, self.run.rewinding) {
            (Some(_), _) => " and being stopped",
            (None, true) => " and being taken back to a step, which takes a moment",
            (None, false) => "",
        };
        let message = format!("cannot {wish} a run that is {state}{also}: allowed is {allowed}");
        Answer::Conflict { state, message }
    }

    pub(super) fn unknown_step(&self, index: u32) -> Answer {
        let last = self.run.plan.regular.saturating_sub(1);
        let message = format!("the run has no step {index}: allowed is 0 to {last}");
        Answer::Refused { code: "unknown_step".into(), message }
    }

    fn cancel(&mut self, reason: Option<Arc<str>>) -> Answer {
        if self.run.state.is_final() {
            return self.conflict("cancel", "any state but completed and cancelled");
        }
        if self.run.ending == Some(Ending::Cancelled) {
            return self.done();
        }
        if self.run.state == State::Failed {
            self.cancel_failed(reason);
        } else {
            self.stop(Ending::Cancelled, reason);
        }
        self.done()
    }

    /// A failed run is cancelled so that nobody retries it by mistake: its letters are closed. One with very many of them is
    /// held until the last of them is.
    fn cancel_failed(&mut self, reason: Option<Arc<str>>) {
        self.run.ending = Some(Ending::Cancelled);
        self.work(Work { run: self.run.id, kind: WorkKind::Stop, next: 0 });
        if self.run.work > 0 {
            return self.move_run(State::Suspended, Why::Cancelled, reason);
        }
        self.run.ending = None;
        self.move_run(State::Cancelled, Why::Cancelled, reason);
    }

    fn suspend(&mut self, reason: Option<Arc<str>>, now: bool) -> Answer {
        let failed = self.run.state == State::Failed;
        if failed && self.run.undoing != Undoing::None {
            return self.undone("suspend");
        }
        let allowed = failed || matches!(self.run.state, State::Queued | State::Processing | State::Waiting);
        if !allowed || self.run.ending.is_some() {
            return self.conflict("suspend", "queued, processing, waiting or failed");
        }
        self.move_run(State::Suspended, Why::Suspended, reason);
        if now && !failed {
            self.work(Work { run: self.run.id, kind: WorkKind::Halt, next: 0 });
        }
        self.done()
    }

    fn resume(&mut self, reason: Option<Arc<str>>) -> Answer {
        if self.run.state != State::Suspended || self.run.ending.is_some() {
            return self.conflict("resume", "suspended");
        }
        if self.run.is_held_failure() {
            return self.reopen_steps(Why::Resumed, reason);
        }
        if self.run.rewinding {
            // What is held goes on at the end of that.
            self.move_run(State::Queued, Why::Resumed, reason);
            return self.done();
        }
        if self.run.given_up() > 0 && self.run.active == 0 && self.run.work == 0 && !self.has_held_steps() {
            return self.conflict("resume", "suspended with steps to go on with; retry its failed steps instead");
        }
        self.move_run(State::Queued, Why::Resumed, reason);
        self.begin_if_at_work();
        self.work(Work { run: self.run.id, kind: WorkKind::Resume, next: 0 });
        self.settle();
        self.done()
    }

    fn has_held_steps(&self) -> bool {
        self.run.steps().iter().any(|s| matches!(s.state, State::Suspended | State::Cancelled))
    }

    fn retry(&mut self, reason: Option<Arc<str>>) -> Answer {
        match self.run.undoing {
            Undoing::None => {}
            Undoing::Failed => return self.undo_again(reason),
            Undoing::Running | Undoing::Done => return self.undone("retry"),
        }
        let held = self.run.is_held_failure() || (self.run.state == State::Suspended && self.run.given_up() > 0);
        if !(held || self.run.state == State::Failed) || self.run.ending.is_some() || self.run.rewinding {
            return self.conflict("retry", "failed, or suspended with a failed step");
        }
        self.reopen_steps(Why::Retried, reason)
    }

    /// The run goes on at its failed and cancelled steps.
    fn reopen_steps(&mut self, why: Why, reason: Option<Arc<str>>) -> Answer {
        self.reopen_run(why, reason);
        self.work(Work { run: self.run.id, kind: WorkKind::Reopen, next: 0 });
        self.settle();
        self.done()
    }

    fn replay(&mut self, index: u32, letter: StreamId, input: Option<Payload>, reason: Option<Arc<str>>) -> Answer {
        if !self.is_open(index, letter) {
            return self.closed();
        }
        if self.run.state.is_final() || self.run.ending.is_some() || self.run.rewinding {
            return self.conflict("replay a dead letter of", "failed, suspended, queued or processing");
        }
        let undoes = index >= self.run.plan.regular;
        if self.run.undoing != Undoing::None && !(undoes && self.run.state == State::Failed) {
            return self.undone("replay a dead letter of");
        }
        if let Some(input) = input {
            self.run.step_mut(index).patched = true;
            self.effect(Effect::SavePatch { index, input });
        }
        if undoes {
            self.reopen_to_undo(Why::Replayed, reason);
            self.run.undoing = Undoing::Running;
        } else if matches!(self.run.state, State::Failed | State::Suspended) {
            self.reopen_run(Why::Replayed, reason);
            // What is held, or was cancelled by the run's time-out, goes on too: nothing else would ever move it.
            self.work(Work { run: self.run.id, kind: WorkKind::Resume, next: 0 });
        }
        self.reopen(index, Why::Replayed);
        self.done()
    }

    /// Closes a dead letter for good: its step stays failed, and only a retry of the run moves it.
    fn discard(&mut self, index: u32, letter: StreamId, reason: Option<Arc<str>>) -> Answer {
        if !self.is_open(index, letter) {
            return self.closed();
        }
        self.run.step_mut(index).letter = None;
        self.effect(Effect::CloseLetter(letter));
        self.remark(index, Why::Discarded, None);
        if let Some(remark) = self.out.transitions.last_mut() {
            remark.note = reason;
        }
        self.done()
    }

    fn is_open(&self, index: u32, letter: StreamId) -> bool {
        self.run.steps().get(index as usize).is_some_and(|s| s.letter == Some(letter))
    }

    fn closed(&self) -> Answer {
        let message =
            "the dead letter is closed: its step was retried, its run cancelled, it was discarded, or it expired";
        Answer::Conflict { state: self.run.state, message: message.into() }
    }

    /// The run goes on, with a fresh time-out.
    pub(super) fn reopen_run(&mut self, why: Why, reason: Option<Arc<str>>) {
        if self.run.state == State::Failed {
            self.move_run(State::Retrying, why, reason.clone());
        }
        self.move_run(State::Queued, why, reason);
        self.begin_if_at_work();
        self.arm_run();
    }

    /// A run that was suspended may go on with attempts that never stopped.
    fn begin_if_at_work(&mut self) {
        if self.run.steps().iter().any(|s| s.state == State::Processing) {
            self.begin_run();
        }
    }
}
