//! An operator says what became of a step: it is completed with an output, or failed for good.
//!
//! A step that failed or is held can be resolved in any run that goes on, failed or is suspended; one that is at work only in a
//! suspended run. Its job is fenced out and stopped, its dead letter closed. The run goes on, as after a replay.

use std::sync::Arc;

use stepfleet_protocol::{
    failure::{Category, Failure},
    message::{Answer, Resolution},
    state::State,
    value::Payload,
};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Timer, Work, WorkKind},
        run::{AttemptError, Step, Undoing},
    },
    Deciding,
};

impl Deciding<'_> {
    pub(super) fn resolve(&mut self, index: u32, resolution: Resolution, reason: Option<Arc<str>>) -> Answer {
        if index >= self.run.plan.regular {
            return self.unknown_step(index);
        }
        if self.run.undoing != Undoing::None {
            return self.undone("resolve a step of");
        }
        if self.run.state.is_final() || self.run.ending.is_some() || self.run.rewinding {
            return self.conflict("resolve a step of", "failed, suspended, queued or processing");
        }
        if let Some(refused) = self.unresolvable(index, &resolution) {
            return refused;
        }
        let reopened = matches!(self.run.state, State::Failed | State::Suspended);
        if reopened {
            self.reopen_run(Why::Resolved, reason.clone());
        }
        self.begin_run();
        self.hold(index);
        match resolution {
            Resolution::Completed(output) => self.resolve_completed(index, output, reason),
            Resolution::Failed(text) => self.resolve_failed(index, text),
        }
        if reopened {
            // What is held, or was cancelled by the run's time-out, goes on too: nothing else would ever move it.
            self.work(Work { run: self.run.id, kind: WorkKind::Resume, next: 0 });
        }
        self.settle();
        self.done()
    }

    /// Why the step cannot be resolved like this, if it cannot.
    fn unresolvable(&self, index: u32, resolution: &Resolution) -> Option<Answer> {
        let step = self.run.step(index);
        let held = self.run.state == State::Suspended;
        let allowed = match step.state {
            State::Failed => !step.tolerated && matches!(resolution, Resolution::Completed(_)),
            State::Suspended => true,
            State::Queued | State::Processing | State::Waiting | State::Retrying => held,
            State::Created | State::Completed | State::Cancelled | State::Skipped => false,
        };
        if allowed {
            return None;
        }
        let name = &self.run.plan.steps[index as usize].name;
        let (state, run) = (step.state, self.run.state);
        let message = format!(
            "cannot resolve step `{name}`, which is {state}, in a run that is {run}: allowed is to complete a failed step, \
             and to complete or fail a suspended one or one that is at work in a suspended run"
        );
        Some(Answer::Conflict { state: run, message })
    }

    /// The step is held, from wherever it stands, and nothing that is under way for it counts any more.
    fn hold(&mut self, index: u32) {
        let step: Step = *self.run.step(index);
        if let Some(job) = step.job.filter(|_| step.in_flight) {
            self.landed(index, job);
            self.effect(Effect::Stop(job));
        } else if step.state == State::Queued {
            self.effect(Effect::Unready { index });
        } else if let (State::Retrying, Some(job)) = (step.state, step.job) {
            self.effect(Effect::ClearTimer { timer: Timer::Retry { index, job } });
        }
        if let Some(letter) = self.run.step_mut(index).letter.take() {
            self.effect(Effect::CloseLetter(letter));
        }
        if step.state != State::Suspended {
            self.move_step(index, State::Suspended, Why::Resolved, None, None);
        }
        self.forget_errors(index);
    }

    fn resolve_completed(&mut self, index: u32, output: Option<Payload>, reason: Option<Arc<str>>) {
        // A job of its own, so that a late result of the last one is told apart and the output has a place.
        let job = self.mint.next();
        let step = self.run.step_mut(index);
        (step.job, step.has_output) = (Some(job), output.is_some());
        if let Some(output) = output {
            self.effect(Effect::SaveResolved { job, output });
        }
        self.move_step(index, State::Completed, Why::Resolved, None, reason);
        self.work(Work { run: self.run.id, kind: WorkKind::Fan { of: index }, next: 0 });
    }

    fn resolve_failed(&mut self, index: u32, text: String) {
        let job = self.mint.next();
        let note: Arc<str> = text.as_str().into();
        let step = self.run.step_mut(index);
        step.job = Some(job);
        step.attempts += 1;
        let error = AttemptError {
            index,
            generation: step.generation,
            attempt: step.attempts,
            job,
            worker: None,
            at_ms: self.now_ms,
            run_ms: 0,
            failure: Failure::new(Category::Permanent, text).with_code("resolved"),
        };
        self.run.errors.push(error.clone());
        self.effect(Effect::KeepError(Box::new(error)));
        self.move_step(index, State::Failed, Why::Resolved, None, Some(note));
        if self.tolerates(index) {
            self.go_on_without(index);
        }
    }
}
