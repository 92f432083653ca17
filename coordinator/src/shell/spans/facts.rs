//! What of a batch becomes spans, once its commit has applied. Pure.

use stepfleet_protocol::{
    failure::Category,
    id::{JobId, RunId},
    name::Name,
    state::State,
    trace::TraceContext,
};

use crate::{
    machine::{
        decision::{Cause, Decision, Effect, Transition, Why},
        event::Timer,
        run::Run,
    },
    shell::{
        core::Dispatch,
        tally::{About, JobEnd},
    },
};

/// A span to be told, of a run whose trace is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// The run.
    pub run: RunId,
    /// The span in which the run was submitted.
    pub of: TraceContext,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A job was put on its stream.
    Sent(Box<Sent>),
    /// It was decided what becomes of a job.
    Settled(Box<Settled>),
    /// The run ended.
    Ended(Box<Ended>),
}

/// A job that was put on its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The job.
    pub job: JobId,
    /// The run's workflow.
    pub workflow: Name,
    /// The step.
    pub step: Name,
    /// Where it went.
    pub queue: Name,
    /// Which try.
    pub attempt: u32,
    /// Which deliberate execution.
    pub generation: u32,
    /// When what made it ready came, in Unix milliseconds.
    pub since_ms: u64,
    /// The last jobs of the steps that it needed.
    pub needed: Vec<JobId>,
    /// The failed try before it.
    pub again_for: Option<JobId>,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// The step.
    pub step: Name,
    /// Where it was.
    pub queue: Name,
    /// Which try.
    pub attempt: u32,
    /// How it ended.
    pub end: JobEnd,
    /// When its result came to the log, in Unix milliseconds.
    pub since_ms: u64,
    /// What went wrong.
    pub failure: Option<(Category, String)>,
    /// The wait before the next try, in milliseconds, if there will be one.
    pub retry_ms: Option<u64>,
    /// Why the step gave up, if it did.
    pub letter: Option<Cause>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its workflow.
    pub workflow: Name,
    /// How.
    pub state: State,
    /// It is not what its author wished.
    pub failed: bool,
    /// When it was submitted, in Unix milliseconds; none for a further end of a run that was opened again.
    pub since_ms: Option<u64>,
    /// When it ended, in Unix milliseconds.
    pub at_ms: u64,
}

/// The trace of a run, if it is recorded.
pub fn recorded(run: &Run) -> Option<TraceContext> {
    run.traceparent.as_deref()?.parse().ok().filter(TraceContext::is_sampled)
}

/// A job on its way.
pub fn sent(run: &Run, dispatch: &Dispatch, since_ms: u64) -> Sent {
    let step = &run.plan.steps[dispatch.index as usize];
    let is_of = |error: &&crate::machine::run::AttemptError| error.index == dispatch.index && error.job != dispatch.job;
    Sent {
        job: dispatch.job,
        workflow: run.plan.workflow.clone(),
        step: step.name.clone(),
        queue: dispatch.queue(run),
        attempt: dispatch.attempt,
        generation: run.step(dispatch.index).generation,
        since_ms,
        needed: step.needs.iter().filter_map(|need| run.step(*need).job).collect(),
        again_for: run.errors.iter().rev().find(is_of).map(|error| error.job),
    }
}

/// What a decision says about a job that was awaited.
pub fn settled(run: &Run, about: &About, decision: &Decision, at: (u64, u64)) -> Option<Settled> {
    let (since_ms, now_ms) = at;
    let error = decision.effects.iter().find_map(|effect| match effect {
        Effect::KeepError(error) => Some(error),
        _ => None,
    });
    let awaited = decision.transitions.iter().any(|moved| moved.why != Why::Ignored);
    let (job, index, queue, end) = match (about, error) {
        (About::Job(of, Some((end, _))), _) if awaited => (of.job, of.index, Some(&of.queue), *end),
        (About::AttemptTimer, Some(error)) => (error.job, error.index, None, JobEnd::TimedOut),
        // Its input could not be made, or nobody began it in time.
        (About::Other, Some(error)) => (error.job, error.index, None, JobEnd::Failed),
        _ => return None,
    };
    let step = &run.plan.steps[index as usize];
    let moved = decision.transitions.iter().find(|moved| moved.step == Some(index));
    let due_ms = decision.effects.iter().find_map(|effect| match effect {
        Effect::SetTimer { due_ms, timer: Timer::Retry { index: of, .. } } if *of == index => Some(*due_ms),
        _ => None,
    });
    let retried = decision.transitions.iter().any(|moved| moved.why == Why::RetryPlanned);
    Some(Settled {
        job,
        step: step.name.clone(),
        queue: queue.unwrap_or(&step.queue).clone(),
        attempt: error.map(|error| error.attempt).or(moved.map(|moved| moved.attempt)).unwrap_or_default(),
        end,
        since_ms,
        failure: error.map(|error| (error.failure.category, error.failure.message.clone())),
        retry_ms: retried.then(|| due_ms.map_or(0, |due| due.saturating_sub(now_ms))),
        letter: decision.effects.iter().find_map(|effect| match effect {
            Effect::Letter(letter) if letter.index == index && letter.instead_of.is_none() => Some(letter.cause),
            _ => None,
        }),
    })
}

/// The end of the run, if this move is one.
pub fn ended(run: &Run, moved: &Transition) -> Option<Ended> {
    let ends = moved.step.is_none() && moved.from != moved.to && moved.to.is_finished();
    // A run that was opened again has granted some step a fresh budget, or had it done anew.
    let opened_again = || (0..run.plan.steps.len() as u32).any(|n| run.step(n).spent > 0 || run.step(n).generation > 1);
    ends.then(|| Ended {
        workflow: run.plan.workflow.clone(),
        state: moved.to,
        failed: moved.to == State::Failed,
        since_ms: (!opened_again()).then(|| run.id.created_ms()),
        at_ms: moved.at_ms,
    })
}
