//! What an auditor tells the log: a step or a run, and what of it is in no place.

use serde::{Deserialize, Serialize};

use crate::id::{JobId, RunId, StreamId};

/// A step that an auditor found in no place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The run.
    pub run: RunId,
    /// The step's number; none for the run itself.
    pub index: Option<u32>,
    /// The job that the step waits for and that is nowhere; none where the step waits for no job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// What else is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<Missing>,
}

/// What is missing, where it is neither a job nor a place. A program of an older version passes over the word, and then sees
/// an observation that changes nothing of a step or run that is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The time-out of the run is not among the timers.
    Timeout,
    /// The run has unfinished work items, and none of them is in the list.
    Work,
    /// The open dead letter of the step is not in the stream, or not in its group.
    Letter {
        /// The letter.
        id: StreamId,
    },
}

impl Audit {
    /// A run that goes on with nothing left to wait for.
    pub fn of_run(run: RunId) -> Self {
        Self { run, index: None, job: None, what: None }
    }

    /// A step that is in no place.
    pub fn of_step(run: RunId, index: u32) -> Self {
        Self { index: Some(index), ..Self::of_run(run) }
    }

    /// A step whose job is neither on its stream nor at a worker.
    pub fn of_job(run: RunId, index: u32, job: JobId) -> Self {
        Self { job: Some(job), ..Self::of_step(run, index) }
    }

    /// The same, with what is missing.
    pub fn without(self, what: Missing) -> Self {
        Self { what: Some(what), ..self }
    }
}
