//! Watches the workers, and tells the logs of the partitions owned here which jobs are lost. It decides nothing: a result
//! that was written before an observation wins.
//!
//! A worker is dead when its beat did not move during 30 s of this process's own monotonic time in which Redis answered and
//! accepted writes; any gap starts the count again. Clocks of other hosts are never compared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use redis::Value;
use stepfleet_protocol::{
    beat::{Beat, Phase},
    codec::{self, DecodeError},
    id::{PartitionId, StreamId, WorkerId},
    keys::{GROUP, Keys},
    limits::{DEAD_AFTER_MS, HEARTBEAT_MS},
    message::{Body, Job, JobRef, LogEntry, Lost, Unreadable},
    name::Name,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{fleet::Slots, links::Links, metrics::Metrics};
use crate::store::{
    link::{Dial, LinkError},
    reply,
};

/// Time between two sweeps.
pub const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// Sweeps further apart than this start every count again.
const GAP_MAX: Duration = Duration::from_secs(6);
const DEAD_AFTER: Duration = Duration::from_millis(DEAD_AFTER_MS);
/// An entry pending at a live worker for this long has outlived two beats sent after its delivery.
const UNHEARD_MS: u64 = 2 * HEARTBEAT_MS + 5_000;
/// A dead worker's registry entry stays so long, for other coordinators to see it.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// A consumer whose worker is not registered any more is deleted after so long.
const LEFT_AFTER_MS: i64 = 60_000;
/// Pending entries of one worker and stream that one sweep reports.
const ENTRIES_PER_SWEEP: usize = 500;
/// Jobs in one observation.
const JOBS_PER_ENTRY: usize = 100;

/// Deletes a consumer if nothing is pending at it, in one call, so that no entry is lost between look and deletion.
pub const DELETE_CONSUMER: &str = "
-- Deletes a consumer that nothing is pending at.
-- KEYS 1 job stream. ARGV 1 group, 2 consumer. Replies 1 when deleted, 0 when something is pending.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
";

/// What is known of one worker.
#[derive(Debug)]
struct Watched {
    count: Option<i64>,
    /// When the beat last moved, or the count was started again.
    moved: Instant,
    beat: Option<Beat>,
    /// Jobs were pending at it at the last look.
    holds: bool,
    /// Entries that were pending and not held, and the beat when that was first seen.
    unheard: HashMap<(PartitionId, Name, StreamId), i64>,
}

impl Watched {
    fn new(now: Instant) -> Self {
        Self { count: None, moved: now, beat: None, holds: false, unheard: HashMap::new() }
    }
}

/// The observer of one coordinator.
pub struct Observer<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: watch::Receiver<BTreeSet<PartitionId>>,
    slots: watch::Sender<Slots>,
    workers: BTreeMap<String, Watched>,
    /// Who is registered.
    known: BTreeSet<String>,
    last_sweep: Option<Instant>,
    held_back: bool,
}

impl<D: Dial> Observer<D> {
    /// Watches for the partitions in `owned`, and tells `slots`.
    pub fn new(
        dial: D,
        keys: Keys,
        metrics: Metrics,
        owned: watch::Receiver<BTreeSet<PartitionId>>,
        slots: watch::Sender<Slots>,
    ) -> Self {
        let links = Links::new(dial);
        Self {
            links,
            keys,
            metrics,
            owned,
            slots,
            workers: BTreeMap::new(),
            known: BTreeSet::new(),
            last_sweep: None,
            held_back: false,
        }
    }

