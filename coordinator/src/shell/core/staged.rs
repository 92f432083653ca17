//! What a batch has decided so far.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::{
    id::{CommandId, JobId, RunId, StreamId},
    message::Answer,
    state::State,
};

use super::super::intake::Place;
use crate::{
    machine::decision::{Letter, Transition},
    store::commit::Commit,
};

/// A job on its way to the stream, still without its input.
#[derive(Debug)]
pub struct Dispatch {
    /// The item that led to it.
    pub of: Place,
    /// The run.
    pub run: RunId,
    /// The step's number.
    pub index: u32,
    /// The job.
    pub job: JobId,
    /// Which try.
    pub attempt: u32,
    /// How many tries there will be.
    pub max_attempts: u32,
}

/// What a batch did to a run.
#[derive(Debug, Default)]
pub struct Touched {
    /// The listing it was in before; none for a new run.
    pub was: Option<State>,
    /// Its transitions.
    pub transitions: Vec<Transition>,
}

/// What a batch has decided so far.
#[derive(Debug, Default)]
pub struct Staged {
    /// The commit to be.
    pub commit: Commit,
    /// Runs that changed.
    pub touched: BTreeMap<RunId, Touched>,
    /// Jobs without their inputs yet.
    pub dispatches: Vec<Dispatch>,
    /// Dead letters without their inputs yet, with the items that led to them.
    pub letters: Vec<(Place, Letter)>,
    /// Dead letters to close, whose groups have to be read.
    pub closing: Vec<StreamId>,
    /// Bytes of rendered inputs so far.
    pub made_bytes: usize,
    /// Answers so far, by command.
    pub answers: BTreeMap<CommandId, Vec<Answer>>,
    /// Runs that were cancelled before they were known.
    pub tombstones: BTreeSet<RunId>,
}
