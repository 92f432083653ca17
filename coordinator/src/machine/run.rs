//! A run and its steps as the machine sees them, and the only way their states change.

use std::sync::Arc;

use stepfleet_protocol::{
    failure::Failure,
    id::{JobId, RunId, StreamId, WorkerId},
    state::State,
    workflow::StepOnFailure,
};

use super::plan::Plan;

/// A run that is being stopped: what it will be when nothing of it is active any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// A command cancelled it.
    Cancelled = 1,
    /// It ran past its time-out and will be failed.
    TimedOut = 2,
}

/// How far the undoing of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Undoing {
    /// Nobody began it.
    #[default]
    None = 0,
    /// Its completed steps are being undone, one after the other.
    Running = 1,
    /// Every step that says how was undone.
    Done = 2,
    /// A step could not be undone, or the run was cancelled in the middle of it.
    Failed = 3,
}

/// What [`Run::history_chunks`] says once the history goes to a place of its own.
pub const HISTORY_APART: u8 = u8::MAX;

/// A run. Counters are derived from the steps and kept beside them, so that nothing ever walks a whole graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// What it follows.
    pub plan: Arc<Plan>,
    /// The registered version of the workflow; none for an inline definition.
    pub version: Option<u32>,
    /// Where it stands.
    pub state: State,
    /// Whether it is being stopped.
    pub ending: Option<Ending>,
    /// A step failed for want of good data: a person has to look.
    pub review: bool,
    /// Whether there is an input, under the run's id.
    pub has_input: bool,
    /// W3C trace context of the submitter.
    pub traceparent: Option<Arc<str>>,
    /// When it ended, in Unix milliseconds of the server; 0 while it goes on. A failed run that is held keeps it.
    pub finished_ms: u64,
    /// Steps that are completed. Those that undo others do not count here, nor in the next three.
    pub completed: u32,
    /// Steps that gave up.
    pub failed: u32,
    /// Steps among the failed whose dependants go on or are skipped: the run does not fail for them.
    pub tolerated: u32,
    /// Steps that are skipped.
    pub skipped: u32,
    /// Steps that are queued, processing, waiting or retrying, whether they undo others or not.
    pub active: u32,
    /// How far its undoing is.
    pub undoing: Undoing,
    /// It is taken back to an earlier step, and nothing of it begins before that is done.
    pub rewinding: bool,
    /// Work items of the run that are not finished.
    pub work: u32,
    /// Failed attempts of steps that are not completed, oldest first.
    pub errors: Vec<AttemptError>,
    /// The packed record as it was last written, by the shell, which skips writing it unchanged.
    pub stored: Vec<u8>,
    /// Chunks of its history that its own record holds, or [`HISTORY_APART`]: the shell's, too.
    pub history_chunks: u8,
    steps: Vec<Step>,
    dirty: Vec<u32>,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttemptError {
    /// The step's number.
    pub index: u32,
    /// Which deliberate execution of the step it was, from 1; 0 where older programs did not say.
    #[serde(default)]
    pub generation: u32,
    /// Which try.
    pub attempt: u32,
    /// The job.
    pub job: JobId,
    /// Who tried; none when it failed before any worker had it.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// When it failed, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// How long it ran, in milliseconds.
    pub run_ms: u64,
    /// What went wrong.
    pub failure: Failure,
}

/// A step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where it stands.
    pub state: State,
    /// Needed steps that are not settled yet: neither completed nor skipped, nor given up with the run going on.
    pub needs_left: u32,
    /// Tries that count so far.
    pub attempts: u32,
    /// Tries that belong to earlier budgets: a retry by command grants a fresh one.
    pub spent: u32,
    /// Losses so far in this budget.
    pub losses: u8,
    /// Which deliberate execution this is, from 1.
    pub generation: u32,
    /// The job it waits for if it is in flight, else the last one.
    pub job: Option<JobId>,
    /// A job of it is on a stream or at a worker: only its result moves the step.
    pub in_flight: bool,
    /// It is to stop as soon as the worker confirms.
    pub stopping: bool,
    /// A time-out of the owner's own is armed for the job.
    pub timed: bool,
    /// Its input was replaced by an operator, under `<run>.<index>.in`.
    pub patched: bool,
    /// The completed job left an output.
    pub has_output: bool,
    /// Since when no worker had its handler, in Unix milliseconds; 0 if that is not so.
    pub unhandled_ms: u64,
    /// It gave up, and the run goes on without it as its author said.
    pub tolerated: bool,
    /// Its open dead letter.
    pub letter: Option<StreamId>,
    /// By when it has to be started, in Unix milliseconds of the server; 0 if there is no limit. Only while it is queued.
    pub start_by_ms: u64,
    pub(crate) dirty: bool,
}

