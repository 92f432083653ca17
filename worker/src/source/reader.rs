//! One reader: one connection to one server, which never has more jobs out than the worker has slots.

mod groups;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Pipeline, Value};
use stepfleet_connect::{NodeId, Plain};
use stepfleet_protocol::{
    id::{JobId, PartitionId, StreamId},
    keys,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    inbox,
    plan::{Read, Streams},
    reply::{self, Entry, Got},
};
use crate::{
    attempt::Attempt,
    backoff,
    kit::Kit,
    limits::{BLOCK_MAX, DOORBELL_WAIT, PARTITIONS_EVERY, PENDING_PAGE, PROOF_EVERY, READ_MARGIN},
    sink::Recall,
};

/// Behind everything that is pending: a read of the own list from here brings nothing.
const BEHIND_ALL: &str = "18446744073709551615-0";

/// Why a session with a server ended.
enum End {
    /// The worker drains.
    Drained,
    /// The connection is lost, or the server refused.
    Lost(String),
}

/// Reads the job streams of one server, or of one node of a Cluster.
pub(super) struct Reader {
    kit: Arc<Kit>,
    /// The node on Cluster; none where there is one server only.
    node: Option<NodeId>,
    recalls: mpsc::Sender<Recall>,
    /// This reader's own end: its node has left the Cluster.
    stop: CancellationToken,
    streams: Streams,
    /// Partitions whose streams and groups are there.
    made: Vec<PartitionId>,
    /// The number of partitions that `made` was looked up for, and when.
    looked_up: (u16, Instant),
    /// Which partition is read first.
    turn: usize,
    /// Changes when a job may be there; on Cluster only.
    doorbell: watch::Receiver<u64>,
}

/// What a read was done for: the entries, and the slots that were kept free for them.
type Haul = (Vec<Entry>, Option<OwnedSemaphorePermit>);

impl Reader {
    pub(super) fn new(
        kit: Arc<Kit>,
        node: Option<NodeId>,
        recalls: mpsc::Sender<Recall>,
        stop: CancellationToken,
    ) -> Self {
        let doorbell = kit.doorbell.subscribe();
        let looked_up = (0, Instant::now());
        Self { kit, node, recalls, stop, streams: Streams::default(), made: Vec::new(), turn: 0, doorbell, looked_up }
    }

