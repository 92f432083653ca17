//! Walks the open runs of the partitions owned here, and looks whether every step that is to run is somewhere: in a
//! ready set, at a gate, on a stream or at a worker, among the timers. It decides nothing: what is nowhere in two
//! looks, with the step unchanged from the first to the last, is told to the log, and the owner repairs it there.
//!
//! Why this is enough: a commit moves a step and its place at once, and a step that waits for a job names it. A step
//! whose packed state is the same before and after a look was in that state during the look, so its place had to be
//! there.
//!
//! The pace is steady: [`RUNS_PER_TICK`] runs a second, so a walk over few runs ends within a second and is repeated
//! every [`WALK_EVERY`]; one over a million takes half an hour. Letters of finished steps, and steps of finished
//! runs, are not looked at: retention takes letters away.

mod places;
mod suspects;
mod walk;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use stepfleet_protocol::{
    codec,
    id::{JobId, PartitionId, RunId},
    keys::Keys,
    message::{Audit, Body, LogEntry},
    name::Name,
};
use tokio::{
    sync::watch as channel,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::{suspects::Suspect, walk::Walk};
use super::{
    links::{Ask, Links},
    metrics::Metrics,
};
use crate::store::link::Dial;

/// Time between two steps of the walk.
const TICK: Duration = Duration::from_secs(1);
/// Runs that one tick looks at.
pub const RUNS_PER_TICK: usize = 500;
/// Time between the beginnings of two walks, at least.
pub const WALK_EVERY: Duration = Duration::from_secs(5);
/// Suspects in mind, at most: the walk comes by again for the others.
const SUSPECTS_MAX: usize = 20_000;
/// Asks of one trip.
const ASKS_PER_TRIP: usize = 100;
/// Plans in mind.
const PLANS_KEPT: usize = 200;

/// Where a step has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// In the ready set of its queue, or at a gate.
    Ready,
    /// Among the timers.
    Timer(JobId),
    /// On the stream of its queue, or at a worker.
    Job(JobId),
    /// The run itself: it waits for nothing.
    Nothing,
    /// The run's time-out, among the timers.
    Timeout,
}

impl Place {
    /// As metrics and log lines call what was missing.
    fn missing(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Timer(_) => "timer",
            Self::Job(_) => "job",
            Self::Nothing => "run",
            Self::Timeout => "timeout",
        }
    }
}

/// A step of a run; of the run itself without a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Subject {
    run: RunId,
    index: Option<u32>,
}

/// What is needed of a plan.
#[derive(Debug)]
struct Followed {
    /// The queue of each step.
    queues: Vec<Name>,
    /// The runs' time-out; 0 for none.
    timeout_ms: u64,
}

/// The auditor of one coordinator.
pub struct Auditor<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: channel::Receiver<BTreeSet<PartitionId>>,
    walk: Option<Walk>,
    walked: Option<Instant>,
    suspects: HashMap<Subject, Suspect>,
    /// What is needed of plans, by their hash.
    plans: HashMap<String, Arc<Followed>>,
}

impl<D: Dial> Auditor<D> {
    /// For the partitions in `owned`.
    pub fn new(dial: D, keys: Keys, metrics: Metrics, owned: channel::Receiver<BTreeSet<PartitionId>>) -> Self {
        Self {
            links: Links::new(dial),
            keys,
            metrics,
            owned,
            walk: None,
            walked: None,
            suspects: HashMap::new(),
            plans: HashMap::new(),
        }
    }

    /// Walks until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !shutdown.is_cancelled() {
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    /// One step of the walk, and a second look at suspects that are due. What cannot be asked now is asked later.
    pub async fn tick(&mut self) {
        let owned = self.owned.borrow().clone();
        self.suspects.retain(|subject, _| owned.contains(&subject.run.partition()));
        self.look_again().await;
        if self.walk.is_none() && self.walked.is_none_or(|at| at.elapsed() >= WALK_EVERY) {
            self.walked = Some(Instant::now());
            self.walk = Some(Walk::over(owned.into_iter().collect()));
        }
        self.step().await;
    }

    /// Tells the log of the partition. The commit that decides it says in the history what was repaired.
    async fn tell(&mut self, subject: Subject, place: Place) {
        let Subject { run, index } = subject;
        let keys = self.keys.partition(run.partition());
        let (log, counters) = (keys.log(), keys.counters());
        let job = if let Place::Job(job) = place { Some(job) } else { None };
        let wire =
            codec::encode(&LogEntry::new(Body::Audit(Audit { run, index, job, timeout: place == Place::Timeout })));
        let (mut add, mut count) = (redis::cmd("XADD"), redis::cmd("HINCRBY"));
        add.arg(&log).arg("*").arg(wire.field).arg(wire.bytes);
        count.arg(&counters).arg("repairs").arg(1);
        let what = place.missing();
        match self.links.gather(vec![Ask::new(&log, vec![add, count])], 1).await.swap_remove(0) {
            Ok(answer) if crate::store::reply::error(&answer.replies[0]).is_none() => {
                tracing::warn!(%run, ?index, what, "a step or a timer was in no place; its owner repairs it");
                self.metrics.repairs.with_label_values(&[what]).inc();
            }
            // It is found again by a later walk.
            Ok(_) | Err(_) => tracing::debug!(%run, ?index, what, "the log took no observation"),
        }
    }
}
