//! What a batch has decided so far.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::{
    gate::Gate,
    id::{CommandId, JobId, RunId, StreamId},
    message::Answer,
    name::Name,
    state::State,
};

use super::super::{gates::Leave, intake::Place};
use crate::{
    machine::{
        decision::{Letter, Transition, Why},
        run::Run,
    },
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
    /// Its leave to pass the gate of its step, if it needs one.
    pub leave: Option<Leave>,
    /// The gate under whose limit the job before it in its run has just freed a place.
    pub heir_of: Option<Gate>,
    /// The step's fallback does it.
    pub falls_back: bool,
}

impl Dispatch {
    /// The queue that its job goes to.
    pub fn queue(&self, run: &Run) -> Name {
        let step = &run.plan.steps[self.index as usize];
        let other = step.fallback.as_ref().filter(|_| self.falls_back).and_then(|f| f.queue.as_ref());
        other.unwrap_or(&step.queue).clone()
    }
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
    /// Runs whose work items were taken.
    pub work_of: BTreeSet<RunId>,
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

/// The counter that a transition raises: those that an operator asks about after the fact.
pub(super) fn counter(of: &Transition) -> Option<&'static str> {
    match (of.why, of.step) {
        (Why::Expired, Some(_)) => Some("expired_steps"),
        (Why::SkippedFor, Some(_)) => Some("skipped_steps"),
        (Why::Resolved, Some(_)) if of.to != State::Suspended => Some("resolved_steps"),
        (Why::Compensating, None) if of.from == of.to => Some("compensations"),
        (Why::Compensated, None) => Some("compensated_runs"),
        _ => None,
    }
}
