//! A coordinator, put together as the shell does it: leases, an owner for each partition, observer, auditor, pump.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use stepfleet_coordinator::{
    shell::{
        auditor::Auditor,
        gates::{Way, pump},
        lease::{self, Leases},
        observer::{Observer, SWEEP_EVERY},
        owner::{Memory, Owner, OwnerError},
        retention::Retention,
    },
    store::{
        link::{Dial, LinkError},
        partition::{Partition, TurnError},
        room,
    },
};
use stepfleet_protocol::id::PartitionId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::process::Process;

/// Time between two looks at the leases: the shell looks more often.
const LOOK_EVERY: Duration = Duration::from_millis(700);
const BACKOFF_MS: [u64; 6] = [0, 20, 50, 100, 250, 500];

type Slots = stepfleet_coordinator::shell::fleet::Slots;

/// Runs one until it is killed.
pub(crate) async fn run(process: Rc<Process>) {
    let (world, dial) = (process.world.clone(), process.dial());
    let (keys, metrics) = (world.keys.clone(), world.metrics.clone());
    let (slots, owned) = (watch::Sender::new(Slots::new()), watch::Sender::new(BTreeSet::new()));
    let partitions = watch::Sender::new(world.partitions);
    let (way, pump) = pump::new(dial.clone(), keys.clone(), world.known.subscribe(), metrics.clone(), world.random());
    let pump = pump.run(partitions.subscribe(), CancellationToken::new());
    let mut observer = Observer::new(dial.clone(), keys.clone(), metrics.clone(), owned.subscribe(), slots.clone());
    let mut auditor = Auditor::new(dial.clone(), keys.clone(), metrics, owned.subscribe());
    process.spawn(pump);
    process.spawn(async move {
        loop {
            observer.sweep().await;
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    });
    process.spawn(async move {
        loop {
            auditor.tick().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    });
    let jitter = Duration::from_millis(world.draw(0..1_000));
    let leases = Leases::new(dial, keys, process.name.clone(), jitter);
    let mut fleet = Fleet { process, leases, owned, slots, way, running: BTreeMap::new(), ended: Rc::default() };
    loop {
        fleet.look().await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Fleet<D: Dial> {
    process: Rc<Process>,
    leases: Leases<D>,
    owned: watch::Sender<BTreeSet<PartitionId>>,
    slots: watch::Sender<Slots>,
    way: Way,
    running: BTreeMap<PartitionId, Rc<Cell<bool>>>,
    ended: Rc<RefCell<Vec<PartitionId>>>,
}

impl<D: Dial> Fleet<D> {
    async fn look(&mut self) {
        for partition in self.ended.take() {
            self.running.remove(&partition);
            self.leases.cool(partition);
        }
        let world = self.process.world.clone();
        drop(self.leases.partitions(world.partitions).await);
        let coordinators = self.leases.beat().await.unwrap_or(1);
        let others = world.all_partitions().filter(|partition| !self.running.contains_key(partition));
        let others: Vec<PartitionId> = others.collect();
        let room = lease::share(world.partitions, coordinators).saturating_sub(self.running.len() as u64);
        for (partition, taken) in self.leases.take(&others, room).await {
            if taken.unwrap_or(false) {
                self.start(partition);
            }
        }
        if self.leases.has_too_many(self.running.len(), world.partitions, coordinators)
            && let Some(stop) = self.running.values().next()
        {
            stop.set(true);
        }
        self.owned.send_replace(self.running.keys().copied().collect());
    }

    fn start(&mut self, partition: PartitionId) {
        let stop = Rc::new(Cell::new(false));
        let task = Task {
            process: self.process.clone(),
            slots: self.slots.subscribe(),
            way: self.way.clone(),
            partition,
            stop: stop.clone(),
            ended: String::new(),
        };
        let ended = self.ended.clone();
        self.process.spawn(async move {
            task.run().await;
            ended.borrow_mut().push(partition);
        });
        self.running.insert(partition, stop);
    }
}

/// One partition while its coordinator has the lease.
struct Task {
    process: Rc<Process>,
    slots: watch::Receiver<Slots>,
    way: Way,
    partition: PartitionId,
    stop: Rc<Cell<bool>>,
    /// How the last reign ended.
    ended: String,
}

impl Task {
    async fn run(mut self) {
        let (world, dial) = (self.process.world.clone(), self.process.dial());
        let mut leases = Leases::new(dial.clone(), world.keys.clone(), self.process.name.clone(), Duration::ZERO);
        let (mut memory, mut failures) = (Memory::default(), 0_usize);
        while !self.stop.get() {
            let (error, used, kept) = self.reign(memory).await;
            memory = kept;
            failures = if used { 0 } else { failures + 1 };
            let Some(error) = error else { break };
            self.ended = format!(" after: {error}");
            memory.learn(&error);
            match &error {
                OwnerError::Turn(TurnError::Refused(_)) if matches!(&error, OwnerError::Turn(t) if t.is_full()) => {
                    drop(room::make(&dial, &world.keys, self.partition).await);
                }
                OwnerError::Turn(TurnError::Link(_) | TurnError::Fenced | TurnError::Refused(_)) => {}
                _ => world.violated("owners", None, format!("{}: {error}", self.partition)),
            }
            tokio::time::sleep(Duration::from_millis(BACKOFF_MS[failures.min(5)])).await;
            match leases.retake(self.partition).await {
                Ok(false) => return,
                Ok(true) | Err(LinkError::Lost(_) | LinkError::TimedOut) => {}
            }
        }
        drop(leases.release(self.partition).await);
    }

    /// One reign: why it ended, whether it got anywhere, and what the next one has to know.
    async fn reign(&mut self, memory: Memory) -> (Option<OwnerError>, bool, Memory) {
        let world = self.process.world.clone();
        let random = world.random();
        let partition = match Partition::take(&self.process.dial(), &world.keys, self.partition, random).await {
            Ok(partition) => partition,
            Err(error) => return (Some(error.into()), false, memory),
        };
        let reign = partition.reign;
        let mut owner = match Owner::begin(partition, &self.process.name, memory.clone()).await {
            Ok(owner) => owner,
            Err(error) => return (Some(error), false, memory),
        };
        world.tell_of(self.partition, format!("{} owns it by {reign}{}", self.process.name, self.ended));
        owner.configure(false, Retention::default());
        if world.chance(0.4) {
            // Much of what it has read waits for its next batches.
            owner.bound_batches(world.draw(1..5) as usize);
        }
        owner.attach(self.way.link());
        owner.set_slots(self.slots.borrow_and_update().clone());
        owner.set_rules(world.known.borrow().rules.clone());
        while !self.stop.get() || !owner.is_settled() {
            if self.slots.has_changed().unwrap_or(false) {
                owner.set_slots(self.slots.borrow_and_update().clone());
            }
            if let Err(error) = owner.turn(self.stop.get()).await {
                return (Some(error), owner.done.commits > 0, owner.memory());
            }
        }
        (None, true, owner.memory())
    }
}
