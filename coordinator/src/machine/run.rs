//! A run and its steps as the machine sees them, and the only way their states change.

use std::sync::Arc;

use stepfleet_protocol::{
    failure::Failure,
    id::{JobId, RunId, StreamId, WorkerId},
    state::State,
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
    /// Steps that are completed.
    pub completed: u32,
    /// Steps that gave up.
    pub failed: u32,
    /// Steps that are queued, processing, waiting or retrying.
    pub active: u32,
    /// Work items of the run that are not finished.
    pub work: u32,
    /// Failed attempts of steps that are not completed, oldest first.
    pub errors: Vec<AttemptError>,
    /// The packed record as it was last written, by the shell, which skips writing it unchanged.
    pub stored: Vec<u8>,
    steps: Vec<Step>,
    dirty: Vec<u32>,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttemptError {
    /// The step's number.
    pub index: u32,
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
    /// Needed steps that are not completed yet.
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
    /// Its open dead letter.
    pub letter: Option<StreamId>,
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
            letter: None,
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
        let steps = plan.steps.iter().map(|s| Step::fresh(s.needs)).collect();
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
            active: 0,
            work: 0,
            errors: Vec::new(),
            stored: Vec::new(),
            steps,
            dirty: Vec::new(),
        }
    }

    /// Whether the run failed and was suspended after that: nobody retries it by mistake, and a resume reopens it.
    pub fn is_held_failure(&self) -> bool {
        self.state == State::Suspended && self.finished_ms > 0
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
    /// When the move is illegal, but for the new generation of a cancelled step, which begins at `created`.
    pub(crate) fn move_step(&mut self, index: u32, to: State) -> State {
        let from = self.step(index).state;
        let reborn = from == State::Cancelled && to == State::Created;
        assert!(from.may_become(to) || reborn, "illegal move of step {index} from {from} to {to}");
        self.active = self.active + u32::from(is_active(to)) - u32::from(is_active(from));
        self.completed += u32::from(to == State::Completed);
        self.failed = self.failed + u32::from(to == State::Failed) - u32::from(from == State::Failed);
        self.step_mut(index).state = to;
        from
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
        let count = |f: fn(&Step) -> bool| self.steps.iter().filter(|s| f(s)).count() as u32;
        let pairs = [
            ("completed", self.completed, count(|s| s.state == State::Completed)),
            ("failed", self.failed, count(|s| s.state == State::Failed)),
            ("active", self.active, count(|s| is_active(s.state))),
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
        for (index, step) in self.steps.iter().enumerate() {
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
}
