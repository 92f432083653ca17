//! Gauges of the whole fleet, read from Redis when somebody scrapes. One coordinator shows them, the owner of partition 0:
//! what several processes tell of the same thing would be added up.

mod wanted;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{Gauge, GaugeVec, proto::MetricFamily};
use stepfleet_metric::{Families, Family};
use tokio::sync::Mutex;

use self::wanted::{Memory, Ran};
use super::{
    error::ApiResult,
    fleet::{queue_views, state_of},
    operate::metrics_of,
    subscribers,
    view::{QueueView, Range},
};
use crate::{
    shell::told::Work,
    store::client::{Client, ClientError},
};

/// Scrapes within this time get what the last one got.
const FRESH: Duration = Duration::from_secs(1);
/// Whoever scrapes gets the rest without the fleet after this time: Redis does not answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A timer that was due so long ago, in milliseconds, should have been decided.
const OVERDUE_MS: u64 = 10_000;
/// States of workers, as labels.
const WORKER_STATES: [&str; 4] = ["running", "draining", "silent", "unknown"];

/// What of the fleet is shown, and what is kept in mind for it.
#[derive(Debug, Clone)]
pub(super) struct Gauges {
    target: Duration,
    shared: Arc<Mutex<Fleet>>,
}

impl Gauges {
    /// With the time that a job may wait, for the number of wanted workers.
    pub(super) fn new(target: Duration) -> Self {
        Self { target, shared: Arc::new(Mutex::new(Fleet::new())) }
    }

    /// The gauges as Redis knows them now; none if it does not answer within three seconds.
    pub(super) async fn gather(&self, client: &Client, work: &Work) -> Vec<MetricFamily> {
        let read = tokio::time::timeout(PATIENCE, self.read(client, work)).await;
        read.ok().and_then(Result::ok).unwrap_or_default()
    }

    async fn read(&self, client: &Client, work: &Work) -> ApiResult<Vec<MetricFamily>> {
        let mut fleet = self.shared.lock().await;
        if fleet.read_at.is_none_or(|at| at.elapsed() > FRESH) {
            fleet.read(client, work, self.target).await?;
            fleet.read_at = Some(Instant::now());
        }
        Ok(fleet.families.registry.gather())
    }
}

/// The families, for the documentation.
pub(super) fn families() -> Vec<Family> {
    Fleet::new().families.known().to_vec()
}

#[derive(Debug)]
struct Fleet {
    families: Families,
    memory: Memory,
    read_at: Option<Instant>,
    queues: Queues,
    servers: Servers,
    runs: GaugeVec,
    dead_letters: Gauge,
    workers: GaugeVec,
    coordinators: Gauge,
    parked: Gauge,
    timers: Gauge,
    timers_overdue: Gauge,
    partitions: Gauge,
    unowned: Gauge,
    counters: GaugeVec,
    log_lag: Gauge,
    outbox_lag: GaugeVec,
}

impl Fleet {
    fn new() -> Self {
        let mut families = Families::default();
        let f = &mut families;
        Self {
            memory: Memory::default(),
            read_at: None,
            queues: Queues::new(f),
            servers: Servers::new(f),
            runs: f.levels("stepfleet_runs", "Runs that go on or are suspended", &["state"]),
            dead_letters: f.level("stepfleet_dead_letters", "Open dead letters"),
            workers: f.levels("stepfleet_workers", "Registered workers by what they say and how they beat", &["state"]),
            coordinators: f.level("stepfleet_coordinators", "Live coordinators"),
            parked: f.level("stepfleet_parked_steps", "Ready steps that wait at breakers, limits and paused queues"),
            timers: f.level("stepfleet_timers", "Timers that are set"),
            timers_overdue: f.level(
                "stepfleet_timers_overdue",
                "Timers that were due ten seconds ago or earlier and are not decided",
            ),
            partitions: f.level("stepfleet_partitions", "Partitions of the installation"),
            unowned: f.level("stepfleet_partitions_unowned", "Partitions without an owner"),
            counters: f.levels(
                "stepfleet_partition_incidents",
                "What was dropped or repaired, summed over partitions",
                &["name"],
            ),
            log_lag: f
                .level("stepfleet_log_lag", "Entries of logs that no owner has decided, at most; exact when it is 0"),
            outbox_lag: f.levels(
                "stepfleet_outbox_lag",
                "Entries of the outbox that the subscriber has not seen, summed over partitions",
                &["subscriber"],
            ),
            families,
        }
    }