    /// Sweeps until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.sweep().await {
                tracing::debug!(%error, "a sweep over the workers failed; every count starts again");
                self.last_sweep = None;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
        }
    }

    /// One sweep: reads the beats, and reports what is lost.
    ///
    /// # Errors
    /// The link's; then nothing is known, and every count starts again.
    pub async fn sweep(&mut self) -> Result<(), LinkError> {
        let known = self.read_beats().await?;
        self.accepts_writes().await?;
        let now = Instant::now();
        if self.last_sweep.is_none_or(|at| now - at > GAP_MAX) {
            self.workers.values_mut().for_each(|w| w.moved = now);
        }
        self.last_sweep = Some(now);
        // One that left in order is nobody's loss; one that holds jobs is, registered or not.
        self.workers.retain(|id, w| known.contains(id) || (w.holds && now - w.moved < FORGET_AFTER));
        self.known = known;
        self.tell_slots();
        let dead: Vec<String> =
            self.workers.iter().filter(|(_, w)| now - w.moved >= DEAD_AFTER).map(|(id, _)| id.clone()).collect();
        if self.holds_back(&dead, now) {
            return Ok(());
        }
        self.workers.values_mut().for_each(|w| w.holds = false);
        let partitions: Vec<PartitionId> = self.owned.borrow().iter().copied().collect();
        for partition in partitions {
            // The beats were read: a partition whose node is down or whose slot is on its way is looked at next time, and the
            // others are now.
            match self.sweep_partition(partition, &dead).await {
                Ok(()) => {}
                Err(LinkError::Lost(why)) => tracing::debug!(%partition, why, "a partition could not be swept"),
                Err(error @ LinkError::TimedOut) => return Err(error),
            }
        }
        for id in dead {
            self.forget(&id, now).await?;
        }
        Ok(())
    }

    /// Reads every registered worker's beat. Returns who is registered.
    async fn read_beats(&mut self) -> Result<BTreeSet<String>, LinkError> {
        let key = self.keys.workers();
        let mut range = redis::cmd("ZRANGE");
        range.arg(&key).arg(0).arg(-1);
        let members = self.links.one(&key, range).await?;
        let ids: BTreeSet<String> =
            reply::array(&members).unwrap_or_default().iter().filter_map(reply::text).map(str::to_string).collect();
        let now = Instant::now();
        for id in &ids {
            let key = self.keys.worker(id);
            let mut get = redis::cmd("HMGET");
            get.arg(&key).arg("n").arg("beat");
            let fields = self.links.one(&key, get).await?;
            let fields = reply::array(&fields).unwrap_or_default();
            let count = fields.first().and_then(reply::number);
            let beat = fields.get(1).and_then(reply::bytes).and_then(|b| codec::unpack(b).ok());
            let watched = self.workers.entry(id.clone()).or_insert_with(|| Watched::new(now));
            if count.is_some() && count != watched.count {
                watched.moved = now;
                watched.count = count;
            }
            watched.beat = beat.or(watched.beat.take());
        }
        Ok(ids)
    }

    /// A full or read-only server answers reads, but no worker can beat on it.
    async fn accepts_writes(&mut self) -> Result<(), LinkError> {
        let key = self.keys.worker("probe");
        let mut probe = redis::cmd("SET");
        probe.arg(&key).arg(1).arg("PX").arg(60_000);
        let answer = self.links.one(&key, probe).await?;
        match reply::error(&answer) {
            Some(text) => Err(LinkError::Lost(text)),
            None => Ok(()),
        }
    }

    fn tell_slots(&self) {
        let mut slots = Slots::new();
        for beat in self.workers.values().filter_map(|w| w.beat.as_ref()).filter(|b| b.phase == Phase::Running) {
            for queue in &beat.queues {
                *slots.entry(queue.clone()).or_default() += u64::from(beat.slots);
            }
        }
        let partitions = self.owned.borrow().len().max(1) as u64;
        slots.values_mut().for_each(|n| *n = n.div_ceil(partitions));
        self.slots.send_if_modified(|old| std::mem::replace(old, slots.clone()) != slots);
    }

    /// When more than a third of a fleet would die at once, something else is the matter: wait one more period.
    fn holds_back(&mut self, dead: &[String], now: Instant) -> bool {
        let fresh = dead.iter().filter(|id| now - self.workers[*id].moved < 2 * DEAD_AFTER).count();
        let hold = self.workers.len() >= 3 && fresh * 3 > self.workers.len();
        if hold && !self.held_back {
            let (dead, all) = (dead.len(), self.workers.len());
            tracing::error!(dead, all, "ALERT: more than a third of the fleet is silent; waiting one more period");
            self.metrics.mass_deaths_held.inc();
        }
        self.held_back = hold;
        hold
    }

    async fn sweep_partition(&mut self, partition: PartitionId, dead: &[String]) -> Result<(), LinkError> {
        let keys = self.keys.partition(partition);
        let mut members = redis::cmd("SMEMBERS");
        members.arg(keys.queues());
        let queues = self.links.one(&keys.queues(), members).await?;
        let queues = reply::array(&queues).unwrap_or_default().iter().filter_map(reply::text);
        let queues: Vec<Name> = queues.filter_map(|t| Name::new(t).ok()).collect();
        for queue in queues {
            self.sweep_stream(partition, &queue, dead).await?;
        }
        Ok(())
    }

    async fn sweep_stream(&mut self, partition: PartitionId, queue: &Name, dead: &[String]) -> Result<(), LinkError> {
        let key = self.keys.partition(partition).jobs(queue);
        let mut consumers = redis::cmd("XINFO");
        consumers.arg("CONSUMERS").arg(&key).arg(GROUP);
        let consumers = self.links.one(&key, consumers).await?;
        for consumer in reply::array(&consumers).unwrap_or_default() {
            let name = reply::field(consumer, "name").and_then(reply::text).unwrap_or_default().to_string();
            let pending = reply::field(consumer, "pending").and_then(reply::number).unwrap_or(0);
            let Ok(worker) = name.parse::<WorkerId>() else { continue };
            // A consumer that no registry knows is watched from now on, like one whose beat does not move.
            if pending > 0 {
                self.workers.entry(name.clone()).or_insert_with(|| Watched::new(Instant::now())).holds = true;
            }
            let is_dead = dead.contains(&name);
            let idle_ms = reply::field(consumer, "idle").and_then(reply::number).unwrap_or(0);
            let left = !self.known.contains(&name) && idle_ms > LEFT_AFTER_MS;
            if (is_dead || left) && pending == 0 {
                self.delete_consumer(&key, &name).await?;
            } else if pending > 0 {
                self.sweep_consumer(partition, queue, &worker, is_dead).await?;
            }
        }
        Ok(())
    }

    async fn delete_consumer(&mut self, key: &str, name: &str) -> Result<(), LinkError> {
        let mut delete = redis::cmd("EVAL");
        delete.arg(DELETE_CONSUMER).arg(1).arg(key).arg(GROUP).arg(name);
        self.links.one(key, delete).await.map(drop)
    }

    /// Reports the entries of a dead worker, or those that a live one never received.
    async fn sweep_consumer(
        &mut self,
        partition: PartitionId,
        queue: &Name,
        worker: &WorkerId,
        is_dead: bool,
    ) -> Result<(), LinkError> {
        let key = self.keys.partition(partition).jobs(queue);
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&key).arg(GROUP);
        if !is_dead {
            pending.arg("IDLE").arg(UNHEARD_MS);
        }
        pending.arg("-").arg("+").arg(ENTRIES_PER_SWEEP).arg(worker.as_str());
        let pending = self.links.one(&key, pending).await?;
        let entries = reply::array(&pending).unwrap_or_default().iter();
        let entries = entries.filter_map(|e| reply::array(e)?.first().and_then(reply::text)?.parse().ok());
        let mut entries: Vec<StreamId> = entries.collect();
        if !is_dead {
            self.keep_unheard(partition, queue, worker, &mut entries);
        }
        for part in entries.chunks(JOBS_PER_ENTRY) {
            self.report(partition, queue, worker, part, is_dead).await?;
        }
        Ok(())
    }

    /// Of entries pending at a live worker, those that two of its beats did not name.
    fn keep_unheard(&mut self, partition: PartitionId, queue: &Name, worker: &WorkerId, entries: &mut Vec<StreamId>) {
        let Some(watched) = self.workers.get_mut(worker.as_str()) else { return entries.clear() };
        let (Some(count), Some(beat)) = (watched.count, &watched.beat) else { return entries.clear() };
        let held = |entry: &StreamId| {
            beat.held.iter().any(|h| h.partition == partition && h.queue == *queue && h.entry == *entry)
        };
        let mut still = HashMap::new();
        entries.retain(|entry| {
            if held(entry) {
                return false;
            }
            let place = (partition, queue.clone(), *entry);
            let since = watched.unheard.get(&place).copied().unwrap_or(count);
            still.insert(place, since);
            count > since
        });
        watched.unheard.retain(|(p, q, _), _| *p != partition || q != queue);
        watched.unheard.extend(still);
    }

    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
    async fn report(
        &mut self,
        partition: PartitionId,
        queue: &Name,
        worker: &WorkerId,
        entries: &[StreamId],
        counted: bool,
    ) -> Result<(), LinkError> {
        let keys = self.keys.partition(partition);
        let mut pipe = redis::pipe();
        for entry in entries {
            pipe.cmd("XRANGE").arg(keys.jobs(queue)).arg(entry.to_string()).arg(entry.to_string());
        }
        let replies = self.links.trip(&keys.log(), &pipe).await?;
        let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
        for (entry, value) in entries.iter().zip(replies) {
            match found(*entry, queue, value) {
                Found::Job(of) => jobs.push(of),
                Found::Unreadable => unreadable.push(*entry),
                Found::NotOurs => {}
            }
        }
        if !jobs.is_empty() {
            tracing::warn!(%worker, %partition, %queue, jobs = jobs.len(), counted, "jobs are lost");
            self.metrics.lost.inc_by(jobs.len() as u64);
            self.tell(partition, Body::Lost(Lost { worker: worker.clone(), counted, jobs })).await?;
        }
        if !unreadable.is_empty() {
            tracing::error!(%worker, %partition, %queue, entries = unreadable.len(), "entries of a job stream are no jobs");
            let queue = queue.clone();
            self.tell(partition, Body::Unreadable(Unreadable { queue, entries: unreadable })).await?;
        }
        Ok(())
    }

    /// Appends an observation to the log.
    async fn tell(&mut self, partition: PartitionId, body: Body) -> Result<(), LinkError> {
        let keys = self.keys.partition(partition);
        let wire = codec::encode(&LogEntry::new(body));
        let mut add = redis::cmd("XADD");
        add.arg(keys.log()).arg("*").arg(wire.field).arg(wire.bytes);
        self.links.one(&keys.log(), add).await.map(drop)
    }

    /// Takes a dead worker off the registry, when every coordinator has had time to see it.
    async fn forget(&mut self, id: &str, now: Instant) -> Result<(), LinkError> {
        let Some(watched) = self.workers.get(id) else { return Ok(()) };
        if now - watched.moved < FORGET_AFTER {
            return Ok(());
        }
        tracing::warn!(worker = id, "a dead worker is taken off the registry");
        self.metrics.dead_workers.inc();
        let key = self.keys.workers();
        let mut remove = redis::cmd("ZREM");
        remove.arg(&key).arg(id);
        self.links.one(&key, remove).await?;
        let key = self.keys.worker(id);
        let mut delete = redis::cmd("DEL");
        delete.arg(&key);
        self.links.one(&key, delete).await.map(drop)
    }
}

/// What a pending stream entry turned out to be.
enum Found {
    /// A job.
    Job(JobRef),
    /// Bytes that are no job, which no owner wrote.
    Unreadable,
    /// Gone, because it was acked meanwhile; or of a newer program, which will see to it.
    NotOurs,
}

fn found(entry: StreamId, queue: &Name, value: Value) -> Found {
    let entries = reply::entries(value);
    let Some((_, fields)) = entries.first() else { return Found::NotOurs };
    match fields.first().map(|(field, bytes)| codec::decode::<Job>(field, bytes)) {
        Some(Ok(job)) => {
            Found::Job(JobRef { job: job.id, run: job.run, index: job.index, queue: queue.clone(), entry })
        }
        Some(Err(DecodeError::Newer(_))) => Found::NotOurs,
        Some(Err(DecodeError::Malformed(_))) | None => Found::Unreadable,
    }
}
