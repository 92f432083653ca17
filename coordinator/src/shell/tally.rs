//! What a batch did, for metrics: facts, told once its commit has applied. Pure; a batch that is given up tells nothing.

use stepfleet_protocol::{
    failure::Category,
    message::{JobRef, Outcome, Returned},
    name::Name,
    state::State,
};

use super::{
    intake::{Item, Origin, What},
    spans::facts::{self, Fact, Traced},
};
use crate::machine::{
    decision::{Cause, Decision, Effect, Transition, Why},
    event::{Event, Timer},
    run::Run,
};

/// What became of a job, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// It was done.
    Completed,
    /// Its attempt failed.
    Failed,
    /// Its worker stopped it because it was told to.
    Cancelled,
    /// It was handed back, or never came to a worker.
    Returned,
    /// It was handed back because of a gate.
    Gated,
    /// Its worker died.
    Lost,
    /// Its owner gave it up long after its time-out.
    TimedOut,
}

impl JobEnd {
    /// Every end with its label.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Completed, "completed"),
        (Self::Failed, "failed"),
        (Self::Cancelled, "cancelled"),
        (Self::Returned, "returned"),
        (Self::Gated, "gated"),
        (Self::Lost, "lost"),
        (Self::TimedOut, "timed_out"),
    ];

    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed(_) => Self::Completed,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Returned(Returned::Gated) => Self::Gated,
            Outcome::Returned(Returned::Drain | Returned::NoHandler | Returned::Surplus) => Self::Returned,
        }
    }
}

