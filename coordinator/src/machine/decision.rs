//! What comes out of a decision: transitions for the history, and effects for the commit.

use std::{fmt, sync::Arc};

use stepfleet_protocol::{
    failure::Category,
    id::{JobId, StreamId, WorkerId},
    message::{Answer, JobRef},
    name::Name,
    state::State,
    value::Payload,
};

use super::{
    event::{Timer, Work},
    run::AttemptError,
};

/// Everything that one event leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// Moves, in order, for history and outbox.
    pub transitions: Vec<Transition>,
    /// What the commit has to contain beside the new states.
    pub effects: Vec<Effect>,
}

/// One move of a run or step, or (`from == to`) a remark about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The step's number; none for the run itself.
    pub step: Option<u32>,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// When, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// Which try; 0 for the run itself.
    pub attempt: u32,
    /// Why.
    pub why: Why,
    /// The worker that had the job, where one matters.
    pub worker: Option<WorkerId>,
    /// Who asked, where somebody did.
    pub actor: Option<Arc<str>>,
    /// Anything more: the asker's reason, an error message.
    pub note: Option<Arc<str>>,
}

/// Why a move was made. The number is the packed form and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Why {
    /// It was submitted.
    Submitted = 0,
    /// Every step it needs is completed.
    NeedsMet = 1,
    /// A worker began it.
    Begun = 2,
    /// It was done.
    Done = 3,
    /// An attempt failed.
    AttemptFailed = 4,
    /// It will be tried again.
    RetryPlanned = 5,
    /// The wait before the next try is over.
    RetryDue = 6,
    /// A worker handed it back, uncounted.
    Returned = 7,
    /// Its worker died.
    WorkerLost = 8,
    /// It was delivered to a worker that never received it.
    DeliveryLost = 9,
    /// A command cancelled it.
    Cancelled = 10,
    /// A command suspended it.
    Suspended = 11,
    /// A command resumed it.
    Resumed = 12,
    /// A command retried it.
    Retried = 13,
    /// A dead letter was replayed.
    Replayed = 14,
    /// It ran past its time-out.
    TimedOut = 15,
    /// Its input could not be made.
    Unrenderable = 16,
    /// It gave up.
    GaveUp = 17,
    /// A late or doubled report was recorded and changed nothing.
    Ignored = 18,
    /// An auditor repaired it.
    Repaired = 19,
    /// An entry about it was quarantined.
    Quarantined = 20,
    /// It failed so often, or for good, that somebody has to know.
    Escalated = 21,
    /// It was not started in time.
    Expired = 22,
    /// A step it needs gave up, and that step says that its dependants are skipped.
    SkippedFor = 23,
    /// The run is being undone.
    Compensating = 24,
    /// The run was undone.
    Compensated = 25,
    /// An operator said what became of it.
    Resolved = 26,
    /// Its dead letter was discarded.
    Discarded = 27,
    /// A worker handed it back, uncounted, because its circuit breaker is open or its queue is paused.
    Gated = 28,
    /// Its circuit breaker is open, and another handler stands in.
    FellBack = 29,
}

impl Why {
    /// Every reason, in the order of the packed form.
    pub const ALL: [Self; 30] = [
        Self::Submitted,
        Self::NeedsMet,
        Self::Begun,
        Self::Done,
        Self::AttemptFailed,
        Self::RetryPlanned,
        Self::RetryDue,
        Self::Returned,
        Self::WorkerLost,
        Self::DeliveryLost,
        Self::Cancelled,
        Self::Suspended,
        Self::Resumed,
        Self::Retried,
        Self::Replayed,
        Self::TimedOut,
        Self::Unrenderable,
        Self::GaveUp,
        Self::Ignored,
        Self::Repaired,
        Self::Quarantined,
        Self::Escalated,
        Self::Expired,
        Self::SkippedFor,
        Self::Compensating,
        Self::Compensated,
        Self::Resolved,
        Self::Discarded,
        Self::Gated,
        Self::FellBack,
    ];

    /// From the packed form.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// What the commit has to contain beside states and history.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The step is ready: the shell releases it at once or keeps it in the ready set.
    Ready {
        /// The step's number.
        index: u32,
    },
    /// The step is no longer ready: take it out of the ready set.
    Unready {
        /// The step's number.
        index: u32,
    },
    /// The job goes to the stream.
    Dispatch {
        /// The step's number.
        index: u32,
        /// The job.
        job: JobId,
        /// Which try.
        attempt: u32,
        /// How many tries there will be.
        max_attempts: u32,
    },
    /// The job's stream entry is done with.
    Ack {
        /// Its stream's queue.
        queue: Name,
        /// The entry.
        entry: StreamId,
    },
    /// The output of a completed job is kept.
    SaveOutput {
        /// The job.
        job: JobId,
        /// The output.
        output: Payload,
    },
    /// The output that an operator gave to a step is kept; a large one came with the command.
    SaveResolved {
        /// The job under whose id it is kept.
        job: JobId,
        /// The output.
        output: Payload,
    },
    /// A value that nothing refers to is dropped.
    DropValue {
        /// Its id.
        id: String,
    },
    /// The input of a run is kept.
    SaveInput {
        /// The input.
        input: Payload,
    },
    /// The input that an operator gave to a step is kept.
    SavePatch {
        /// The step's number.
        index: u32,
        /// The input.
        input: Payload,
    },
    /// A timer is set.
    SetTimer {
        /// When it is due, in Unix milliseconds of the server.
        due_ms: u64,
        /// Which.
        timer: Timer,
    },
    /// A timer is taken back.
    ClearTimer {
        /// Which.
        timer: Timer,
    },
    /// A failed attempt is kept.
    KeepError(Box<AttemptError>),
    /// The step gave up.
    Letter(Box<Letter>),
    /// The step's dead letter is closed.
    CloseLetter(StreamId),
    /// The command is answered.
    Answer(Answer),
    /// There is more to do.
    Work(Work),
    /// Workers are told to stop the job.
    Stop(JobId),
    /// The job need not be stopped any more.
    Stopped(JobId),
}

/// Why a step is in the dead-letter stream.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Every attempt of the budget was used.
    Exhausted,
    /// The failure is of a kind that no retry mends.
    Permanent,
    /// The input is invalid: a person has to look.
    Data,
    /// Too many workers died with it.
    Poison,
    /// It was not started in time.
    Expired,
    /// It was to undo a step, and could not.
    Compensation,
}

impl Cause {
    /// The word, as in JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Data => "data",
            Self::Poison => "poison",
            Self::Expired => "expired",
            Self::Compensation => "compensation",
        }
    }
}

/// A dead letter before it is written; the shell adds the job's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// Its id in the dead-letter stream.
    pub id: StreamId,
    /// The step's number.
    pub index: u32,
    /// Why it gave up.
    pub cause: Cause,
    /// The category of the last failure.
    pub category: Category,
    /// The last job, with its stream entry if it had one.
    pub of: Option<JobRef>,
    /// Every failed attempt of the budget, oldest first.
    pub attempts: Vec<AttemptError>,
    /// The letter that was lost and that it stands for.
    pub instead_of: Option<StreamId>,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "{step}: ")?,
            None => write!(f, "run: ")?,
        }
        write!(f, "{} -> {} ({:?}", self.from, self.to, self.why)?;
        if self.attempt > 0 {
            write!(f, " #{}", self.attempt)?;
        }
        write!(f, ")")
    }
}
