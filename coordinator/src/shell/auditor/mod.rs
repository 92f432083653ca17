//! Walks the open runs of the partitions owned here, and looks whether every step that is to run is somewhere: in a
//! ready set, at a gate, on a stream or at a worker, among the timers. It decides nothing: what is nowhere in two
//! looks, with the step unchanged from the first to the last, is told to the log, and the owner repairs it there.
//!
//! Why this is enough: a commit moves a step and its place at once, and a step that waits for a job names it. A step
//! whose packed state is the same before and after a look was in that state during the look, so its place had to be
//! there.
//!
//! So it is with an open dead letter, which its step names until the commit that takes the letter away; with the time-out
//! of a run, which is armed until the run ends or begins to stop, and stored when the run is no longer young; and with work
//! items, of which a run with a transition in progress has one at least.
//!
//! The pace is steady: [`RUNS_PER_TICK`] runs a second, so a walk over few runs ends within a second and is repeated
//! every [`WALK_EVERY`]; one over a million takes half an hour. Failed runs are kept for long and only have letters to
//! lose: they have a walk of their own, at [`FAILED_PER_TICK`] runs a second every [`FAILED_EVERY`]. Whoever asks by
//! `doctor --audit` gets both walks as soon as those under way are done.

mod ask;
mod letters;
mod places;
mod suspects;
mod walk;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use stepfleet_protocol::{
    codec,
    id::{JobId, PartitionId, RunId, StreamId},
    keys::Keys,
    message::{Audit, Body, LogEntry},
    missing::Missing,
};
use tokio::{
    sync::watch as channel,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::{
    suspects::Suspect,
    walk::{Steps, Walk},
};
use super::{
    links::{Ask, Links},
    metrics::Metrics,
};
use crate::store::{link::Dial, read::followed::trace_id, record, reply};

/// Time between two steps of the walk.
const TICK: Duration = Duration::from_secs(1);
/// Runs that one tick looks at.
pub const RUNS_PER_TICK: usize = 500;
/// Time between the beginnings of two walks, at least.
pub const WALK_EVERY: Duration = Duration::from_secs(5);
/// Failed runs that one tick looks at.
pub const FAILED_PER_TICK: usize = 100;
/// Time between the beginnings of two walks over failed runs, at least.
pub const FAILED_EVERY: Duration = Duration::from_secs(600);
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
    /// On the stream of its queue or of its fallback's, or at a worker.
    Job(JobId),
    /// The run itself: it waits for nothing.
    Nothing,
    /// The time-out of the run, among the timers.
    Timeout,
    /// A work item of the run, in the list.
    Work,
    /// The open dead letter of the step, in the stream and in its group.
    Letter(StreamId),
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
            Self::Work => "work",
            Self::Letter(_) => "letter",
        }
    }
}

/// Every word for what may be missing.
pub const MISSING: [&str; 7] = ["ready", "timer", "job", "run", "timeout", "work", "letter"];

/// A step of a run; of the run itself without a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    run: RunId,
    index: Option<u32>,
}

/// The auditor of one coordinator.
pub struct Auditor<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: channel::Receiver<BTreeSet<PartitionId>>,
    walk: Option<Walk>,
    walked: Option<Instant>,
    /// The walk over failed runs.
    failed: Option<Walk>,
    failed_walked: Option<Instant>,
    /// When somebody asked for walks that are not done yet, in Unix milliseconds of the server.
    asked: HashMap<PartitionId, ask::Asked>,
    suspects: BTreeMap<Subject, Suspect>,
    /// What a look needs of a plan, by its hash.
    plans: HashMap<String, Arc<Steps>>,
    /// The walk over open runs looks at their letters, and when one last did.
    letters: (bool, Option<Instant>),
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
            failed: None,
            failed_walked: None,
            asked: HashMap::new(),
            suspects: BTreeMap::new(),
            plans: HashMap::new(),
            letters: (false, None),
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
        self.hear(&owned).await;
        if self.walk.is_none() && self.walked.is_none_or(|at| at.elapsed() >= WALK_EVERY) {
            self.walked = Some(Instant::now());
            self.walk = Some(Walk::over_open(owned.iter().copied().collect()));
            // They are large, and runs that are held keep them for long.
            let due = self.letters.1.is_none_or(|at| at.elapsed() >= FAILED_EVERY) || !self.asked.is_empty();
            self.letters = (due, if due { self.walked } else { self.letters.1 });
        }
        self.step(RUNS_PER_TICK).await;
        if self.failed.is_none() && self.failed_walked.is_none_or(|at| at.elapsed() >= FAILED_EVERY) {
            self.failed_walked = Some(Instant::now());
            self.failed = Some(Walk::over_failed(owned.into_iter().collect()));
        }
        std::mem::swap(&mut self.walk, &mut self.failed);
        self.step(FAILED_PER_TICK).await;
        std::mem::swap(&mut self.walk, &mut self.failed);
    }

    /// Tells the log of the partition. The commit that decides it says in the history what was repaired.
    async fn tell(&mut self, subject: Subject, place: Place) {
        let Subject { run, index } = subject;
        let keys = self.keys.partition(run.partition());
        let (log, counters) = (keys.log(), keys.counters());
        let at = Audit { index, ..Audit::of_run(run) };
        let audit = match place {
            Place::Ready | Place::Timer(_) | Place::Nothing => at,
            Place::Job(job) => Audit { job: Some(job), ..at },
            Place::Timeout => at.without(Missing::Timeout),
            Place::Work => at.without(Missing::Work),
            Place::Letter(letter) => at.without(Missing::Letter { id: letter }),
        };
        let wire = codec::encode(&LogEntry::new(Body::Audit(audit)));
        let [mut add, mut count, mut trace] = ["XADD", "HINCRBY", "HGET"].map(redis::cmd);
        add.arg(&log).arg("*").arg(wire.field).arg(wire.bytes);
        count.arg(&counters).arg("repairs").arg(1);
        trace.arg(self.keys.partition(run.partition()).run(&run)).arg(record::FIELD_TRACE);
        let what = place.missing();
        match self.links.gather(vec![Ask::new(&log, vec![add, count, trace])], 1).await.swap_remove(0) {
            Ok(answer) if reply::error(&answer.replies[0]).is_none() => {
                let trace = trace_id(answer.replies.get(2).and_then(reply::bytes));
                tracing::warn!(%run, trace, ?index, what, "something was in no place; its owner repairs it");
                self.metrics.repairs.with_label_values(&[what]).inc();
            }
            // It is found again by a later walk.
            Ok(_) | Err(_) => tracing::debug!(%run, ?index, what, "the log took no observation"),
        }
    }
}