impl Step {
    /// As it is before anything happened to it.
    pub fn fresh(needs: u32) -> Self {
        Self {
            state: State::Created,
            needs_left: needs,
            attempts: 0,
            spent: 0,
            losses: 0,
            generation: 1,
            job: None,
            in_flight: false,
            stopping: false,
            timed: false,
            patched: false,
            has_output: false,
            unhandled_ms: 0,
            tolerated: false,
            letter: None,
            start_by_ms: 0,
            dirty: false,
        }
    }
}

fn is_active(state: State) -> bool {
    matches!(state, State::Queued | State::Processing | State::Waiting | State::Retrying)
}

impl Run {
    /// A run before its first transition.
    pub fn new(id: RunId, plan: Arc<Plan>) -> Self {
        let steps = plan.steps.iter().map(|s| Step::fresh(s.needs.len() as u32)).collect();
        Self {
            id,
            plan,
            version: None,
            state: State::Created,
            ending: None,
            review: false,
            has_input: false,
            traceparent: None,
            finished_ms: 0,
            completed: 0,
            failed: 0,
            tolerated: 0,
            skipped: 0,
            active: 0,
            undoing: Undoing::None,
            rewinding: false,
            work: 0,
            errors: Vec::new(),
            stored: Vec::new(),
            history_chunks: 0,
            steps,
            dirty: Vec::new(),
        }
    }

    /// Whether the run failed and was suspended after that: nobody retries it by mistake, and a resume reopens it.
    pub fn is_held_failure(&self) -> bool {
        self.state == State::Suspended && self.finished_ms > 0
    }

    /// Steps that gave up and for which the run fails.
    pub fn given_up(&self) -> u32 {
        self.failed - self.tolerated
    }

    /// Whether every step is completed, skipped, or failed in a way that the run bears.
    pub fn is_done(&self) -> bool {
        self.completed + self.tolerated + self.skipped == self.plan.regular
    }

    /// Whether its dependants need not wait for the step any more.
    pub fn is_settled(&self, index: u32) -> bool {
        let step = self.step(index);
        step.tolerated || matches!(step.state, State::Completed | State::Skipped)
    }

    /// The first need of the step for which it is skipped, if there is one.
    pub fn skipped_for(&self, index: u32) -> Option<u32> {
        if self.skipped + self.tolerated == 0 {
            return None;
        }
        let skips = |need: &u32| {
            let step = self.step(*need);
            let on_failure = self.plan.steps[*need as usize].on_failure;
            step.state == State::Skipped || (step.tolerated && on_failure == StepOnFailure::SkipDependents)
        };
        self.plan.steps[index as usize].needs.iter().copied().find(skips)
    }

    /// A step, to look at.
    pub fn step(&self, index: u32) -> &Step {
        &self.steps[index as usize]
    }

    /// All steps, in their order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// A step, to change anything but its state. It will be part of the next commit.
    pub fn step_mut(&mut self, index: u32) -> &mut Step {
        let step = &mut self.steps[index as usize];
        if !step.dirty {
            step.dirty = true;
            self.dirty.push(index);
        }
        step
    }

    /// The step's dead letter is gone, and nothing else happens to it: it can be retried, but not replayed. False if it is
    /// another letter that is open, or none.
    pub fn expire_letter(&mut self, index: u32, letter: StreamId) -> bool {
        let open = self.steps.get(index as usize).is_some_and(|s| s.letter == Some(letter));
        if open {
            self.step_mut(index).letter = None;
        }
        open
    }

