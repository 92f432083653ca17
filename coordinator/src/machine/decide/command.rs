//! What people and programs wish: cancel, suspend, resume, retry, replay.

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
        run::Ending,
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
        };
        self.effect(Effect::Answer(answer));
    }

    fn done(&self) -> Answer {
        Answer::Done { state: self.run.state }
    }

    fn conflict(&self, wish: &str, allowed: &str) -> Answer {
        let state = self.run.state;
        let stopping = if self.run.ending.is_some() { " and being stopped" } else { "" };
        let message = format!("cannot {wish} a run that is {state}{stopping}: allowed is {allowed}");
        Answer::Conflict { state, message }
    }

    fn cancel(&mut self, reason: Option<Arc<str>>) -> Answer {
        if self.run.state.is_final() {
            return self.conflict("cancel", "any state but completed and cancelled");
        }
        if self.run.ending == Some(Ending::Cancelled) {
            return self.done();
        }
        if self.run.state == State::Failed {
            // So that nobody retries it by mistake.
            self.move_run(State::Cancelled, Why::Cancelled, reason);
        } else {
            self.stop(Ending::Cancelled, reason);
        }
        self.done()
    }

    fn suspend(&mut self, reason: Option<Arc<str>>, now: bool) -> Answer {
        let allowed = matches!(self.run.state, State::Queued | State::Processing | State::Waiting);
        if !allowed || self.run.ending.is_some() {
            return self.conflict("suspend", "queued, processing or waiting");
        }
        self.move_run(State::Suspended, Why::Suspended, reason);
        if now {
            self.work(Work { run: self.run.id, kind: WorkKind::Halt, next: 0 });
        }
        self.done()
    }

    fn resume(&mut self, reason: Option<Arc<str>>) -> Answer {
        if self.run.state != State::Suspended || self.run.ending.is_some() {
            return self.conflict("resume", "suspended");
        }
        if self.run.failed > 0 && self.run.active == 0 && self.run.work == 0 && !self.has_held_steps() {
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
        let stopped = self.run.state == State::Failed || (self.run.state == State::Suspended && self.run.failed > 0);
        if !stopped || self.run.ending.is_some() {
            return self.conflict("retry", "failed, or suspended with a failed step");
        }
        self.reopen_run(Why::Retried, reason);
        self.work(Work { run: self.run.id, kind: WorkKind::Reopen, next: 0 });
        self.settle();
        self.done()
    }

    fn replay(&mut self, index: u32, letter: StreamId, input: Option<Payload>, reason: Option<Arc<str>>) -> Answer {
        let open = self.run.steps().get(index as usize).is_some_and(|s| s.letter == Some(letter));
        if !open {
            return Answer::Conflict {
                state: self.run.state,
                message: "the dead letter is closed: its step was retried, its run cancelled, or it expired".into(),
            };
        }
        if self.run.state.is_final() || self.run.ending.is_some() {
            return self.conflict("replay a dead letter of", "failed, suspended, queued or processing");
        }
        if let Some(input) = input {
            self.run.step_mut(index).patched = true;
            self.effect(Effect::SavePatch { index, input });
        }
        if matches!(self.run.state, State::Failed | State::Suspended) {
            self.reopen_run(Why::Replayed, reason);
            // What is held, or was cancelled by the run's time-out, goes on too: nothing else would ever move it.
            self.work(Work { run: self.run.id, kind: WorkKind::Resume, next: 0 });
        }
        self.reopen(index, Why::Replayed);
        self.done()
    }

    /// The run goes on, with a fresh time-out.
    fn reopen_run(&mut self, why: Why, reason: Option<Arc<str>>) {
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
