//! The coordinator process: takes partitions, runs an owner for each, gives them away. The only module that spawns.

mod task;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use rand::RngExt;
use stepfleet_protocol::{id::PartitionId, keys::Keys, name::Name};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use self::task::{Ended, Task};
use super::{
    auditor::Auditor,
    campaign::Campaigns,
    dispatcher::Dispatcher,
    gates::{self, pump},
    lanes::Lanes,
    lease::{self, Leases},
    metrics::Metrics,
    observer::{Observer, Pods},
    policies::{Known, Watcher},
    retention::Retention,
    spans::Spans,
};
use crate::store::link::{Dial, LinkError};

/// Time between two looks at the leases.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// The same while a lease is about to be free.
const LOOK_SOON: Duration = Duration::from_millis(150);
/// A partition that this program cannot own (newer, torn) is left alone for this long.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// How a coordinator is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, unique among coordinators: name and boot id.
    pub name: String,
    /// Keys of the installation.
    pub keys: Keys,
    /// Partitions of a new installation.
    pub partitions: u16,
    /// What is kept of what is done with.
    pub retention: Retention,
    /// Who is told what was committed; none where nobody is.
    pub dispatcher: Option<Dispatcher>,
    /// Where spans go.
    pub spans: Spans,
    /// What Kubernetes says of the pods of workers, if somebody asks it.
    pub pods: Pods,
}

/// Live slots by queue, in one partition's share.
pub type Slots = BTreeMap<Name, u64>;

/// Partitions that are owned here now.
pub type Owned = watch::Sender<BTreeSet<PartitionId>>;

/// Runs a coordinator until `shutdown`; then gives its partitions away and returns.
pub async fn run<D: Dial>(dial: D, config: Config, metrics: Metrics, shutdown: CancellationToken) {
    run_on(Lanes::default(), dial, config, metrics, shutdown).await;
}

/// As [`run`], with the owners on `lanes`.
pub async fn run_on<D: Dial>(lanes: Lanes, dial: D, config: Config, metrics: Metrics, shutdown: CancellationToken) {
    let slots = watch::Sender::new(Slots::new());
    let owned = watch::Sender::new(BTreeSet::new());
    let observer = Observer::new(dial.clone(), config.keys.clone(), metrics.clone(), owned.subscribe(), slots.clone());
    let observing = tokio::spawn(observer.with_pods(config.pods.clone()).run(shutdown.clone()));
    let mut watcher = Watcher::new(dial.clone(), config.keys.clone(), metrics.clone());
    let known = watcher.subscribe();
    // Owners that begin now decide with them from their first batch on.
    watcher.tell().await;
    let watching = tokio::spawn(watcher.run(shutdown.clone()));
    let partitions = watch::Sender::new(0);
    let (gates, pump) = pump::new(dial.clone(), config.keys.clone(), known.clone(), metrics.clone(), rand::random());
    let pumping = tokio::spawn(pump.run(partitions.subscribe(), shutdown.clone()));
    let auditor = Auditor::new(dial.clone(), config.keys.clone(), metrics.clone(), owned.subscribe());
    let auditing = tokio::spawn(auditor.run(shutdown.clone()));
    let campaigns = Campaigns::new(dial.clone(), config.keys.clone(), metrics.clone(), owned.subscribe());
    let campaigning = tokio::spawn(campaigns.run(shutdown.clone()));
    let told = Told { owned, partitions, slots, known, gates };
    let mut fleet = Fleet::new(lanes, dial, config, metrics, told);
    while !shutdown.is_cancelled() {
        fleet.look().await;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            Some(ended) = fleet.tasks.join_next_with_id() => fleet.ended(ended),
            () = tokio::time::sleep(if fleet.leases.is_waiting() { LOOK_SOON } else { LOOK_EVERY }) => {}
        }
    }
    fleet.leave().await;
    // None of them has anything to give away; what a campaign was about to send, its successor sends.
    for task in [observing, pumping, watching, auditing, campaigning] {
        task.abort();
    }
}

struct Fleet<D: Dial> {
    lanes: Lanes,
    dial: D,
    config: Config,
    metrics: Metrics,
    leases: Leases<D>,
    tasks: JoinSet<Ended>,
    /// One for each partition, stopped with its owner.
    dispatchers: JoinSet<()>,
    running: HashMap<PartitionId, CancellationToken>,
    task_of: HashMap<tokio::task::Id, PartitionId>,
    left_alone: HashMap<PartitionId, Instant>,
    told: Told,
    /// As last read; 0 before.
    partitions: u16,
    /// As last read.
    coordinators: u64,
    unreachable: bool,
    /// Partitions of nobody here whose leases could not be read at the last look, as their slots are moving.
    moving: i64,
}

/// What owners and the other tasks of the process tell each other.
struct Told {
    /// Partitions that are owned here.
    owned: Owned,
    /// How many partitions there are.
    partitions: watch::Sender<u16>,
    /// Live slots of workers.
    slots: watch::Sender<Slots>,
    /// The fleet's policies.
    known: watch::Receiver<Known>,
    /// The way to the circuit breakers.
    gates: gates::Way,
}