/// One fact. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A run began.
    Submitted,
    /// A run of this workflow ended so, so long after it was submitted.
    RunEnded(Name, State, u64),
    /// A step of this queue ended so.
    StepEnded(Name, State),
    /// A job went to the queue; for one that nothing held back, when what made it ready came to the log.
    Dispatched(Name, Option<u64>),
    /// The handler of a job began, so long after the job was put on its stream.
    Begun(Name, u64),
    /// A job ended; a handler's time, if one ran.
    JobEnded(Name, JobEnd, Option<u64>),
    /// An attempt failed.
    Failed(Name, Category),
    /// Another attempt was promised.
    Retried(Name, Category),
    /// A step gave up.
    Letter(Name, Cause),
    /// A dead letter was replayed.
    Replayed,
    /// An attempt was done or failed that nobody waited for any more.
    Ignored,
    /// A timer was decided, so long after it was due.
    Timer(&'static str, u64),
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Tally {
    /// The facts, in order.
    pub seen: Vec<Seen>,
    /// When the oldest decided entry came to the log, in Unix milliseconds of the server.
    pub oldest_ms: Option<u64>,
    /// The server's time when the batch was gathered.
    pub server_ms: u64,
    /// Spans are told.
    pub traces: bool,
    /// The spans, in order.
    pub spans: Vec<Traced>,
    /// When the present item came, in Unix milliseconds.
    pub came_ms: u64,
}

/// Kinds of timers, as labels.
pub const TIMERS: [&str; 4] = ["run", "retry", "attempt", "start"];

/// What has to be known of an event after it was decided.
#[derive(Debug)]
pub enum About {
    /// It speaks of a job: which, and how it ended, if it did.
    Job(JobRef, Option<(JobEnd, Option<u64>)>),
    /// The owner's own time-out of a job.
    AttemptTimer,
    /// Anything else.
    Other,
}

impl About {
    /// Of an event that is about to be decided.
    pub fn of(event: &Event) -> Self {
        let job = |of: &JobRef, end| Self::Job(of.clone(), end);
        match event {
            Event::Result { of, run_ms, outcome, .. } => {
                let ran = !matches!(outcome, Outcome::Returned(_));
                job(of, Some((JobEnd::of(outcome), ran.then_some(*run_ms))))
            }
            Event::Started { of, .. } => job(of, None),
            Event::Lost { of, counted, .. } => {
                job(of, Some((if *counted { JobEnd::Lost } else { JobEnd::Returned }, None)))
            }
            Event::Timer(Timer::Attempt { .. }) => Self::AttemptTimer,
            _ => Self::Other,
        }
    }
}

impl Tally {
    /// An item is decided now.
    pub fn item(&mut self, item: &Item) {
        self.came_ms = item.at_ms;
        match (item.origin, &item.what) {
            (Origin::Entry(..), _) => {
                self.oldest_ms = Some(self.oldest_ms.map_or(item.at_ms, |oldest| oldest.min(item.at_ms)));
            }
            (Origin::Timer, What::Event(Event::Timer(timer))) => {
                let kind = match timer {
                    Timer::Run => TIMERS[0],
                    Timer::Retry { .. } => TIMERS[1],
                    Timer::Attempt { .. } => TIMERS[2],
                    Timer::Start { .. } => TIMERS[3],
                };
                self.seen.push(Seen::Timer(kind, self.server_ms.saturating_sub(item.at_ms)));
            }
            _ => {}
        }
    }

    /// An event was decided, at `now_ms` of the server's clock.
    pub fn decided(&mut self, run: &Run, about: About, decision: &Decision, now_ms: u64) {
        if self.traces {
            self.trace(run, &about, decision, now_ms);
        }
        let queue = |index: u32| run.plan.steps[index as usize].queue.clone();
        let mut category = None;
        for effect in &decision.effects {
            match effect {
                Effect::KeepError(error) => {
                    category = Some(error.failure.category);
                    self.seen.push(Seen::Failed(queue(error.index), error.failure.category));
                }
                Effect::Letter(letter) if letter.instead_of.is_none() => {
                    self.seen.push(Seen::Letter(queue(letter.index), letter.cause));
                }
                _ => {}
            }
        }
        for transition in &decision.transitions {
            match transition.step {
                None => self.run_moved(run, transition),
                Some(index) => self.step_moved(run, (index, transition), &about, category),
            }
        }
        let awaited = decision.transitions.iter().any(|t| t.why != Why::Ignored);
        match about {
            About::Job(of, Some((end, run_ms))) if awaited => {
                self.seen.push(Seen::JobEnded(of.queue, end, run_ms));
            }
            About::AttemptTimer => {
                let step = decision.transitions.iter().find_map(|t| t.step);
                self.seen.extend(step.map(|index| Seen::JobEnded(queue(index), JobEnd::TimedOut, None)));
            }
            About::Job(..) | About::Other => {}
        }
    }

    fn trace(&mut self, run: &Run, about: &About, decision: &Decision, now_ms: u64) {
        let Some(of) = facts::recorded(run) else { return };
        let settled = facts::settled(run, about, decision, (self.came_ms, now_ms));
        let ended = decision.transitions.iter().filter_map(|moved| facts::ended(run, moved));
        let facts = settled.map(|settled| Fact::Settled(Box::new(settled)));
        let facts = facts.into_iter().chain(ended.map(|ended| Fact::Ended(Box::new(ended))));
        self.spans.extend(facts.map(|fact| Traced { run: run.id, of, fact }));
    }

    fn run_moved(&mut self, run: &Run, moved: &Transition) {
        match moved.why {
            Why::Submitted => self.seen.push(Seen::Submitted),
            _ if moved.from != moved.to && moved.to.is_finished() => {
                let ms = moved.at_ms.saturating_sub(run.id.created_ms());
                self.seen.push(Seen::RunEnded(run.plan.workflow.clone(), moved.to, ms));
            }
            _ => {}
        }
    }

    fn step_moved(&mut self, run: &Run, moved: (u32, &Transition), about: &About, category: Option<Category>) {
        let (index, moved) = moved;
        let queue = || run.plan.steps[index as usize].queue.clone();
        match (moved.why, about) {
            // One that was lost or handed back unseen began nowhere that anybody knows of.
            (Why::Begun, About::Job(of, None | Some((_, Some(_))))) => {
                self.seen.push(Seen::Begun(of.queue.clone(), moved.at_ms.saturating_sub(of.entry.ms)));
            }
            (Why::RetryPlanned, _) => {
                self.seen.extend(category.map(|category| Seen::Retried(queue(), category)));
            }
            (Why::Replayed, _) => self.seen.push(Seen::Replayed),
            // A worker that confirms a stop did no work in vain.
            (Why::Ignored, About::Job(_, Some((JobEnd::Completed | JobEnd::Failed, _)))) => {
                self.seen.push(Seen::Ignored);
            }
            _ => {}
        }
        let gave_up = moved.why == Why::GaveUp && run.step(index).state == State::Failed;
        let ended = matches!(moved.to, State::Completed | State::Cancelled | State::Skipped);
        if moved.from != moved.to && (ended || gave_up) {
            self.seen.push(Seen::StepEnded(queue(), moved.to));
        }
    }
}
