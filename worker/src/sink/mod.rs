//! The writer: takes reports as they come and appends them to the logs of their partitions.
//!
//! One connection a node and one write at a time on it; what comes meanwhile shares the next one. A report is kept until
//! its write was acknowledged and is written again when in doubt: the owner ignores a result that it has seen. What was
//! written lately is written again to a server that is not the one it was written to, as that may have lost it. Which jobs
//! have results that were written is known for longer, to those who read jobs.

mod entry;
mod lane;
mod recent;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use futures::{StreamExt, stream::FuturesUnordered};
use stepfleet_connect::NodeId;
use stepfleet_protocol::{
    id::{JobId, PartitionId},
    keys,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use self::{
    entry::{Entry, entries},
    lane::{Flight, Landed, Lane, Line},
    recent::{Recent, Written},
};
use crate::{
    kit::{Kit, Report},
    limits::{
        ENTRY_RESULTS_MAX, RECENT_BYTES_MAX, RECENT_FOR, WAITING_BYTES_MAX, WAITING_MAX, WRITER_PROBE_EVERY,
        WRITTEN_FOR, WRITTEN_MAX,
    },
};

/// Asks the writer which of these jobs have results that it has written, or writes.
pub(crate) struct Recall {
    pub(crate) jobs: Vec<JobId>,
    pub(crate) answer: oneshot::Sender<HashSet<JobId>>,
}

/// Reports taken at once.
const TAKE: usize = 1_024;

/// The writer of one worker.
pub(crate) struct Sink {
    kit: Arc<Kit>,
    reports: mpsc::Receiver<Report>,
    recalls: mpsc::Receiver<Recall>,
    /// Reports not yet made into entries.
    waiting: BTreeMap<PartitionId, Vec<Report>>,
    waiting_count: usize,
    waiting_bytes: usize,
    /// Entries whose write failed or is in doubt, and those to be written again.
    again: BTreeMap<PartitionId, VecDeque<Arc<Entry>>>,
    recent: Recent,
    written: Written,
    /// Jobs whose results are being written again: no more held, not in `recent` until the write is acknowledged.
    unsure: HashSet<JobId>,
    /// The server that last acknowledged a write of a partition, by its run id.
    written_to: HashMap<PartitionId, Arc<str>>,
    lanes: HashMap<NodeId, Lane>,
    flights: FuturesUnordered<Flight>,
    searching: bool,
}

impl Sink {
    pub(crate) fn new(kit: Arc<Kit>, reports: mpsc::Receiver<Report>, recalls: mpsc::Receiver<Recall>) -> Self {
        Self {
            kit,
            reports,
            recalls,
            waiting: BTreeMap::new(),
            waiting_count: 0,
            waiting_bytes: 0,
            again: BTreeMap::new(),
            recent: Recent::new(RECENT_FOR, RECENT_BYTES_MAX),
            written: Written::new(WRITTEN_FOR, WRITTEN_MAX),
            unsure: HashSet::new(),
            written_to: HashMap::new(),
            lanes: HashMap::new(),
            flights: FuturesUnordered::new(),
            searching: false,
        }
    }

    /// Writes until the worker says that nothing more will come and all is written.
    pub(crate) async fn run(mut self) {
        let mut taken = Vec::with_capacity(TAKE);
        let mut probe = tokio::time::interval(WRITER_PROBE_EVERY);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let flush = self.kit.flush.clone();
        loop {
            self.launch();
            if flush.is_cancelled() && self.is_idle() {
                return;
            }
            let has_room = self.waiting_count < WAITING_MAX && self.waiting_bytes < WAITING_BYTES_MAX;
            tokio::select! {
                count = self.reports.recv_many(&mut taken, TAKE), if has_room => {
                    if count == 0 {
                        return;
                    }
                    taken.drain(..).for_each(|report| self.wait_for_lane(report));
                }
                Some(landed) = self.flights.next(), if !self.flights.is_empty() => self.landed(landed),
                Some(recall) = self.recalls.recv() => self.recall(recall),
                _ = probe.tick() => self.probe(),
                () = flush.cancelled(), if !flush.is_cancelled() => {}
            }
        }
    }

    fn recall(&self, Recall { mut jobs, answer }: Recall) {
        jobs.retain(|job| self.written.has(job) || self.unsure.contains(job) || self.recent.has(job));
        // Who asked may be gone; then nobody wants to know.
        let _gone = answer.send(jobs.into_iter().collect());
    }

    fn is_idle(&self) -> bool {
        self.reports.is_empty() && self.waiting.is_empty() && self.again.is_empty() && self.flights.is_empty()
    }

    fn wait_for_lane(&mut self, report: Report) {
        self.waiting_count += 1;
        self.waiting_bytes += report.value_bytes();
        self.waiting.entry(report.partition()).or_default().push(report);
    }

    /// Starts a write on every idle lane that has something to write, and opens lanes that are missing.
    fn launch(&mut self) {
        let mut ready: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
        let mut lost = false;
        let partitions = self.again.keys().chain(self.waiting.keys().filter(|p| !self.again.contains_key(p)));
        for partition in partitions {
            match self.kit.redis.node_of(keys::slot(*partition)) {
                Ok(node) => ready.entry(node).or_default().push(*partition),
                Err(_) => lost = true,
            }
        }
        if lost && !self.searching {
            self.searching = true;
            self.flights.push(lane::search(self.kit.redis.clone()));
        }
        for (node, partitions) in ready {
            let lane = self.lanes.entry(node.clone()).or_default();
            match std::mem::take(&mut lane.line) {
                Line::Busy => lane.line = Line::Busy,
                Line::Down => {
                    lane.line = Line::Busy;
                    self.flights.push(lane::open(self.kit.redis.clone(), node, lane.failures));
                }
                Line::Idle(plain) => {
                    lane.line = Line::Busy;
                    let run_id = Arc::clone(&lane.run_id);
                    let entries = self.take_entries(&partitions, &run_id);
                    self.flights.push(lane::write(node, plain, entries));
                }
            }
        }
    }

    /// What these partitions have to write: what failed before goes first.
    fn take_entries(&mut self, partitions: &[PartitionId], run_id: &Arc<str>) -> Vec<Arc<Entry>> {
        let mut all = Vec::new();
        for partition in partitions {
            self.written_to.insert(*partition, Arc::clone(run_id));
            // Nothing new while something is written again: what a server keeps refusing stays bounded.
            if let Some(mut again) = self.again.remove(partition) {
                let rest = again.split_off(again.len().min(ENTRY_RESULTS_MAX));
                all.extend(again);
                if !rest.is_empty() {
                    self.again.insert(*partition, rest);
                }
                continue;
            }
            let Some(reports) = self.waiting.remove(partition) else { continue };
            self.waiting_count -= reports.len();
            self.waiting_bytes -= reports.iter().map(Report::value_bytes).sum::<usize>();
            let results = reports.iter().filter(|report| report.result_of().is_some()).count();
            self.kit.metrics.batch.observe(results as f64);
            all.extend(entries(*partition, reports, &self.kit.keys, &self.kit.worker));
        }
        all
    }

    fn landed(&mut self, landed: Landed) {
        match landed {
            Landed::Searched => self.searching = false,
            Landed::Opened { node, plain, run_id } => {
                self.write_again_what_may_be_lost(&node, &run_id);
                let lane = self.lanes.entry(node).or_default();
                lane.run_id = run_id;
                lane.line = Line::Idle(plain);
            }
            Landed::NotOpened { node, why } => {
                let lane = self.lanes.entry(node.clone()).or_default();
                lane.failures += 1;
                lane.line = Line::Down;
                tracing::warn!(%node, %why, failures = lane.failures, "results cannot be written; trying again");
            }
            Landed::Wrote { node, plain, written, failed, why } => self.wrote(node, plain, (written, failed), why),
        }
    }

    fn wrote(
        &mut self,
        node: NodeId,
        plain: Option<Box<stepfleet_connect::Plain>>,
        (written, failed): (Vec<Arc<Entry>>, Vec<Arc<Entry>>),
        why: Option<String>,
    ) {
        let now = Instant::now();
        self.kit.table.remove(written.iter().flat_map(|entry| entry.jobs.iter().copied()));
        for entry in written {
            if !entry.jobs.is_empty() {
                entry.jobs.iter().for_each(|job| _ = self.unsure.remove(job));
                self.written.push(now, &entry.jobs);
                self.recent.push(now, entry);
            }
        }
        for entry in failed.into_iter().rev() {
            self.again.entry(entry.partition).or_default().push_front(entry);
        }
        let lane = self.lanes.entry(node.clone()).or_default();
        match (plain, why) {
            (Some(plain), None) => {
                lane.failures = 0;
                lane.line = Line::Idle(plain);
            }
            (_, why) => {
                lane.failures += 1;
                lane.line = Line::Down;
                self.kit.metrics.reconnects.inc();
                let why = why.unwrap_or_default();
                tracing::warn!(%node, %why, "results were not acknowledged; they are written again");
            }
        }
    }

    /// Puts what was written to another server than this one back into the queue.
    fn write_again_what_may_be_lost(&mut self, node: &NodeId, run_id: &Arc<str>) {
        let redis = self.kit.redis.clone();
        let written_to = &self.written_to;
        let entries = self.recent.take(|partition| {
            let here = redis.node_of(keys::slot(partition)).is_ok_and(|of| of == *node);
            here && written_to.get(&partition).is_some_and(|to| to != run_id)
        });
        if !entries.is_empty() {
            tracing::info!(%node, entries = entries.len(), "the server is another one: what was written lately is sent again");
        }
        for entry in entries.into_iter().rev() {
            self.unsure.extend(entry.jobs.iter().copied());
            self.again.entry(entry.partition).or_default().push_front(entry);
        }
    }

    /// Finds out whether idle servers are still there, where something that was written lately could be lost.
    fn probe(&mut self) {
        let now = Instant::now();
        self.recent.expire(now);
        self.written.expire(now);
        for partition in self.recent.partitions() {
            let Ok(node) = self.kit.redis.node_of(keys::slot(partition)) else { continue };
            let lane = self.lanes.entry(node.clone()).or_default();
            match std::mem::take(&mut lane.line) {
                Line::Busy => lane.line = Line::Busy,
                Line::Down => {
                    lane.line = Line::Busy;
                    self.flights.push(lane::open(self.kit.redis.clone(), node, lane.failures));
                }
                Line::Idle(plain) => {
                    lane.line = Line::Busy;
                    self.flights.push(lane::ping(node, plain));
                }
            }
        }
    }
}
