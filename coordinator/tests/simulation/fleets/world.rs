//! What all processes of a story share: the server, the one generator, the ledger of what truly happened, the trace.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use stepfleet_coordinator::{
    machine::rules::Rules,
    shell::{metrics::Metrics, policies::Known},
    store::memory::{Clock, MemoryServer},
};
use stepfleet_protocol::{
    id::{CommandId, JobId, PartitionId, RunId, WorkerId},
    keys::{Keys, PREFIX_DEFAULT, PartitionKeys},
    message::{Answer, Outcome, Verb},
    policy::{BreakerPolicy, LimitPolicy, Policies},
    workflow::Workflow,
};
use tokio::{sync::watch, time::Instant};

use super::scripts::{self, Gates};

/// A promise that was broken.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// Which checker says so.
    pub(crate) checker: &'static str,
    /// The run that it is about.
    pub(crate) run: Option<RunId>,
    pub(crate) what: String,
}

/// Something that happened, for the trace of a story that went wrong.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) at_ms: u64,
    /// The run that it is about.
    pub(crate) run: Option<RunId>,
    /// The partition that it is about, if it is about no run.
    pub(crate) partition: Option<PartitionId>,
    pub(crate) what: String,
}

/// One job at a worker, as the worker knows it.
#[derive(Debug, Clone)]
pub(crate) struct Try {
    pub(crate) job: JobId,
    pub(crate) run: RunId,
    pub(crate) index: u32,
    pub(crate) generation: u32,
    pub(crate) worker: WorkerId,
    /// Milliseconds of the story, which no clock jump touches.
    pub(crate) begun: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) outcome: Option<Outcome>,
    /// When the log had taken its result.
    pub(crate) reported: Option<u64>,
    /// The server's time of that entry.
    pub(crate) logged_ms: Option<u64>,
}

/// A submitted run.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) workflow: Rc<Workflow>,
    /// The log has taken it.
    pub(crate) accepted: bool,
}

/// What truly happened, whatever the store says.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) runs: BTreeMap<RunId, Submitted>,
    pub(crate) tries: Vec<Try>,
    /// What a job was for when it was first seen.
    pub(crate) jobs: BTreeMap<JobId, (RunId, u32, u32, u32)>,
    /// Spans in which a worker did not live, was stopped or cut off, in milliseconds of the story.
    pub(crate) absent: BTreeMap<WorkerId, Vec<(u64, u64)>>,
    /// Partitions that were set back, and when.
    pub(crate) set_back: BTreeMap<PartitionId, Vec<u64>>,
    /// The server's clock jumped.
    pub(crate) jumped: bool,
    /// Commands that were sent, and their answers.
    pub(crate) commands: BTreeMap<CommandId, (RunId, Verb, Vec<Answer>)>,
    /// Entries of logs that are none.
    pub(crate) garbage: u64,
    /// More of them, of which nobody heard whether they came.
    pub(crate) perhaps_garbage: u64,
    /// Worker that was cut off or stopped at this moment, since when.
    pub(crate) away: BTreeMap<WorkerId, u64>,
    pub(crate) violation: Option<Violation>,
}

