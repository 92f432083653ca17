//! The messages: the job to a worker, and the entries of a partition's log.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::missing::Audit;
use crate::{
    beat::Sight,
    codec::VERSION,
    failure::Failure,
    gate::Gate,
    id::{CommandId, JobId, RunId, StreamId, WorkerId},
    name::Name,
    value::{Input, Payload},
};

/// A job: one attempt of one step, on the stream of its queue and partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Version of the message.
    pub v: u8,
    /// Its id: opaque to workers, sent back with the result.
    pub id: JobId,
    /// The run.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: Name,
    /// The step's name.
    pub step: Name,
    /// The step's number in its workflow.
    pub index: u32,
    /// Which deliberate execution of the step this is, from 1.
    pub generation: u32,
    /// Which try, from 1.
    pub attempt: u32,
    /// How many tries there will be in all.
    pub max_attempts: u32,
    /// The handler to call.
    pub handler: Name,
    /// The attempt's limit in milliseconds; 0 for none.
    pub timeout_ms: u64,
    /// The input.
    #[serde(default)]
    pub input: Input,
    /// W3C trace context of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The circuit breaker that the job stands behind, if it is not that of its handler. It comes back with the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// It is one of the few that try whether a dependency is back: a worker does it although the circuit breaker is open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
    /// It undoes its step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
}

impl Job {
    /// The key by which a handler makes its own side effects idempotent: `run/step/generation`, and `run/step/generation/undo`
    /// where the step is undone; the same for every attempt.
    pub fn idempotency_key(&self) -> String {
        let undo = if self.undo { "/undo" } else { "" };
        format!("{}/{}/{}{undo}", self.run, self.step, self.generation)
    }
}

/// An entry of a partition's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Version of the message.
    pub v: u8,
    /// What it says.
    pub body: Body,
}

impl LogEntry {
    /// An entry of today's version.
    pub fn new(body: Body) -> Self {
        Self { v: VERSION, body }
    }
}

/// What a log entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// New runs.
    Submit(Submit),
    /// What became of jobs.
    Results(Results),
    /// Jobs that have been held longer than a second.
    Started(Started),
    /// A person's or a program's wish about a run.
    Command(Command),
    /// A worker is dead or never had the job: observed, not acted upon.
    Lost(Lost),
    /// An auditor found a step in no place.
    Audit(Audit),
    /// Entries of a job stream that no worker can read.
    Unreadable(Unreadable),
}

impl Body {
    /// How many things it says at once: at most [`crate::limits::ENTRY_PARTS_MAX`].
    pub fn parts(&self) -> usize {
        match self {
            Self::Submit(submit) => submit.runs.len(),
            Self::Results(results) => results.results.len(),
            Self::Started(started) => started.jobs.len(),
            Self::Lost(lost) => lost.jobs.len(),
            Self::Unreadable(unreadable) => unreadable.entries.len(),
            Self::Command(_) | Self::Audit(_) => 1,
        }
    }
}

/// Entries of a job stream that are no jobs: nobody will ever answer them. Whoever took them kept their bytes in the
/// partition's quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The queue of the stream.
    pub queue: Name,
    /// The entries.
    pub entries: Vec<StreamId>,
}

/// New runs, submitted together. They share their fate only with regard to the reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// The command's id.
    pub id: CommandId,
    /// Who asked.
    pub actor: String,
    /// The runs.
    pub runs: Vec<NewRun>,
    /// Sent before, perhaps: the owner looks whether it knows the runs. A first sending need not pay for that, because
    /// its run ids are fresh.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// One new run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRun {
    /// Its id, made by the client.
    pub run: RunId,
    /// The plan key it follows: a hash of the workflow.
    pub plan: String,
    /// The registered version; none for an inline definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Payload>,
    /// W3C trace context of the submitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What became of the jobs of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// The worker.
    pub worker: WorkerId,
    /// One result a job.
    pub results: Vec<JobResult>,
}

/// Which job a message is about, and where its stream entry is, so that the owner can ack it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRef {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: RunId,
    /// The step's number.
    pub index: u32,
    /// The queue whose stream it came from.
    pub queue: Name,
    /// Its entry there.
    pub entry: StreamId,
}

/// What became of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// The job.
    pub of: JobRef,
    /// How long the handler ran, in milliseconds of the worker's monotonic clock.
    #[serde(default)]
    pub run_ms: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The circuit breaker that it speaks about, if it is not that of the step's handler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, with the output if it is not `null`.
    Completed(Option<Payload>),
    /// The attempt failed.
    Failed(Failure),
    /// Handed back, not counted.
    Returned(Returned),
    /// Stopped because a cancel asked for it.
    Cancelled,
}

