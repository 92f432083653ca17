//! The job streams of the partitions owned here, and who reads them.

use std::collections::BTreeSet;

use redis::Cmd;
use stepfleet_protocol::{
    id::{PartitionId, WorkerId},
    keys::GROUP,
    name::Name,
};

use super::{CONSUMERS_PER_TRIP, ENTRIES_PER_SWEEP, Observer, UNHEARD_MS, note};
use crate::{
    mutants::mutant,
    shell::links::{Answer, Ask},
    store::{link::Dial, reply, script},
};

/// A consumer whose worker is not registered any more is deleted after so long.
const LEFT_AFTER_MS: i64 = 60_000;
/// Lists of queues in one trip.
const QUEUES_PER_TRIP: usize = 128;
/// Lists of consumers, of hundreds of workers each, in one trip.
const STREAMS_PER_TRIP: usize = 8;

/// A job stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) partition: PartitionId,
    pub(super) queue: Name,
}

/// A consumer of a job stream.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub(super) stream: Stream,
    pub(super) worker: WorkerId,
    pub(super) is_dead: bool,
}

/// A consumer as a server tells of it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) stream: Stream,
    pub(super) worker: WorkerId,
    pending: i64,
    /// Since it last read, by the server's clock.
    pub(super) idle_ms: i64,
}

impl<D: Dial> Observer<D> {
    /// The job streams of the partitions owned here, and whether these are all.
    pub(super) async fn streams(&mut self) -> (Vec<Stream>, bool) {
        let partitions: Vec<PartitionId> = self.owned.borrow().iter().copied().collect();
        let keys = |partition: &PartitionId| self.keys.partition(*partition).queues();
        let ask = |key: String| Ask::new(&key, vec![redis::cmd("SMEMBERS").arg(&key).clone()]);
        let asks = partitions.iter().map(keys).map(ask).collect();
        let (mut streams, mut complete) = (Vec::new(), true);
        let answers = self.links.gather(asks, QUEUES_PER_TRIP).await;
        for (partition, answer) in partitions.into_iter().zip(answers) {
            let answer = note(partition, answer);
            complete &= answer.is_some();
            let names = answer.as_ref().and_then(reply::array).unwrap_or_default().iter().filter_map(reply::text);
            streams.extend(names.filter_map(|t| Name::new(t).ok()).map(|queue| Stream { partition, queue }));
        }
        (streams, complete)
    }

    /// Who reads these streams, and whether these are all.
    pub(super) async fn consumers(&mut self, streams: &[Stream]) -> (Vec<Found>, bool) {
        let ask = |stream: &Stream| {
            let key = self.keys.partition(stream.partition).jobs(&stream.queue);
            Ask::new(&key, vec![redis::cmd("XINFO").arg("CONSUMERS").arg(&key).arg(GROUP).clone()])
        };
        let asks = streams.iter().map(ask).collect();
        let (mut all, mut complete) = (Vec::new(), true);
        let answers = self.links.gather(asks, STREAMS_PER_TRIP).await;
        for (stream, answer) in streams.iter().zip(answers) {
            let answer = note(stream.partition, answer);
            complete &= answer.is_some();
            for entry in answer.as_ref().and_then(reply::array).unwrap_or_default() {
                let number = |field| reply::field(entry, field).and_then(reply::number).unwrap_or(0);
                let name = reply::field(entry, "name").and_then(reply::text).unwrap_or_default();
                let Ok(worker) = name.parse::<WorkerId>() else { continue };
                let (stream, pending, idle_ms) = (stream.clone(), number("pending"), number("idle"));
                all.push(Found { stream, worker, pending, idle_ms });
            }
        }
        (all, complete)
    }

    /// RACE: one of them may read a job at this very moment. The script looks again in the same call, and the job wins.
    pub(super) async fn delete_consumers(&mut self, idle: &[Consumer]) {
        let ask = |consumer: &Consumer| {
            let key = self.keys.partition(consumer.stream.partition).jobs(&consumer.stream.queue);
            let delete = script::delete_consumer(&key, GROUP, consumer.worker.as_str());
            Ask::new(&key, vec![delete])
        };
        let asks = idle.iter().map(ask).collect();
        let answers = self.links.gather(asks, CONSUMERS_PER_TRIP).await;
        for (consumer, answer) in idle.iter().zip(answers) {
            note(consumer.stream.partition, answer.and_then(Answer::accepted));
        }
    }
}

/// Those that may go, as nothing is pending at them and nobody is behind them; and those at which something is pending.
pub(super) fn sorted(
    found: Vec<Found>,
    dead: &BTreeSet<String>,
    registered: Option<&BTreeSet<String>>,
) -> (Vec<Consumer>, Vec<Consumer>) {
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for Found { stream, worker, pending, idle_ms } in found {
        let is_dead = dead.contains(worker.as_str());
        let left = idle_ms > LEFT_AFTER_MS && registered.is_some_and(|known| !known.contains(worker.as_str()));
        let consumer = Consumer { stream, worker, is_dead };
        if pending > 0 && !(is_dead && mutant("consumer_deleted_with_its_jobs")) {
            busy.push(consumer);
        } else if is_dead || left {
            idle.push(consumer);
        }
    }
    (idle, busy)
}

/// Asks for what is pending at a consumer.
pub(super) fn pending(key: &str, of: &Consumer) -> Cmd {
    let mut pending = redis::cmd("XPENDING");
    pending.arg(key).arg(GROUP);
    if !of.is_dead {
        pending.arg("IDLE").arg(UNHEARD_MS);
    }
    pending.arg("-").arg("+").arg(ENTRIES_PER_SWEEP).arg(of.worker.as_str());
    pending
}