/// One story's world.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: RefCell<StdRng>,
    pub(crate) server: MemoryServer,
    /// What limits and circuit breakers have in mind.
    pub(crate) gates: Arc<Mutex<Gates>>,
    pub(crate) keys: Keys,
    pub(crate) partitions: u16,
    pub(crate) known: watch::Sender<Known>,
    pub(crate) metrics: Metrics,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) trace: RefCell<Vec<Told>>,
    pub(crate) calm: Cell<bool>,
    /// The client has submitted all that it had.
    pub(crate) all_submitted: Cell<bool>,
    /// The dependency behind `target:bank` is down.
    pub(crate) bank_is_down: Cell<bool>,
    pub(crate) limit: Option<u32>,
    pub(crate) trips: Arc<AtomicU64>,
    began: Instant,
    ids: Cell<u64>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Rc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let partitions = if rng.random_bool(0.2) { 3 } else { rng.random_range(1..=2) };
        let limit = rng.random_bool(0.35).then(|| rng.random_range(2..6));
        let server = MemoryServer::new(Clock::default());
        Rc::new(Self {
            seed,
            rng: RefCell::new(rng),
            gates: scripts::register(&server),
            server,
            keys: Keys::new(PREFIX_DEFAULT),
            partitions,
            known: watch::Sender::new(Known { rules: Rules::new(1, policies(limit)), looks: 1 }),
            metrics: Metrics::new(),
            ledger: RefCell::default(),
            trace: RefCell::default(),
            calm: Cell::new(false),
            all_submitted: Cell::new(false),
            bank_is_down: Cell::new(false),
            limit,
            trips: Arc::default(),
            began: Instant::now(),
            ids: Cell::new(0),
        })
    }

    pub(crate) fn all_partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions).map(PartitionId)
    }

    pub(crate) fn part(&self, partition: PartitionId) -> PartitionKeys {
        self.keys.partition(partition)
    }

    /// Milliseconds of the story.
    pub(crate) fn at(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The server's time.
    pub(crate) fn server_ms(&self) -> u64 {
        (self.server.clock().now_us() / 1_000) as u64
    }

    pub(crate) fn tell(&self, run: Option<RunId>, what: String) {
        self.trace.borrow_mut().push(Told { at_ms: self.server_ms(), run, partition: None, what });
    }

    pub(crate) fn tell_of(&self, partition: PartitionId, what: String) {
        self.trace.borrow_mut().push(Told { at_ms: self.server_ms(), run: None, partition: Some(partition), what });
    }

    /// A promise is broken. The first one counts: the others mostly follow from it.
    pub(crate) fn violated(&self, checker: &'static str, run: Option<RunId>, what: String) {
        let first = Violation { checker, run, what };
        self.ledger.borrow_mut().violation.get_or_insert(first);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.ledger.borrow().violation.is_some()
    }

    pub(crate) fn chance(&self, of: f64) -> bool {
        self.rng.borrow_mut().random_bool(of)
    }

    pub(crate) fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.borrow_mut().random_range(range)
    }

    pub(crate) fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.draw(0..from.len() as u64) as usize]
    }

    pub(crate) async fn pause(&self, ms: std::ops::Range<u64>) {
        let ms = self.draw(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub(crate) fn id(&self) -> u64 {
        self.ids.set(self.ids.get() + 1);
        self.ids.get()
    }

    /// Whether the worker was away for a while in a span of the story.
    pub(crate) fn was_away(&self, worker: &WorkerId, (from, to): (u64, u64)) -> bool {
        let ledger = self.ledger.borrow();
        let now = ledger.away.get(worker).is_some_and(|since| *since <= to);
        now || ledger.absent.get(worker).is_some_and(|spans| spans.iter().any(|(a, b)| *a <= to && *b >= from))
    }

    /// Whether what the store knows of the run was ever set back.
    pub(crate) fn was_set_back(&self, run: RunId) -> bool {
        self.ledger.borrow().set_back.contains_key(&run.partition())
    }

    /// Runs that a log has taken.
    pub(crate) fn accepted(&self) -> BTreeSet<RunId> {
        self.ledger.borrow().runs.iter().filter(|(_, run)| run.accepted).map(|(run, _)| *run).collect()
    }

    pub(crate) fn workflow(&self, run: RunId) -> Option<Rc<Workflow>> {
        self.ledger.borrow().runs.get(&run).map(|run| run.workflow.clone())
    }
}

/// Breakers that open soon and are tried soon, and a limit in half of the stories.
fn policies(limit: Option<u32>) -> Policies {
    let mut policies: Policies = Policies {
        breaker: Some(BreakerPolicy {
            failures: Some(4),
            minimum_calls: Some(4),
            break_for: Some(stepfleet_protocol::duration::Millis(3_000)),
            canaries: Some(2),
            ..BreakerPolicy::default()
        }),
        ..Policies::default()
    };
    let of = |concurrency| LimitPolicy { concurrency: Some(concurrency), ..LimitPolicy::default() };
    policies.limits.extend(limit.map(|most| ("target:bank".to_owned(), of(most))));
    policies
}