    async fn read(&mut self, client: &Client, work: &Work, target: Duration) -> ApiResult<()> {
        self.queues.reset();
        let queues = queue_views(client).await?;
        self.memory.keep(&queues);
        for queue in &queues {
            let wanted = self.memory.wanted(queue, ran(work, &queue.name), target);
            self.queues.set(queue, wanted);
        }
        let runs = metrics_of(client, Range::Hour).await?;
        self.runs.with_label_values(&["active"]).set(runs.active as f64);
        self.runs.with_label_values(&["suspended"]).set(runs.suspended as f64);
        self.dead_letters.set(runs.dead_letters as f64);
        self.outbox_lag.reset();
        for view in subscribers::views(client).await? {
            self.outbox_lag.with_label_values(&[view.name.as_str()]).set(view.lag as f64);
        }
        self.servers.set(client);
        self.members(client).await?;
        self.logs(client).await
    }

    async fn members(&mut self, client: &Client) -> ApiResult<()> {
        let workers = client.workers().await?;
        for state in WORKER_STATES {
            let count = workers.iter().filter(|worker| state_of(worker) == state).count();
            self.workers.with_label_values(&[state]).set(count as f64);
        }
        let now_ms = client.server_time_ms().await?;
        self.coordinators.set(client.coordinators(now_ms).await?.len() as f64);
        self.timers_overdue.set(client.overdue_timers(now_ms.saturating_sub(OVERDUE_MS)).await? as f64);
        let gates: Vec<_> = client.gates().await.map_err(ClientError::from)?.into_keys().collect();
        self.parked.set(client.parked(&gates).await?.into_iter().sum::<u64>() as f64);
        Ok(())
    }

    async fn logs(&mut self, client: &Client) -> ApiResult<()> {
        self.counters.reset();
        let seen = client.see_partitions(0, u16::MAX).await?;
        self.partitions.set(seen.len() as f64);
        self.unowned.set(seen.iter().filter(|p| p.owner.is_none()).count() as f64);
        self.timers.set(seen.iter().map(|p| p.timers).sum::<u64>() as f64);
        self.log_lag.set(seen.iter().map(|p| p.log_lag).sum::<u64>() as f64);
        for (name, value) in seen.iter().flat_map(|p| &p.counters) {
            self.counters.with_label_values(&[name.as_str()]).add(*value as f64);
        }
        Ok(())
    }
}

/// How long jobs of a queue have run on partitions of this coordinator: a sample of all, as runs are spread evenly.
fn ran(work: &Work, queue: &str) -> Ran {
    let (jobs, seconds) = work.ran(queue);
    Ran { jobs, seconds }
}

#[derive(Debug)]
struct Queues {
    depth: GaugeVec,
    ready: GaugeVec,
    lag: GaugeVec,
    pending: GaugeVec,
    oldest: GaugeVec,
    drain: GaugeVec,
    workers: GaugeVec,
    slots: GaugeVec,
    wanted: GaugeVec,
    paused: GaugeVec,
}