    /// Moves a step, and keeps the counters. Returns the state it was in.
    ///
    /// # Panics
    /// When the move is illegal, but for the new generation of a finished step, which begins at `created`.
    pub(crate) fn move_step(&mut self, index: u32, to: State) -> State {
        let from = self.step(index).state;
        let reborn = from.is_finished() && to == State::Created;
        assert!(from.may_become(to) || reborn, "illegal move of step {index} from {from} to {to}");
        let change = |count: u32, of: State| count + u32::from(to == of) - u32::from(from == of);
        self.active = self.active + u32::from(is_active(to)) - u32::from(is_active(from));
        if index < self.plan.regular {
            self.completed = change(self.completed, State::Completed);
            self.failed = change(self.failed, State::Failed);
            self.skipped = change(self.skipped, State::Skipped);
            self.tolerated -= u32::from(self.step(index).tolerated);
        }
        let step = self.step_mut(index);
        step.state = to;
        step.tolerated = false;
        from
    }

    /// The step failed for good, and the run goes on without it.
    pub(crate) fn tolerate(&mut self, index: u32) {
        self.tolerated += 1;
        self.step_mut(index).tolerated = true;
    }

    /// Puts a stored step in place while a run is loaded.
    pub fn restore_step(&mut self, index: u32, step: Step) {
        self.steps[index as usize] = step;
    }

    /// Takes the numbers of the steps that changed since the last call, each once.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        let dirty = std::mem::take(&mut self.dirty);
        for index in &dirty {
            self.steps[*index as usize].dirty = false;
        }
        dirty
    }

    /// Checks what must hold after every decision: the counters equal a count of the steps, no finished run has anything
    /// left to do, and any other run that nobody suspended has. For tests and the simulation; it walks the whole graph.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        let regular = &self.steps[..self.plan.regular as usize];
        let count = |f: fn(&Step) -> bool| regular.iter().filter(|s| f(s)).count() as u32;
        let active = self.steps.iter().filter(|s| is_active(s.state)).count() as u32;
        let pairs = [
            ("completed", self.completed, count(|s| s.state == State::Completed)),
            ("failed", self.failed, count(|s| s.state == State::Failed)),
            ("tolerated", self.tolerated, count(|s| s.tolerated)),
            ("skipped", self.skipped, count(|s| s.state == State::Skipped)),
            ("active", self.active, active),
        ];
        for (what, kept, counted) in pairs {
            if kept != counted {
                return Err(format!("{what}: {kept} kept, {counted} counted"));
            }
        }
        if self.state.is_finished() && (self.active > 0 || self.work > 0) {
            return Err(format!("{} with {} active steps and {} work items", self.state, self.active, self.work));
        }
        let idle = self.active == 0 && self.work == 0;
        if idle && self.state != State::Created && !(self.state.is_finished() || self.state == State::Suspended) {
            return Err(format!("{} with nothing to wait for: it would never end", self.state));
        }
        if self.undoing == Undoing::None && self.steps.iter().skip(regular.len()).any(|s| s.state != State::Created) {
            return Err("a step is being undone and the run is not".into());
        }
        if self.rewinding && self.work == 0 {
            return Err("it is taken back for ever".into());
        }
        for (index, step) in self.steps.iter().enumerate() {
            self.check_step(index as u32, step)?;
            if step.in_flight && !matches!(step.state, State::Queued | State::Processing) {
                return Err(format!("step {index} is {} and in flight", step.state));
            }
            if step.state == State::Processing && !step.in_flight {
                return Err(format!("step {index} is processing without a job in flight"));
            }
            if step.in_flight && step.job.is_none() {
                return Err(format!("step {index} is in flight without a job"));
            }
            if step.state == State::Queued && step.needs_left > 0 {
                return Err(format!("step {index} is queued with {} needs left", step.needs_left));
            }
        }
        Ok(())
    }

    /// What must hold of one step and those around it.
    fn check_step(&self, index: u32, step: &Step) -> Result<(), String> {
        let needs = &self.plan.steps[index as usize].needs;
        let open = needs.iter().filter(|need| !self.is_settled(**need)).count() as u32;
        if self.work == 0 && open != step.needs_left {
            return Err(format!("step {index}: {} needs left kept, {open} counted", step.needs_left));
        }
        if step.tolerated && (step.state != State::Failed || step.letter.is_some()) {
            return Err(format!("step {index} is {} with a letter or not failed, and tolerated", step.state));
        }
        if step.start_by_ms > 0 && step.state != State::Queued {
            return Err(format!("step {index} is {} and has to start in time", step.state));
        }
        Ok(())
    }
}
