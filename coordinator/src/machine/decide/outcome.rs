//! What becomes of jobs: results, late results, losses, time-outs, failed renderings.

use std::sync::Arc;

use stepfleet_protocol::{
    beat::Sight,
    failure::{Category, Failure},
    id::{JobId, WorkerId},
    limits::{LOSSES_MAX, NO_HANDLER_MS},
    message::{JobRef, Outcome, Returned},
    state::State,
    value::Payload,
};

use super::{
    super::{
        decision::{Cause, Effect, Letter, Why},
        event::{Timer, Work, WorkKind},
        run::AttemptError,
        verdict::{self, Tried},
    },
    Deciding,
};
use crate::mutants::mutant;

/// How long after a worker's own time-out the owner gives an attempt up, in milliseconds.
pub(super) const ATTEMPT_GRACE_MS: u64 = 30_000;

/// One failed attempt on its way to a verdict.
pub(super) struct Failed {
    pub(super) index: u32,
    pub(super) job: JobId,
    pub(super) of: Option<JobRef>,
    pub(super) worker: Option<WorkerId>,
    pub(super) run_ms: u64,
    pub(super) failure: Failure,
    /// A loss has a budget of its own and is no try.
    pub(super) counts: bool,
}

impl Deciding<'_> {
    /// Whether the step waits for exactly this job.
    fn awaits(&self, of: &JobRef) -> bool {
        let known = (of.index as usize) < self.run.plan.steps.len();
        known && {
            let step = self.run.step(of.index);
            step.in_flight && (step.job == Some(of.job) || mutant("job_id_ignored"))
        }
    }

    pub(super) fn result(&mut self, of: JobRef, worker: WorkerId, run_ms: u64, outcome: Outcome) {
        self.ack(&of);
        if !self.awaits(&of) {
            return self.late(&of, worker, &outcome);
        }
        self.landed(of.index, of.job);
        if !matches!(outcome, Outcome::Returned(_)) {
            self.begin(of.index, self.now_ms.saturating_sub(run_ms), &worker);
        }
        match outcome {
            Outcome::Completed(output) => self.completed(&of, output),
            Outcome::Failed(failure) => {
                let (index, job) = (of.index, of.job);
                self.attempt_failed(Failed {
                    index,
                    job,
                    of: Some(of),
                    worker: Some(worker),
                    run_ms,
                    failure,
                    counts: true,
                });
            }
            Outcome::Returned(why) => self.returned(&of, worker, why),
            Outcome::Cancelled => self.halted(of.index, worker),
        }
        self.settle();
    }

    /// A report about a job that nobody waits for: recorded, without effect.
    fn late(&mut self, of: &JobRef, worker: WorkerId, outcome: &Outcome) {
        if (of.index as usize) < self.run.plan.steps.len() {
            self.remark(of.index, Why::Ignored, Some(worker));
        }
        self.effect(Effect::Stopped(of.job));
        let Some(value) = outcome.value_id() else { return };
        // RACE: a result sent twice names the value that its first copy made the step's output, or the detail of a kept
        // error; any other value, of a replaced job or of one that was given up, is nobody's. What is left of errors goes
        // with the run.
        let step = self.run.steps().get(of.index as usize);
        let kept = match outcome {
            Outcome::Completed(_) => step.is_some_and(|s| s.job == Some(of.job) && s.state == State::Completed),
            Outcome::Failed(_) | Outcome::Returned(_) | Outcome::Cancelled => {
                step.is_some_and(|s| s.job == Some(of.job)) || self.run.errors.iter().any(|e| e.job == of.job)
            }
        };
        if !kept {
            self.effect(Effect::DropValue { id: value.to_owned() });
        }
    }

    /// The job is no longer in flight.
    pub(super) fn landed(&mut self, index: u32, job: JobId) {
        let step = self.run.step_mut(index);
        let (timed, stopping) = (step.timed, step.stopping);
        step.in_flight = false;
        step.timed = false;
        step.stopping = false;
        if timed {
            self.effect(Effect::ClearTimer { timer: Timer::Attempt { index, job } });
        }
        if stopping {
            self.effect(Effect::Stopped(job));
        }
    }

    /// The step is at work, and so is its run.
    fn begin(&mut self, index: u32, at_ms: u64, worker: &WorkerId) {
        if self.run.state == State::Queued {
            self.move_run(State::Processing, Why::Begun, None);
        }
        if self.run.step(index).state == State::Queued {
            self.run.step_mut(index).unhandled_ms = 0;
            self.move_step_at(index, State::Processing, Why::Begun, at_ms, Some(worker.clone()), None);
        }
    }

    pub(super) fn started(&mut self, of: JobRef, worker: WorkerId, running_ms: u64) {
        if !self.awaits(&of) {
            return;
        }
        self.begin(of.index, self.now_ms.saturating_sub(running_ms), &worker);
        let timeout_ms = self.run.plan.steps[of.index as usize].timeout_ms;
        if timeout_ms > 0 && !self.run.step(of.index).timed {
            self.run.step_mut(of.index).timed = true;
            let due_ms = self.now_ms.saturating_sub(running_ms) + timeout_ms + ATTEMPT_GRACE_MS;
            let timer = Timer::Attempt { index: of.index, job: of.job };
            self.effect(Effect::SetTimer { due_ms, timer });
        }
    }

    fn completed(&mut self, of: &JobRef, output: Option<Payload>) {
        let step = self.run.step_mut(of.index);
        step.has_output = output.is_some();
        if step.attempts > 0 || step.losses > 0 {
            self.run.errors.retain(|e| e.index != of.index);
        }
        if let Some(output) = output {
            self.effect(Effect::SaveOutput { job: of.job, output });
        }
        self.move_step(of.index, State::Completed, Why::Done, None, None);
        if let Some(undoes) = self.run.plan.steps[of.index as usize].undoes {
            return self.undo_next(undoes.place + 1);
        }
        // Even while the run is being stopped: a retry counts on the needs that are met.
        self.work(Work { run: self.run.id, kind: WorkKind::Fan { of: of.index }, next: 0 });
    }

    fn returned(&mut self, of: &JobRef, worker: WorkerId, why: Returned) {
        let index = of.index;
        let since = match self.run.step(index).unhandled_ms {
            0 => self.now_ms,
            since => since,
        };
        match why {
            Returned::NoHandler if self.now_ms - since >= NO_HANDLER_MS => {
                let handler = &self.run.plan.steps[index as usize].handler;
                let text = format!("no worker of the queue has the handler `{handler}`");
                let failure = Failure::new(Category::System, text).with_code("no_handler");
                self.begin(index, self.now_ms, &worker);
                let of = Some(of.clone());
                let job = self.job(index);
                let failed = Failed { index, job, of, worker: Some(worker), run_ms: 0, failure, counts: false };
                return self.give_up(failed, Cause::Exhausted);
            }
            Returned::NoHandler => self.run.step_mut(index).unhandled_ms = since,
            Returned::Drain | Returned::Surplus => {}
            Returned::Gated => return self.again(index, Why::Gated, worker),
        }
        self.again(index, Why::Returned, worker);
    }

    /// The step goes back to the ready set, uncounted, unless its run ends or is held.
    fn again(&mut self, index: u32, why: Why, worker: WorkerId) {
        if self.run.ending.is_some() {
            return self.move_step(index, State::Cancelled, self.stop_why(), Some(worker), None);
        }
        match self.run.step(index).state {
            State::Processing => self.move_step(index, State::Queued, why, Some(worker), None),
            _ => self.remark(index, why, Some(worker)),
        }
        self.effect(Effect::Ready { index });
    }

    /// The worker confirms that it stopped the job because it was told to.
    fn halted(&mut self, index: u32, worker: WorkerId) {
        if self.run.ending.is_some() {
            self.move_step(index, State::Cancelled, self.stop_why(), Some(worker), None);
        } else if self.run.state == State::Suspended {
            self.move_step(index, State::Suspended, Why::Suspended, Some(worker), None);
        } else {
            // The run was resumed before the worker confirmed.
            self.again(index, Why::Returned, worker);
        }
    }

    fn job(&self, index: u32) -> JobId {
        self.run.step(index).job.expect("a step in flight has a job")
    }

    pub(super) fn lost(&mut self, of: JobRef, worker: WorkerId, counted: bool, seen: Option<Sight>) {
        self.ack(&of);
        if !self.awaits(&of) {
            return self.effect(Effect::Stopped(of.job));
        }
        let index = of.index;
        self.landed(index, of.job);
        if !counted {
            self.again(index, Why::DeliveryLost, worker);
            return self.settle();
        }
        self.begin(index, self.now_ms, &worker);
        let step = self.run.step_mut(index);
        step.losses = step.losses.saturating_add(1);
        let losses = step.losses;
        let end = seen.as_ref().and_then(|seen| seen.pod.as_ref());
        let end = end.map(|end| format!(": {}", end.cause())).unwrap_or_default();
        let text = format!("worker `{worker}` died with the job (loss {losses} of {LOSSES_MAX}){end}");
        let mut failure = Failure::new(Category::WorkerLost, text).with_code("worker_lost");
        // No part of the message, but for a word of Kubernetes: what was seen differs from loss to loss, and the failure is the
        // same one.
        failure.causes.extend(seen.map(|seen| seen.to_string()));
        let (job, of) = (of.job, Some(of));
        let failed = Failed { index, job, of, worker: Some(worker), run_ms: 0, failure, counts: false };
        if losses >= LOSSES_MAX {
            self.give_up(failed, Cause::Poison);
        } else {
            self.fail_step(&failed, Why::WorkerLost);
            let budget = self.budget(index, Some(Category::WorkerLost));
            self.try_again(index, 0, budget);
        }
        self.settle();
    }

    /// The worker's own time-out should have come long ago: the attempt is given up, and its job is fenced out.
    pub(super) fn attempt_timed_out(&mut self, index: u32, job: JobId) {
        let step = self.run.step(index);
        if !step.in_flight || step.job != Some(job) {
            return;
        }
        self.run.step_mut(index).timed = false;
        self.landed(index, job);
        // The worker may still be at it.
        self.effect(Effect::Stop(job));
        let limit = self.run.plan.steps[index as usize].timeout_ms;
        let name = &self.run.plan.steps[index as usize].name;
        let text = format!("step `{name}` ran past its time-out of {limit} ms, and its worker did not say so");
        let failure = Failure::new(Category::Timeout, text).with_code("timeout");
        self.attempt_failed(Failed { index, job, of: None, worker: None, run_ms: limit, failure, counts: true });
        self.settle();
    }

    /// A job that was to be is not made now.
    pub(super) fn deferred(&mut self, index: u32, job: JobId) {
        let step = self.run.step(index);
        if !step.in_flight || step.job != Some(job) {
            return;
        }
        self.landed(index, job);
        if self.run.ending.is_some() {
            self.move_step(index, State::Cancelled, self.stop_why(), None, None);
            return self.settle();
        }
        self.effect(Effect::Ready { index });
    }

    pub(super) fn unrenderable(&mut self, index: u32, job: JobId, failure: Failure) {
        let step = self.run.step(index);
        if !step.in_flight || step.job != Some(job) {
            return;
        }
        self.landed(index, job);
        if self.run.state == State::Queued {
            self.move_run(State::Processing, Why::Unrenderable, None);
        }
        self.move_step(index, State::Processing, Why::Unrenderable, None, None);
        self.attempt_failed(Failed { index, job, of: None, worker: None, run_ms: 0, failure, counts: true });
        self.settle();
    }

    /// An attempt that counts has failed: try again, or give up.
    fn attempt_failed(&mut self, failed: Failed) {
        let index = failed.index;
        self.run.step_mut(index).attempts += 1;
        let category = failed.failure.category;
        let plan = self.run.plan.clone();
        let effective = self.rules.effective(&plan, &plan.steps[index as usize], category);
        let step = self.run.step(index);
        let (attempts, spent) = (step.attempts, step.spent);
        let (of, stopping) = ((self.run.id, index), self.run.ending.is_some());
        let tried = Tried { of, attempts, spent, at_ms: self.now_ms, stopping, failure: &failed.failure };
        let verdict = verdict::judge(&effective, self.rules.classifies(), &tried);
        if !verdict.is_retryable || verdict.is_final_attempt {
            let cause = match category {
                _ if verdict.is_retryable => Cause::Exhausted,
                Category::Data => Cause::Data,
                _ => Cause::Permanent,
            };
            self.give_up(failed, cause);
            if !effective.notify.value {
                self.escalate_after(index, &effective);
            }
            return;
        }
        self.fail_step(&failed, Why::AttemptFailed);
        self.escalate_after(index, &effective);
        let budget = spent.saturating_add(effective.max_attempts.value);
        self.try_again(index, verdict.backoff_applied_ms.unwrap_or(0), budget);
    }

    /// processing -> failed, with the error kept.
    pub(super) fn fail_step(&mut self, failed: &Failed, why: Why) {
        let error = AttemptError {
            index: failed.index,
            generation: self.run.step(failed.index).generation,
            attempt: self.run.step(failed.index).attempts + u32::from(!failed.counts),
            job: failed.job,
            worker: failed.worker.clone(),
            at_ms: self.now_ms,
            run_ms: failed.run_ms,
            failure: failed.failure.clone(),
        };
        self.run.errors.push(error.clone());
        self.effect(Effect::KeepError(Box::new(error)));
        let note: Arc<str> = short(&failed.failure).into();
        self.move_step(failed.index, State::Failed, why, failed.worker.clone(), Some(note));
    }

    /// failed -> retrying, and on to queued when there is nothing to wait for.
    fn try_again(&mut self, index: u32, wait_ms: u64, budget: u32) {
        if self.run.ending.is_some() {
            return self.move_step(index, State::Cancelled, self.stop_why(), None, None);
        }
        let next = self.run.step(index).attempts + 1;
        let note: Arc<str> = format!("try {next} of {budget} in {wait_ms} ms").into();
        self.move_step(index, State::Retrying, Why::RetryPlanned, None, Some(note));
        if wait_ms == 0 {
            return self.retry_due(index);
        }
        let timer = Timer::Retry { index, job: self.job(index) };
        self.effect(Effect::SetTimer { due_ms: self.now_ms + wait_ms, timer });
    }

    /// processing -> failed for good, with a dead letter in the same commit.
    pub(super) fn give_up(&mut self, failed: Failed, cause: Cause) {
        let index = failed.index;
        self.fail_step(&failed, Why::GaveUp);
        if self.run.ending.is_some() {
            return self.move_step(index, State::Cancelled, self.stop_why(), None, None);
        }
        if self.tolerates(index) {
            return self.go_on_without(index);
        }
        let cause = self.undo_failed(index, cause);
        let category = failed.failure.category;
        // Whatever made it give up: bad data want a person.
        self.run.review |= category == Category::Data && cause != Cause::Compensation;
        let attempts = self.run.errors.iter().filter(|e| e.index == index).cloned().collect();
        let id = self.mint.letter(self.now_ms);
        self.run.step_mut(index).letter = Some(id);
        let (of, instead_of) = (failed.of, None);
        self.effect(Effect::Letter(Box::new(Letter { id, index, cause, category, of, attempts, instead_of })));
        self.escalate_end(index, category);
    }
}

/// A failure in one line for the history.
pub(super) fn short(failure: &Failure) -> String {
    const NOTE_BYTES: usize = 200;
    let text = match &failure.code {
        Some(code) => format!("{}/{code}: {}", failure.category, failure.message),
        None => format!("{}: {}", failure.category, failure.message),
    };
    stepfleet_protocol::failure::cut(text, NOTE_BYTES)
}