impl Queues {
    fn new(f: &mut Families) -> Self {
        const BY: &[&str] = &["queue"];
        Self {
            depth: f.levels("stepfleet_queue_depth", "Jobs that no worker has taken, ready or on streams", BY),
            ready: f.levels("stepfleet_queue_ready", "Ready steps that are not on a stream yet", BY),
            lag: f.levels("stepfleet_queue_lag", "Jobs on streams that no worker has taken", BY),
            pending: f.levels("stepfleet_queue_pending", "Jobs that workers have", BY),
            oldest: f.levels(
                "stepfleet_queue_oldest_seconds",
                "How long the oldest job that nobody has taken has waited; 0 if none waits",
                BY,
            ),
            drain: f.levels(
                "stepfleet_queue_drain_seconds",
                "How long what waits will take at the rate of late; absent while no job is taken",
                BY,
            ),
            workers: f.levels("stepfleet_queue_workers", "Live workers that read the queue", BY),
            slots: f.levels("stepfleet_queue_slots", "Slots of live workers that read the queue", BY),
            wanted: f.levels(
                "stepfleet_queue_wanted_workers",
                "Workers that the queue wants so that what waits begins in time, those at work included: for autoscalers",
                BY,
            ),
            paused: f.levels("stepfleet_queue_paused", "1 while somebody has paused the queue", BY),
        }
    }

    fn all(&self) -> [&GaugeVec; 10] {
        let Self { depth, ready, lag, pending, oldest, drain, workers, slots, wanted, paused } = self;
        [depth, ready, lag, pending, oldest, drain, workers, slots, wanted, paused]
    }

    fn reset(&self) {
        self.all().into_iter().for_each(GaugeVec::reset);
    }

    fn set(&self, queue: &QueueView, wanted: u64) {
        let name = [queue.name.as_str()];
        let set = |gauge: &GaugeVec, value: f64| gauge.with_label_values(&name).set(value);
        set(&self.depth, queue.depth as f64);
        set(&self.ready, queue.ready as f64);
        set(&self.lag, queue.on_streams as f64);
        set(&self.pending, queue.pending as f64);
        set(&self.oldest, queue.oldest_age_ms.unwrap_or(0) as f64 / 1_000.0);
        if let Some(ms) = queue.drain_ms {
            set(&self.drain, ms as f64 / 1_000.0);
        }
        set(&self.workers, f64::from(queue.workers));
        set(&self.slots, f64::from(queue.slots));
        set(&self.wanted, wanted as f64);
        set(&self.paused, if queue.paused.is_some() { 1.0 } else { 0.0 });
    }
}

#[derive(Debug)]
struct Servers {
    ratio: GaugeVec,
    bytes: GaugeVec,
    hours: GaugeVec,
    evicted: GaugeVec,
    evicts: GaugeVec,
    forgets: GaugeVec,
}

impl Servers {
    fn new(f: &mut Families) -> Self {
        const BY: &[&str] = &["node"];
        Self {
            ratio: f.levels("stepfleet_redis_memory_ratio", "Share of maxmemory that is used; 0 without a limit", BY),
            bytes: f.levels("stepfleet_redis_memory_bytes", "Memory in use that counts against maxmemory", BY),
            hours: f.levels(
                "stepfleet_redis_memory_full_in_seconds",
                "Seconds until it is full at the present rate; absent while it does not grow",
                BY,
            ),
            evicted: f.levels("stepfleet_redis_evicted_keys", "Keys that the node has evicted; must stay 0", BY),
            evicts: f.levels(
                "stepfleet_redis_eviction_policy_wrong",
                "1 if maxmemory-policy is not noeviction: the node may throw work away",
                BY,
            ),
            forgets: f.levels(
                "stepfleet_redis_persistence_broken",
                "1 if the node has no append-only file, or could not write to it the last time",
                BY,
            ),
        }
    }

    fn set(&self, client: &Client) {
        let Self { ratio, bytes, hours, evicted, evicts, forgets } = self;
        [ratio, bytes, hours, evicted, evicts, forgets].into_iter().for_each(GaugeVec::reset);
        for node in client.memory() {
            let name = [node.node.as_str()];
            ratio.with_label_values(&name).set(node.ratio());
            bytes.with_label_values(&name).set(node.used as f64);
            if let Some(left) = node.hours_to_full {
                hours.with_label_values(&name).set(left * 3_600.0);
            }
            let yes = |what: bool| if what { 1.0 } else { 0.0 };
            evicted.with_label_values(&name).set(node.safety.evicted_keys as f64);
            evicts.with_label_values(&name).set(yes(node.safety.evicts));
            forgets.with_label_values(&name).set(yes(node.safety.forgets));
        }
    }
}
