//! When a run ends, and as what.

use std::sync::Arc;

use stepfleet_protocol::{state::State, workflow::OnFailure};

use super::{
    super::{
        decision::{Effect, Why},
        event::{Timer, Work, WorkKind},
        run::{Ending, Undoing},
    },
    Deciding,
};

impl Deciding<'_> {
    /// Ends the run if nothing of it is active any more.
    pub(super) fn settle(&mut self) {
        if self.run.active > 0 || self.run.work > 0 || self.run.state.is_finished() {
            return;
        }
        if self.run.undoing != Undoing::None {
            return self.settle_undo();
        }
        match self.run.ending {
            Some(Ending::Cancelled) => self.end(State::Cancelled, Why::Cancelled),
            Some(Ending::TimedOut) => self.fail_run(Why::TimedOut),
            None if self.run.state == State::Suspended => {}
            None if self.run.is_done() => self.end(State::Completed, Why::Done),
            None if self.run.given_up() == 0 => {}
            None if self.run.review || self.run.plan.on_failure == OnFailure::Suspend => {
                self.begin_run();
                self.move_run(State::Suspended, Why::GaveUp, None);
            }
            None => self.fail_run(Why::GaveUp),
        }
    }

    /// The run fails, unless something of it is to be undone first.
    fn fail_run(&mut self, why: Why) {
        if self.run.plan.on_failure == OnFailure::Compensate && self.begin_undo(None) {
            return;
        }
        self.end(State::Failed, why);
    }

    pub(super) fn begin_run(&mut self) {
        if self.run.state == State::Queued {
            self.move_run(State::Processing, Why::Begun, None);
        }
    }

    pub(super) fn end(&mut self, as_what: State, why: Why) {
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