impl Outcome {
    /// The id of the value that was written beside it: a large output, or a large detail of a failure.
    pub fn value_id(&self) -> Option<&str> {
        match self {
            Self::Completed(Some(Payload::Ref(value)))
            | Self::Failed(Failure { detail: Some(Payload::Ref(value)), .. }) => Some(&value.id),
            Self::Completed(_) | Self::Failed(_) | Self::Returned(_) | Self::Cancelled => None,
        }
    }
}

/// Why a job was handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Returned {
    /// The worker is stopping.
    Drain,
    /// The worker has no such handler.
    NoHandler,
    /// The worker had no free slot for it.
    Surplus,
    /// Its circuit breaker is open, or its queue is paused.
    Gated,
}

/// Jobs that a worker has held longer than [`crate::limits::STARTED_AFTER_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The worker.
    pub worker: WorkerId,
    /// The jobs, each with how long it has been running in milliseconds.
    pub jobs: Vec<(JobRef, u64)>,
}

/// Jobs whose worker is dead, or that never reached the worker they are pending at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The worker they were delivered to.
    pub worker: WorkerId,
    /// Whether the loss counts against the step's budget: yes for a death, no for a reply that never came.
    pub counted: bool,
    /// The jobs.
    pub jobs: Vec<JobRef>,
    /// What was seen of the worker, for each of the jobs; empty if whoever found the loss did not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<Sight>,
}

/// A wish about one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The command's id: the same id gets the same answer.
    pub id: CommandId,
    /// Who asked.
    pub actor: String,
    /// The run.
    pub run: RunId,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wished.
    pub verb: Verb,
    /// Sent before, perhaps: the owner looks whether it has answered already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// The campaign that sends it. Its begin is in the audit, and its report tells of each letter: it needs no entry of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<Uuid>,
}

/// Id of a value that travels with a command: `<command id>.in`. It has a lifetime, and the commit that takes the command puts
/// the value where it belongs.
pub fn command_value(command: CommandId) -> String {
    format!("{command}.in")
}

/// What a command wishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Stop the run for good.
    Cancel,
    /// Hold the run. Running attempts finish and count, or are stopped uncounted with `now`.
    Suspend {
        /// Stop running attempts.
        now: bool,
    },
    /// Let a suspended run go on.
    Resume,
    /// Reopen a failed or suspended run from its failed steps.
    Retry,
    /// Replay one dead letter: retry its step.
    Replay {
        /// The step's number.
        index: u32,
        /// The letter that is replayed, for the history.
        letter: StreamId,
        /// The input to use instead of the rendered one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<Payload>,
    },
    /// Continue a failed or suspended run from one step: it and everything behind it is done again, with the outputs of the
    /// steps before it.
    RetryFrom {
        /// The step's number.
        index: u32,
    },
    /// An operator says what became of a step.
    Resolve {
        /// The step's number.
        index: u32,
        /// What became of it.
        resolution: Resolution,
    },
    /// Undo the completed steps of a failed run.
    Compensate,
    /// Close one dead letter for good: its step stays failed.
    Discard {
        /// The step's number.
        index: u32,
        /// The letter.
        letter: StreamId,
    },
}

/// What an operator says of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It is done, with this output.
    Completed(Option<Payload>),
    /// It failed for good.
    Failed(String),
}

/// The answer to a command, kept under its id and announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Version of the message.
    pub v: u8,
    /// The command.
    pub id: CommandId,
    /// The answers: one a run of a submit, in its order; one for any other command.
    pub answers: Vec<Answer>,
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done, or its intent is recorded; the run's state after it.
    Done {
        /// The run's state now.
        state: crate::state::State,
    },
    /// The run is known already: an earlier submit of the same id.
    Known {
        /// The run's state now.
        state: crate::state::State,
    },
    /// Illegal in the run's state.
    Conflict {
        /// The run's state.
        state: crate::state::State,
        /// What was found and what is allowed.
        message: String,
    },
    /// There is no such run.
    NotFound,
    /// The plan key is not there (any more): submit again with it.
    NoPlan,
    /// Refused; nothing was written.
    Refused {
        /// A stable word.
        code: String,
        /// What was found and what is allowed.
        message: String,
    },
}
