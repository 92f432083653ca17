//! Watches the workers, and tells the logs of the partitions owned here which jobs are lost. It decides nothing: a result
//! that was written before an observation wins.
//!
//! A worker is dead when its beat did not move during 30 s of this process's own monotonic time in which Redis answered and
//! accepted writes; any gap starts the count again. It is gone, and so are its jobs, after 4 s without a sign of life of any
//! kind: nobody listens on its control channel any more, it does not beat although such a worker beats every second, and it
//! reads no job stream (`channel`, `watch::Workers::gone`); within a second if Kubernetes says that its pod ended (`pods`).
//!
//! Clocks of other hosts are never compared. A sweep is a few pipelined trips to each node; a node that fails stops nothing on
//! the others. How long a sweep takes is no gap: only the pause between two of them, a look that failed, and a trip that took
//! too long are.

mod channel;
mod consumers;
mod listen;
mod pods;
mod report;
mod watch;

use std::{collections::BTreeSet, time::Duration};

use redis::Value;
use stepfleet_protocol::{
    beat::FIELD_LOSSES,
    codec,
    id::{PartitionId, StreamId},
    keys::Keys,
    limits::{GONE_AFTER_MS, HEARTBEAT_MS},
};
use tokio::{sync::watch as told, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::pods::Pods;
use self::{
    consumers::{Consumer, Found},
    report::Finding,
    watch::{GAP_MAX, Record, Workers},
};
use super::{
    fleet::Slots,
    links::{Answer, Ask, Links},
    metrics::Metrics,
};
use crate::{
    mutants::mutant,
    store::{
        client::FIELD_PARTITIONS,
        link::{Dial, LinkError},
        reply,
    },
};

/// What tells of deaths.
pub const WAYS: [&str; 3] = [BEATS, CHANNEL, POD];
const BEATS: &str = "beats";
const CHANNEL: &str = "channel";
const POD: &str = "pod";
/// Time between the beginnings of two sweeps: a worker that is gone is missed after at most one, and its jobs are lost two
/// later. Sweeps that take longer follow each other at once, but for a tenth of a second.
pub const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// Time between the end of a sweep that missed a worker of an ended pod and the next one.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Time between two sweeps, at least.
const SWEEP_PAUSE_MIN: Duration = Duration::from_millis(100);
/// An entry pending at a live worker for this long has outlived two beats sent after its delivery.
const UNHEARD_MS: u64 = 2 * HEARTBEAT_MS + 5_000;
/// Pending entries of one worker and stream that one sweep reports.
const ENTRIES_PER_SWEEP: usize = 500;

// How many asks share a trip: so many that a trip costs the server about a millisecond or two and answers in less than 4 MiB.
/// Records of workers, each with a write.
const RECORDS_PER_TRIP: usize = 128;
/// Lists of pending entries.
const CONSUMERS_PER_TRIP: usize = 32;

/// The observer of one coordinator.
pub struct Observer<D: Dial> {
    links: Links<D>,
    keys: Keys,
    metrics: Metrics,
    owned: told::Receiver<BTreeSet<PartitionId>>,
    slots: told::Sender<Slots>,
    pods: Pods,
    workers: Workers,
    /// How many partitions there are, owned here or not, as far as was heard.
    partitions: u64,
    /// When the last sweep ended, unless it was given up.
    ended: Option<Instant>,
    held_back: bool,
}

impl<D: Dial> Observer<D> {
    /// Watches for the partitions in `owned`, and tells `slots`.
    pub fn new(
        dial: D,
        keys: Keys,
        metrics: Metrics,
        owned: told::Receiver<BTreeSet<PartitionId>>,
        slots: told::Sender<Slots>,
    ) -> Self {
        let (links, workers, pods) = (Links::new(dial), Workers::default(), Pods::default());
        Self { links, keys, metrics, owned, slots, pods, workers, partitions: 1, ended: None, held_back: false }
    }

    /// Believes what `pods` are told.
    pub fn with_pods(self, pods: Pods) -> Self {
        Self { pods, ..self }
    }

    /// Sweeps until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let begun = Instant::now();
            self.sweep().await;
            let next =
                if self.workers.wants_a_second_look() { Instant::now() + SECOND_LOOK } else { begun + SWEEP_EVERY };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(SWEEP_PAUSE_MIN) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep_until(next) => {}
                () = self.pods.news_of(|uid| self.workers.is_in_pod(uid)) => {}
            }
        }
    }

    /// One sweep: reads the beats, and reports what is lost. What could not be asked is left for the next one.
    pub async fn sweep(&mut self) {
        let begun = Instant::now();
        if self.ended.take().is_none_or(|at| begun - at > GAP_MAX) {
            self.workers.start_again(begun);
        }
        // Before the looks: they are to be younger than it.
        let news = self.pods.take();
        let registered = self.registered().await;
        self.read_beats(registered.as_ref()).await;
        if let Some(registered) = &registered {
            self.workers.keep(registered);
        }
        self.listen().await;
        self.count_partitions().await;
        self.tell_slots();
        let mut dead = self.judge();
        let gone = self.workers.gone(Instant::now());
        dead.extend(self.workers.ended_with_pods(news, Instant::now()));
        self.metrics.channels_watched.set(self.workers.watched(Instant::now()) as i64);
        let (streams, all_streams) = self.streams().await;
        let (found, all_consumers) = self.consumers(&streams).await;
        let complete = all_streams && all_consumers;
        dead.extend(if complete { self.without_a_breath(gone, &found) } else { BTreeSet::new() });
        self.count_deaths(&dead);
        let (idle, busy) = consumers::sorted(found, &dead, registered.as_ref());
        let holders = busy.iter().map(|consumer| consumer.worker.to_string()).collect();
        self.workers.hold(&holders, complete, Instant::now());
        self.delete_consumers(&idle).await;
        let findings = self.findings(busy).await;
        self.report(findings).await;
        self.forget(&dead).await;
        self.ended = Some(Instant::now());
    }

    /// The registered workers, if that can be known.
    async fn registered(&mut self) -> Option<BTreeSet<String>> {
        let key = self.keys.workers();
        let mut range = redis::cmd("ZRANGE");
        range.arg(&key).arg(0).arg(-1);
        match self.links.one(&key, range).await {
            Ok(members) => {
                reply::array(&members).map(|m| m.iter().filter_map(reply::text).map(str::to_string).collect())
            }
            Err(error) => {
                tracing::debug!(%error, "the registry of workers could not be read");
                None
            }
        }
    }

    /// Reads the record of every worker. Each look brings a write in the same slot: a full or read-only server answers reads,
    /// but no worker can beat on it.
    async fn read_beats(&mut self, registered: Option<&BTreeSet<String>>) {
        let mut ids = self.workers.ids();
        ids.extend(registered.into_iter().flatten().cloned());
        let ask = |id: &String| {
            let key = self.keys.worker(id);
            let (mut probe, mut get) = (redis::cmd("SET"), redis::cmd("HMGET"));
            probe.arg(self.keys.worker_probe(id)).arg(1).arg("PX").arg(60_000);
            get.arg(&key).arg("n").arg("beat").arg(FIELD_LOSSES);
            Ask::new(&key, vec![probe, get])
        };
        let asks = ids.iter().map(ask).collect();
        let answers = self.links.gather(asks, RECORDS_PER_TRIP).await;
        let now = Instant::now();
        for (id, answer) in ids.iter().zip(answers) {
            match answer.and_then(|a| if mutant("full_counts_as_silence") { Ok(a) } else { a.accepted() }) {
                Ok(answer) => {
                    let fields = answer.replies.get(1).and_then(reply::array).unwrap_or_default();
                    let count = fields.first().and_then(reply::number);
                    let beat = fields.get(1).and_then(reply::bytes).and_then(|bytes| codec::unpack(bytes).ok());
                    let losses = fields.get(2).and_then(reply::number);
                    self.workers.seen(id, (answer.sent, answer.got), Record { count, beat, losses });
                }
                Err(error) => {
                    tracing::debug!(worker = id, %error, "a worker's beat could not be looked at; its count starts again");
                    self.workers.unseen(id, now);
                }
            }
        }
    }

    /// The number only grows. Without an answer it is at least what is owned here.
    async fn count_partitions(&mut self) {
        let key = self.keys.meta();
        let mut get = redis::cmd("HGET");
        get.arg(&key).arg(FIELD_PARTITIONS);
        let found = self.links.one(&key, get).await.ok().as_ref().and_then(reply::number).unwrap_or(0).max(0) as u64;
        self.partitions = self.partitions.max(found).max(self.owned.borrow().len() as u64);
    }

    /// A worker's slots serve every partition alike, whoever owns it.
    fn tell_slots(&self) {
        let mut slots = self.workers.slots();
        slots.values_mut().for_each(|n| *n = n.div_ceil(self.partitions));
        self.slots.send_if_modified(|old| std::mem::replace(old, slots.clone()) != slots);
    }

    fn judge(&mut self) -> BTreeSet<String> {
        let verdict = self.workers.verdict();
        let hold = verdict.held_back > 0;
        if hold && !self.held_back {
            let (silent, all) = (verdict.held_back, self.workers.len());
            tracing::error!(silent, all, "ALERT: more than a third of the fleet is silent; waiting one more period");
            self.metrics.mass_deaths_held.inc();
        }
        self.held_back = hold;
        verdict.dead
    }

    /// Of workers that seem to be gone, those that read no job stream either: a reader has a connection of its own, and reads
    /// every second or two.
    fn without_a_breath(&mut self, mut gone: BTreeSet<String>, found: &[Found]) -> BTreeSet<String> {
        for found in found.iter().filter(|found| found.idle_ms < GONE_AFTER_MS as i64) {
            if gone.remove(found.worker.as_str()) {
                tracing::info!(worker = %found.worker, "gone from its control channel, and reads jobs all the same");
                self.workers.lives(found.worker.as_str(), Instant::now());
            }
        }
        gone
    }

    fn count_deaths(&mut self, dead: &BTreeSet<String>) {
        for (id, way) in self.workers.bury(dead) {
            tracing::warn!(worker = id, way, "a worker is dead");
            self.metrics.deaths.with_label_values(&[way]).inc();
        }
    }

    /// The entries of dead workers, and those that live ones never received.
    async fn findings(&mut self, busy: Vec<Consumer>) -> Vec<Finding> {
        let ask = |consumer: &Consumer| {
            let key = self.keys.partition(consumer.stream.partition).jobs(&consumer.stream.queue);
            Ask::new(&key, vec![consumers::pending(&key, consumer)])
        };
        let asks = busy.iter().map(ask).collect();
        let answers = self.links.gather(asks, CONSUMERS_PER_TRIP).await;
        let mut findings = Vec::new();
        for (of, answer) in busy.into_iter().zip(answers) {
            let Some(value) = note(of.stream.partition, answer) else { continue };
            let entries = reply::array(&value).unwrap_or_default().iter();
            let entries = entries.filter_map(|e| reply::array(e)?.first().and_then(reply::text)?.parse().ok());
            let mut entries: Vec<StreamId> = entries.collect();
            if !of.is_dead {
                entries = self.workers.unheard(of.worker.as_str(), of.stream.partition, &of.stream.queue, entries);
            }
            if !entries.is_empty() {
                findings.push(Finding { of, entries });
            }
        }
        findings
    }

    /// Takes dead workers off the registry, when every coordinator has had time to see them.
    async fn forget(&mut self, dead: &BTreeSet<String>) {
        for id in dead.iter().filter(|id| self.workers.is_forgotten(id)) {
            tracing::warn!(worker = id, "a dead worker is taken off the registry");
            self.metrics.dead_workers.inc();
            let (list, own) = (self.keys.workers(), self.keys.worker(id));
            let remove = Ask::new(&list, vec![redis::cmd("ZREM").arg(&list).arg(id).clone()]);
            let delete = Ask::new(&own, vec![redis::cmd("DEL").arg(&own).clone()]);
            for answer in self.links.gather(vec![remove, delete], 1).await {
                if let Err(error) = answer.and_then(Answer::accepted) {
                    tracing::debug!(worker = id, %error, "it stays there for now");
                }
            }
        }
    }
}

/// The only reply of an answer about a partition. What is missing comes with a later sweep.
fn note(partition: PartitionId, answer: Result<Answer, LinkError>) -> Option<Value> {
    match answer {
        Ok(answer) => answer.replies.into_iter().next(),
        Err(error) => {
            tracing::debug!(%partition, %error, "a partition could not be swept");
            None
        }
    }
}