impl<D: Dial> Fleet<D> {
    fn new(lanes: Lanes, dial: D, config: Config, metrics: Metrics, told: Told) -> Self {
        let jitter = Duration::from_millis(rand::rng().random_range(0..500));
        let leases = Leases::new(dial.clone(), config.keys.clone(), config.name.clone(), jitter);
        let (running, task_of, left_alone) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self {
            lanes,
            dial,
            config,
            metrics,
            leases,
            tasks: JoinSet::new(),
            dispatchers: JoinSet::new(),
            running,
            task_of,
            left_alone,
            told,
            partitions: 0,
            coordinators: 1,
            unreachable: false,
            moving: 0,
        }
    }

    /// Takes what may be taken, and gives away what is too much. What cannot be asked now, because a node is away, stays as
    /// it is, and the rest goes on.
    async fn look(&mut self) {
        while let Some(ended) = self.dispatchers.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "ALERT: a dispatcher panicked; its partition is followed by its next owner");
            }
        }
        let (mut failure, mut moving) = (self.count().await.err(), 0);
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            // Its partition is rightly somebody else's.
            self.ended(ended);
        }
        let here = self.running.iter().filter(|(_, stop)| !stop.is_cancelled()).map(|(partition, _)| *partition);
        let here: Vec<PartitionId> = here.collect();
        self.leases.check(&here).await;
        let alone = |p: &PartitionId| self.left_alone.get(p).is_some_and(|at| at.elapsed() < LEFT_ALONE);
        let others = (0..self.partitions).map(PartitionId).filter(|p| !alone(p) && !self.running.contains_key(p));
        let others: Vec<PartitionId> = others.collect();
        // A coordinator with its share leaves the rest to others, unless nobody comes: they may be gone, or unable.
        let room = lease::share(self.partitions, self.coordinators).saturating_sub(self.running.len() as u64);
        for (partition, taken) in self.leases.take(&others, room).await {
            match taken {
                Ok(true) => self.start(partition),
                Ok(false) => {}
                Err(error) => {
                    moving += i64::from(task::is_moving(&error));
                    failure = Some(error);
                }
            }
        }
        self.metrics.paused.add(moving - std::mem::replace(&mut self.moving, moving));
        if self.leases.has_too_many(self.running.len(), self.partitions, self.coordinators)
            && let Some(stop) = self.running.values().next()
        {
            stop.cancel();
        }
        match failure {
            None => self.unreachable = false,
            Some(error) => {
                if !std::mem::replace(&mut self.unreachable, true) {
                    tracing::warn!(%error, "redis, or a node of it, cannot be reached; trying again");
                }
            }
        }
    }

    /// How many partitions and coordinators there are. What cannot be read is as it was.
    async fn count(&mut self) -> Result<(), LinkError> {
        let partitions = self.leases.partitions(self.config.partitions).await;
        self.leases.policies = self.told.known.borrow().rules.version;
        let coordinators = self.leases.beat().await;
        self.partitions = *partitions.as_ref().unwrap_or(&self.partitions);
        self.told.partitions.send_replace(self.partitions);
        self.coordinators = *coordinators.as_ref().unwrap_or(&self.coordinators);
        partitions.and(coordinators).map(drop)
    }

    fn start(&mut self, partition: PartitionId) {
        let stop = CancellationToken::new();
        let task = Task {
            dial: self.dial.clone(),
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            slots: self.told.slots.subscribe(),
            gates: self.told.gates.link(),
            known: self.told.known.clone(),
            partition,
            stop: stop.clone(),
            is_paused: false,
            leases: Leases::new(self.dial.clone(), self.config.keys.clone(), self.config.name.clone(), Duration::ZERO),
        };
        let task = self.tasks.spawn_on(task.run(), &self.lanes.of(partition.0));
        if let Some(dispatcher) = self.config.dispatcher.clone() {
            self.dispatchers.spawn(dispatcher.follow(partition, self.metrics.clone(), stop.clone()));
        }
        self.task_of.insert(task.id(), partition);
        self.running.insert(partition, stop);
        self.tell();
    }

    fn tell(&self) {
        self.metrics.owned.set(self.running.len() as i64);
        self.metrics.speak_for_fleet(self.running.contains_key(&PartitionId(0)));
        self.told.owned.send_replace(self.running.keys().copied().collect());
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Ended), tokio::task::JoinError>) {
        match ended {
            Ok((task, ended)) => {
                self.task_of.remove(&task);
                self.stop(ended.partition);
                self.leases.cool(ended.partition);
                if ended.left_alone {
                    self.left_alone.insert(ended.partition, Instant::now());
                }
            }
            Err(error) => {
                // A bug outside of a batch. Its partition is taken anew after a while; the others go on.
                let partition = self.task_of.remove(&error.id());
                tracing::error!(%error, ?partition, "ALERT: an owner task panicked");
                if let Some(partition) = partition {
                    self.stop(partition);
                    self.left_alone.insert(partition, Instant::now());
                }
            }
        }
        self.tell();
    }

    /// Forgets an owner that has ended, and stops what goes with it.
    fn stop(&mut self, partition: PartitionId) {
        if let Some(stop) = self.running.remove(&partition) {
            stop.cancel();
        }
    }

    /// Stops every owner, which releases its lease, and leaves.
    async fn leave(&mut self) {
        for stop in self.running.values() {
            stop.cancel();
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.ended(ended);
        }
        while self.dispatchers.join_next().await.is_some() {}
        if let Err(error) = self.leases.leave().await {
            tracing::debug!(%error, "left without saying so");
        }
    }
}
