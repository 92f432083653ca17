//! What an auditor found: a job in no place, a run with nothing left to wait for, a time-out, work item or dead letter that is
//! gone. Whatever it saw, the run as it is now has the last word: an observation that came late changes nothing.

use stepfleet_protocol::{
    failure::Category,
    id::{JobId, StreamId},
    state::State,
};

use super::{
    super::{
        decision::{Cause, Effect, Letter, Why},
        event::{Work, WorkKind},
        run::{AttemptError, Undoing},
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

    /// Nothing would end the run in time: its time-out begins anew, as nobody knows any more when it was to end.
    pub(super) fn audit_timeout(&mut self) {
        let run = &*self.run;
        let armed = run.plan.timeout_ms > 0 && run.ending.is_none() && run.undoing == Undoing::None;
        if !armed || run.state.is_finished() || run.is_held_failure() {
            return;
        }
        self.remark_run(Why::Repaired, Some("its time-out was lost, and begins anew".into()));
        self.arm_run();
    }

    /// The work items of the run are gone. What they would have told is counted anew from what the steps are; a stop begins
    /// again. How far a run was taken back or undone nobody knows: there nothing is guessed.
    pub(super) fn audit_work(&mut self) {
        if self.run.work == 0 || self.run.rewinding || self.run.undoing != Undoing::None {
            return;
        }
        self.remark_run(Why::Repaired, Some("a part of a large transition was lost, and is made up for".into()));
        self.run.work = 1;
        if self.run.ending.is_some() {
            self.work(Work { run: self.run.id, kind: WorkKind::Stop, next: 0 });
        }
        self.recount(0, 0);
    }

    /// Counts what the steps from `from` on still need. It goes on only while it is the last work item of the run: then the
    /// dependants of every settled step were told, or never will be, and the states of the needs are the whole truth.
    pub(super) fn recount(&mut self, from: u32, looks: u32) {
        let (mut next, mut touched) = (from, 0);
        while next < self.run.plan.regular && self.run.work == 1 && self.may_touch(touched) {
            self.recount_step(next);
            (next, touched) = (next + 1, touched + 1);
        }
        if next < self.run.plan.regular {
            let kind = WorkKind::Recount { from: next };
            return self.effect(Effect::Work(Work { run: self.run.id, kind, next: looks.saturating_add(1) }));
        }
        self.run.work -= 1;
        self.settle();
    }

    fn recount_step(&mut self, index: u32) {
        let plan = self.run.plan.clone();
        let unsettled = plan.steps[index as usize].needs.iter().filter(|need| !self.run.is_settled(**need));
        let needs_left = unsettled.count() as u32;
        if self.run.step(index).needs_left != needs_left {
            self.run.step_mut(index).needs_left = needs_left;
        }
        match self.run.step(index).state {
            State::Created if needs_left == 0 => self.enqueue(index),
            State::Suspended | State::Cancelled => drop(self.resume_step(index)),
            State::Created
            | State::Queued
            | State::Processing
            | State::Waiting
            | State::Completed
            | State::Failed
            | State::Retrying
            | State::Skipped => {}
        }
    }

    /// The step's letter is gone, or not to be found in its group: another one takes its place, made of the failures that are
    /// kept. The input of the last job is not kept anywhere else; a replay makes it again.
    pub(super) fn audit_letter(&mut self, index: u32, letter: StreamId) {
        let Some(step) = self.run.steps().get(index as usize) else { return };
        if step.state != State::Failed || step.letter != Some(letter) {
            return;
        }
        let attempts: Vec<AttemptError> = self.run.errors.iter().filter(|e| e.index == index).cloned().collect();
        let category = attempts.last().map_or(Category::System, |last| last.failure.category);
        let cause = match category {
            _ if index >= self.run.plan.regular => Cause::Compensation,
            Category::Data => Cause::Data,
            Category::Permanent => Cause::Permanent,
            Category::WorkerLost => Cause::Poison,
            Category::Transient | Category::RateLimited | Category::Timeout | Category::System => Cause::Exhausted,
        };
        self.effect(Effect::CloseLetter(letter));
        let id = self.mint.letter(self.now_ms);
        self.run.step_mut(index).letter = Some(id);
        self.remark_step(index, Why::Repaired, "its dead letter was lost, and is written again".into());
        let (of, instead_of) = (None, Some(letter));
        self.effect(Effect::Letter(Box::new(Letter { id, index, cause, category, of, attempts, instead_of })));
    }
}
