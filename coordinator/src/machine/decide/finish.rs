//! When a run ends, and as what.

use std::sync::Arc;

use stepfleet_protocol::{state::State, workflow::OnFailure};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Timer, Work, WorkKind},
        run::Ending,
    },
    Deciding,
};

impl Deciding<'_> {
    /// Ends the run if nothing of it is active any more.
    pub(super) fn settle(&mut self) {
        if self.run.active > 0 || self.run.work > 0 || self.run.state.is_finished() {
            return;
        }
        match self.run.ending {
            Some(Ending::Cancelled) => self.end(State::Cancelled, Why::Cancelled),
            Some(Ending::TimedOut) => self.end(State::Failed, Why::TimedOut),
            None if self.run.state == State::Suspended => {}
            None if self.run.completed as usize == self.run.plan.steps.len() => self.end(State::Completed, Why::Done),
            None if self.run.failed == 0 => {}
            None if self.run.review || self.run.plan.on_failure == OnFailure::Suspend => {
                self.begin_run();
                self.move_run(State::Suspended, Why::GaveUp, None);
            }
            None => self.end(State::Failed, Why::GaveUp),
        }
    }

    pub(super) fn begin_run(&mut self) {
        if self.run.state == State::Queued {
            self.move_run(State::Processing, Why::Begun, None);
        }
    }

    fn end(&mut self, as_what: State, why: Why) {
        if !self.run.state.may_become(as_what) {
            self.begin_run();
        }
        self.run.ending = None;
        if self.run.plan.timeout_ms > 0 {
            self.effect(Effect::ClearTimer { timer: Timer::Run });
        }
        self.move_run(as_what, why, None);
    }

    /// Begins to stop the whole run; it ends when every worker has confirmed. The history says at once who wished it.
    pub(super) fn stop(&mut self, ending: Ending, note: Option<Arc<str>>) {
        self.run.ending = Some(ending);
        self.remark_run(self.stop_why(), note);
        self.work(Work { run: self.run.id, kind: WorkKind::Stop, next: 0 });
        self.settle();
    }

    /// Why steps of the run are cancelled.
    pub(super) fn stop_why(&self) -> Why {
        match self.run.ending {
            Some(Ending::TimedOut) => Why::TimedOut,
            Some(Ending::Cancelled) | None => Why::Cancelled,
        }
    }
}