    /// Reads until the worker drains, and comes back after every loss.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        while !self.is_over() {
            let end = match self.open().await {
                Ok(plain) => {
                    let opened = Instant::now();
                    let end = self.session(plain).await;
                    // A server that takes connections and refuses reads is no success.
                    if self.kit.pulse.age() < opened.elapsed() {
                        failures = 0;
                    }
                    end
                }
                Err(why) => End::Lost(why),
            };
            let End::Lost(why) = end else { return };
            failures += 1;
            self.kit.metrics.reconnects.inc();
            tracing::warn!(%why, failures, "jobs cannot be read; trying again");
            tokio::select! {
                () = tokio::time::sleep(backoff::wait(failures)) => {}
                () = self.kit.drain.cancelled() => {}
                () = self.stop.cancelled() => {}
            }
            if let Err(error) = self.kit.redis.refresh().await {
                tracing::debug!(%error, "the topology could not be read");
            }
        }
    }

    fn is_over(&self) -> bool {
        self.kit.drain.is_cancelled() || self.stop.is_cancelled()
    }

    async fn open(&self) -> Result<Plain, String> {
        let timeout = BLOCK_MAX + READ_MARGIN;
        let opened = match &self.node {
            Some(node) => self.kit.redis.plain_to(node.clone(), timeout).await,
            None => self.kit.redis.plain(0, timeout).await,
        };
        opened.map_err(|error| error.to_string())
    }

    /// Reads on one connection until it is lost.
    async fn session(&mut self, mut plain: Plain) -> End {
        let ended = async {
            let client = client_id(&mut plain).await?;
            self.made.clear();
            self.looked_up.0 = 0;
            self.streams = Streams::default();
            loop {
                if self.is_over() {
                    return Ok(());
                }
                if self.follow_partitions(&mut plain).await? {
                    self.own_pending(&mut plain).await?;
                    self.kit.beat_now.notify_one();
                }
                self.turn = self.turn.wrapping_add(1);
                let (entries, slots) = self.next(&mut plain, client).await?;
                inbox::take(&self.kit, &self.streams, entries, slots).await;
            }
        };
        match ended.await {
            Ok(()) => End::Drained,
            Err(why) => End::Lost(why),
        }
    }

    /// Brings the streams up to the number of partitions; creates what is missing. True if there are new ones.
    async fn follow_partitions(&mut self, plain: &mut Plain) -> Result<bool, String> {
        let count = *self.kit.partitions.borrow();
        // On Cluster, slots move between nodes without a word.
        let may_have_moved = self.node.is_some() && self.looked_up.1.elapsed() >= DOORBELL_WAIT;
        if count == self.looked_up.0 && !may_have_moved {
            return Ok(false);
        }
        self.looked_up = (count, Instant::now());
        let mine: Vec<PartitionId> = (0..count).map(PartitionId).filter(|partition| self.serves(*partition)).collect();
        if mine == self.made {
            return Ok(false);
        }
        self.streams = Streams::new(&self.kit.keys, &self.kit.queues, &mine, self.node.is_some());
        self.make_groups(plain).await?;
        self.made = mine;
        Ok(true)
    }

    fn serves(&self, partition: PartitionId) -> bool {
        match &self.node {
            None => true,
            Some(node) => self.kit.redis.node_of(keys::slot(partition)).is_ok_and(|of| of == *node),
        }
    }

    /// Takes up jobs that were delivered to this worker and never arrived: the reply was lost with a connection.
    async fn own_pending(&mut self, plain: &mut Plain) -> Result<(), String> {
        for at in 0..self.streams.all().len() {
            let read = Read { streams: vec![at], count: PENDING_PAGE };
            let mut after = StreamId::ZERO;
            loop {
                let mut entries = self.read(plain, &read, None, &after.to_string()).await?;
                let Some(last) = entries.last().map(|entry| entry.id) else { break };
                after = last;
                // RACE: with the writer. What ended after this look at the held jobs is in the answer to the recall, so nothing
                // that this worker has done, or does, is done again.
                let mut known: HashSet<_> = self.kit.table.all().iter().map(Attempt::job).collect();
                known.extend(self.written(entries.iter().filter_map(inbox::job_id).collect()).await);
                entries.retain(|entry| !is_known(entry, &known) && !entry.bytes.is_empty());
                let slots = self.free_slots(entries.len());
                inbox::take(&self.kit, &self.streams, entries, slots).await;
            }
        }
        Ok(())
    }

    /// Those of the jobs whose results were written: they are pending only until the owner has read that.
    async fn written(&self, jobs: Vec<JobId>) -> HashSet<JobId> {
        let (answer, answered) = oneshot::channel();
        if self.recalls.send(Recall { jobs, answer }).await.is_err() {
            return HashSet::new();
        }
        answered.await.unwrap_or_default()
    }

    /// Up to `wanted` slots that are free now.
    fn free_slots(&self, wanted: usize) -> Option<OwnedSemaphorePermit> {
        let count = self.kit.free.available_permits().min(wanted);
        if count == 0 {
            return None;
        }
        Arc::clone(&self.kit.free).try_acquire_many_owned(count as u32).ok()
    }

    /// The next jobs, and at least one slot for them. Empty after a wait.
    async fn next(&mut self, plain: &mut Plain, client: i64) -> Result<Haul, String> {
        if self.streams.all().is_empty() {
            self.wait_for_partitions(plain).await?;
            return Ok((Vec::new(), None));
        }
        let Some(mut slots) = self.slots(plain).await? else { return Ok((Vec::new(), None)) };
        if let Some(more) = self.free_slots(self.kit.slots) {
            slots.merge(more);
        }
        let free = slots.num_permits();
        if self.node.is_some() || !self.streams.may_wait_first(free) {
            // A doorbell that rings from now on ends the wait: nothing is missed between the read and the wait.
            self.doorbell.mark_unchanged();
            let entries = self.sweep(plain, free).await?;
            if !entries.is_empty() {
                return Ok((entries, Some(slots)));
            }
        }
        if self.node.is_some() {
            drop(slots);
            self.wait_for_doorbell().await;
            return Ok((Vec::new(), None));
        }
        let entries = self.blocked(plain, free, client).await?;
        Ok((entries, Some(slots)))
    }

    /// A slot, as soon as one is free. Proves meanwhile that the worker can read. None when it drains.
    async fn slots(&self, plain: &mut Plain) -> Result<Option<OwnedSemaphorePermit>, String> {
        loop {
            if self.is_over() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                slot = Arc::clone(&self.kit.free).acquire_owned() => return Ok(slot.ok()),
                () = self.kit.drain.cancelled() => {}
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(PROOF_EVERY) => self.prove(plain).await?,
            }
        }
    }

    /// Reads nothing, from each stream: not every coordinator looks at all of them.
    async fn prove(&self, plain: &mut Plain) -> Result<(), String> {
        let proofs = self.streams.proofs();
        let mut pipeline = Pipeline::with_capacity(proofs.len());
        for proof in &proofs {
            pipeline.add_command(self.streams.command(proof, self.kit.worker.as_str(), None, BEHIND_ALL));
        }
        let replies = plain.trip(&pipeline).await.map_err(|error| error.to_string())?;
        let got = replies.into_iter().zip(&proofs).map(|(reply, proof)| reply::read(reply, proof, &self.streams));
        let (read, odd): (Vec<Got>, Vec<Got>) = got.partition(|got| matches!(got, Got::Entries(_)));
        if !read.is_empty() {
            self.kit.pulse.note();
        }
        // What is done about one of them is done about all: groups are made, the topology is looked at.
        if let Some(odd) = odd.into_iter().next() {
            self.got(plain, odd).await?;
        }
        Ok(())
    }

    /// Reads queue by queue, most urgent first, without waiting, until the slots are used up.
    async fn sweep(&self, plain: &mut Plain, free: usize) -> Result<Vec<Entry>, String> {
        let mut all = Vec::new();
        for queue in 0..self.streams.queues() {
            let mut done = 0;
            while let Some(read) = self.streams.of_queue(queue, done, free - all.len(), self.turn) {
                done += read.streams.len();
                all.extend(self.read(plain, &read, None, ">").await?);
            }
        }
        Ok(all)
    }

    /// Waits on the server for a job. A drain ends the wait at once.
    async fn blocked(&self, plain: &mut Plain, free: usize, client: i64) -> Result<Vec<Entry>, String> {
        let read = self.streams.blocked(free);
        let waiting = self.read(plain, &read, Some(BLOCK_MAX), ">");
        tokio::pin!(waiting);
        tokio::select! {
            entries = &mut waiting => entries,
            () = self.kit.drain.cancelled() => {
                self.unblock(client).await;
                waiting.await
            }
        }
    }

    /// Ends this reader's wait on the server. If that fails the wait ends by itself.
    async fn unblock(&self, client: i64) {
        if let Ok(mut connection) = self.kit.redis.pooled(0).await {
            let mut command = redis::cmd("CLIENT");
            command.arg("UNBLOCK").arg(client);
            let _ends_by_itself = command.query_async::<Value>(&mut connection).await;
        }
    }

    /// One XREADGROUP. A missing group is made, and nothing read.
    async fn read(
        &self,
        plain: &mut Plain,
        read: &Read,
        block: Option<Duration>,
        from: &str,
    ) -> Result<Vec<Entry>, String> {
        let command = self.streams.command(read, self.kit.worker.as_str(), block.map(|block| block.as_millis()), from);
        let reply = plain.one(&command).await.map_err(|error| error.to_string())?;
        self.got(plain, reply::read(reply, read, &self.streams)).await
    }

    async fn got(&self, plain: &mut Plain, got: Got) -> Result<Vec<Entry>, String> {
        match got {
            Got::Entries(entries) => {
                self.kit.pulse.note();
                Ok(entries)
            }
            Got::NoGroup => {
                self.make_groups(plain).await?;
                Ok(Vec::new())
            }
            // On one server or with Sentinel it is no node of ours any more; on Cluster the other streams of the node are
            // read on, and the look at the partitions finds who has this one.
            Got::Away(why) if self.node.is_none() => Err(why),
            Got::Away(why) => {
                tracing::debug!(%why, "a slot is moving; its partition pauses");
                let _as_it_was = self.kit.redis.refresh().await;
                Ok(Vec::new())
            }
            Got::Refused(why) => Err(why),
        }
    }

    async fn wait_for_doorbell(&mut self) {
        tokio::select! {
            _ = self.doorbell.changed() => {}
            () = tokio::time::sleep(DOORBELL_WAIT) => {}
            () = self.kit.drain.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Waits until there are partitions to read.
    async fn wait_for_partitions(&self, plain: &mut Plain) -> Result<(), String> {
        let mut changed = self.kit.partitions.subscribe();
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(PARTITIONS_EVERY.min(PROOF_EVERY)) => {}
            () = self.kit.drain.cancelled() => return Ok(()),
            () = self.stop.cancelled() => return Ok(()),
        }
        match plain.one(&redis::cmd("PING")).await.map_err(|error| error.to_string())? {
            Value::ServerError(error) => Err(error.to_string()),
            _ => {
                self.kit.pulse.note();
                Ok(())
            }
        }
    }
}

async fn client_id(plain: &mut Plain) -> Result<i64, String> {
    let reply = plain.one(redis::cmd("CLIENT").arg("ID")).await.map_err(|error| error.to_string())?;
    match reply {
        Value::Int(id) => Ok(id),
        Value::ServerError(error) => Err(error.to_string()),
        other => Err(format!("CLIENT ID answered {other:?}")),
    }
}

fn is_known(entry: &Entry, known: &HashSet<JobId>) -> bool {
    !known.is_empty() && inbox::job_id(entry).is_some_and(|job| known.contains(&job))
}
