//! What an auditor found: a job in no place, a run with nothing left to wait for. Whatever it saw, the run as it is now has
//! the last word: an observation that came late changes nothing.

use stepfleet_protocol::{id::JobId, state::State};

use super::{
    super::{
        decision::{Effect, Why},
        run::Undoing,
    },
    Deciding,
};

impl Deciding<'_> {
    /// The job that the step waits for is neither on its stream nor at a worker: the step is done again, uncounted, as after a
    /// delivery that was lost. A worker that has it after all is fenced out by its job id.
    pub(super) fn audit_job(&mut self, index: u32, job: JobId) {
        let waits = self.run.steps().get(index as usize).is_some_and(|s| s.in_flight && s.job == Some(job));
        if !waits {
            // Whoever was told to stop it is gone with it.
            return self.effect(Effect::Stopped(job));
        }
        self.landed(index, job);
        if self.run.ending.is_some() {
            self.remark(index, Why::Repaired, None);
            self.move_step(index, State::Cancelled, self.stop_why(), None, None);
            return self.settle();
        }
        match self.run.step(index).state {
            State::Processing => self.move_step(index, State::Queued, Why::Repaired, None, None),
            _ => self.remark(index, Why::Repaired, None),
        }
        self.effect(Effect::Ready { index });
        self.settle();
    }

    /// The run goes on although nothing of it is active: it ends now, as what its steps say.
    pub(super) fn audit_run(&mut self) {
        let idle = self.run.active == 0 && self.run.work == 0;
        if !idle || self.run.state.is_finished() || self.run.state == State::Suspended {
            return;
        }
        let before = self.out.transitions.len();
        self.settle();
        if self.out.transitions.len() > before {
            self.remark_run(Why::Repaired, None);
        }
    }
    /// The run's time-out was lost: it is set again, as if the run began now. When it was due nobody knows any more, and too
    /// late is better than too early.
    pub(super) fn audit_timeout(&mut self) {
        let open = !self.run.state.is_finished() && self.run.state != State::Suspended && self.run.ending.is_none();
        if self.run.plan.timeout_ms == 0 || !open || self.run.undoing != Undoing::None {
            return;
        }
        self.remark_run(Why::Repaired, Some("its time-out was lost, and begins anew".into()));
        self.arm_run();
    }
}
