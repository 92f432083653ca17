//! What can happen to a run.

use std::sync::Arc;

use stepfleet_protocol::{
    beat::Sight,
    failure::Failure,
    id::{JobId, RunId, StreamId, WorkerId},
    message::{Command, JobRef, NewRun, Outcome},
};

/// One thing that happened, with the run it happened to known to the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The run was submitted; [`super::run::Run::new`] made it.
    Submitted {
        /// What was asked for.
        new: NewRun,
        /// Who asked.
        actor: Arc<str>,
    },
    /// A worker says what became of a job.
    Result {
        /// Which job.
        of: JobRef,
        /// Who did it.
        worker: WorkerId,
        /// How long the handler ran.
        run_ms: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// A worker has held a job for longer than a moment.
    Started {
        /// Which job.
        of: JobRef,
        /// Who holds it.
        worker: WorkerId,
        /// For how long it has been running.
        running_ms: u64,
    },
    /// A job will never be answered.
    Lost {
        /// Which job.
        of: JobRef,
        /// Who had it.
        worker: WorkerId,
        /// Whether it counts against the budget of losses.
        counted: bool,
        /// What was seen of the worker, if that was told.
        seen: Option<Sight>,
    },
    /// Somebody wishes something.
    Command(Command),
    /// A timer is due.
    Timer(Timer),
    /// A ready step may go to the stream now.
    Release {
        /// The step's number.
        index: u32,
    },
    /// The job that was just dispatched goes to the step's fallback, because its circuit breaker is open.
    FellBack {
        /// The step's number.
        index: u32,
    },
    /// A dispatched job was not made: its batch had no room for its input. It is released again later.
    Deferred {
        /// The step's number.
        index: u32,
        /// The job that was to be.
        job: JobId,
    },
    /// The input of a dispatched job could not be made.
    Unrenderable {
        /// The step's number.
        index: u32,
        /// The job that was to be.
        job: JobId,
        /// Why.
        failure: Failure,
    },
    /// A work item goes on.
    Continue(Work),
    /// An auditor found the step in no place, and neither did the owner's own look.
    Audit {
        /// The step's number.
        index: u32,
    },
    /// An auditor found the step's job neither on its stream nor at a worker.
    AuditJob {
        /// The step's number.
        index: u32,
        /// The job that is nowhere.
        job: JobId,
    },
    /// An auditor found nothing that the run waits for.
    AuditRun,
    /// An auditor found the run's time-out not among the timers.
    AuditTimeout,
    /// An auditor found none of the run's unfinished work items, and neither does the owner.
    AuditWork,
    /// An auditor found the step's open dead letter not in the stream, or not in its group.
    AuditLetter {
        /// The step's number.
        index: u32,
        /// The letter.
        letter: StreamId,
    },
}

/// A timer. Its guard is the job id: a timer of an older job changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The run's time-out.
    Run,
    /// The wait before a step's next attempt is over.
    Retry {
        /// The step's number.
        index: u32,
        /// The job that failed.
        job: JobId,
    },
    /// The owner's own time-out of an attempt, far behind the worker's.
    Attempt {
        /// The step's number.
        index: u32,
        /// The job.
        job: JobId,
    },
    /// A step has to be started by now. Its guard is the time itself, since there may have been no job yet.
    Start {
        /// The step's number.
        index: u32,
        /// By when, in Unix milliseconds of the server.
        by_ms: u64,
    },
}

/// A transition that is too large for one decision; each part is bounded and names where the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The run.
    pub run: RunId,
    /// What is being done.
    pub kind: WorkKind,
    /// Where to go on: a place in the list of the kind.
    pub next: u32,
}

/// What a work item does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// Makes the first steps ready.
    Roots,
    /// Tells the dependants of a settled step: one that completed, or gave up with the run going on.
    Fan {
        /// The settled step.
        of: u32,
    },
    /// Tells the dependants of a skipped step. `next` is the place behind the one to go on at.
    Skip {
        /// The skipped step.
        of: u32,
    },
    /// Takes back what the dependants of a step were told, and what they did upon it. `next` as for `Skip`.
    Rewind {
        /// The step that is taken back.
        of: u32,
    },
    /// Begins at a step when everything behind it was taken back. `next` counts the looks.
    Restart {
        /// The step.
        of: u32,
    },
    /// Stops every step.
    Stop,
    /// Makes suspended steps ready again, and begins a new generation of those that the run's time-out cancelled.
    Resume,
    /// Reopens failed steps, beside all that `Resume` does.
    Reopen,
    /// Stops the attempts that run while the run is suspended.
    Halt,
    /// Counts anew what the steps from this one on still need, after work items were lost. `next` counts the looks.
    Recount {
        /// Where to go on.
        from: u32,
    },
}
