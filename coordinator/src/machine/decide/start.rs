//! The limit of a step's wait for its start: `start_within`.
//!
//! It is about the first start after the step became ready by its needs, by a resume, or by a retry or replay that somebody
//! wished. A next try of its own and a job that was handed back have no limit: the step was started. While the run is held the
//! limit begins anew.

use stepfleet_protocol::{
    duration::Millis,
    failure::{Category, Failure},
    state::State,
};

use super::{
    super::{
        decision::{Cause, Effect, Why},
        event::Timer,
    },
    Deciding,
    outcome::Failed,
};

impl Deciding<'_> {
    /// The step became ready: its limit begins, if it has one.
    pub(super) fn arm_start(&mut self, index: u32) {
        let within_ms = self.run.plan.steps[index as usize].start_within_ms;
        if within_ms == 0 || self.run.step(index).state != State::Queued {
            return;
        }
        let by_ms = self.now_ms + within_ms;
        self.run.step_mut(index).start_by_ms = by_ms;
        self.effect(Effect::SetTimer { due_ms: by_ms, timer: Timer::Start { index, by_ms } });
    }

    /// The step leaves the state in which it waited for its start, whatever comes now.
    pub(super) fn clear_start(&mut self, index: u32) {
        let by_ms = self.run.step(index).start_by_ms;
        if by_ms > 0 {
            self.run.step_mut(index).start_by_ms = 0;
            self.effect(Effect::ClearTimer { timer: Timer::Start { index, by_ms } });
        }
    }

    /// The limit is over, and the step was not started: it gives up. Its job, if there is one, is fenced out and stopped.
    pub(super) fn not_started(&mut self, index: u32, by_ms: u64) {
        let step = *self.run.step(index);
        if step.start_by_ms != by_ms {
            return;
        }
        self.run.step_mut(index).start_by_ms = 0;
        if self.run.ending.is_some() {
            return;
        }
        if self.run.state == State::Suspended {
            return self.arm_start(index);
        }
        let job = match step.job {
            Some(job) if step.in_flight => {
                self.landed(index, job);
                self.effect(Effect::Stop(job));
                job
            }
            before => {
                self.effect(Effect::Unready { index });
                before.unwrap_or_else(|| self.mint.next())
            }
        };
        self.begin_run();
        self.move_step(index, State::Processing, Why::Expired, None, None);
        let planned = &self.run.plan.steps[index as usize];
        let (name, limit) = (&planned.name, Millis(planned.start_within_ms));
        let failure = Failure::new(Category::Timeout, format!("step `{name}` was not started within {limit}"));
        let failure = failure.with_code("expired");
        let failed = Failed { index, job, of: None, worker: None, run_ms: 0, failure, counts: false };
        self.give_up(failed, Cause::Expired);
        self.settle();
    }
}
