//! Appends to the logs what was found: jobs that are lost, and entries of job streams that are no jobs.

use redis::Value;
use stepfleet_protocol::{
    beat::Sight,
    codec::{self, DecodeError},
    id::{PartitionId, StreamId},
    message::{Body, Job, JobRef, LogEntry, Lost, Unreadable},
    name::Name,
};

use super::{Consumer, Observer, note};
use crate::{
    shell::links::{Answer, Ask},
    store::{link::Dial, reply},
};

/// Jobs in one observation, read in one trip.
const JOBS_PER_ENTRY: usize = 100;
/// Observations that are made and appended before the next ones are read: this bounds the memory.
const ENTRIES_AT_ONCE: usize = 16;

/// Pending entries that are lost to their consumer.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub(super) of: Consumer,
    pub(super) entries: Vec<StreamId>,
}

impl<D: Dial> Observer<D> {
    /// Appends what was found. What cannot be read or written now is found again by the next sweep.
    pub(super) async fn report(&mut self, findings: Vec<Finding>) {
        let part = |finding: &Finding, part: &[StreamId]| Finding { of: finding.of.clone(), entries: part.to_vec() };
        let parts: Vec<Finding> =
            findings.iter().flat_map(|f| f.entries.chunks(JOBS_PER_ENTRY).map(move |p| part(f, p))).collect();
        for parts in parts.chunks(ENTRIES_AT_ONCE) {
            let observations = self.observations(parts).await;
            self.tell(observations).await;
        }
    }

    /// Reads the entries: they say which jobs they are.
    async fn observations(&mut self, parts: &[Finding]) -> Vec<(PartitionId, Body)> {
        let ask = |part: &Finding| {
            let key = self.keys.partition(part.of.stream.partition).jobs(&part.of.stream.queue);
            let range = |entry: &StreamId| {
                let mut range = redis::cmd("XRANGE");
                range.arg(&key).arg(entry.to_string()).arg(entry.to_string());
                range
            };
            Ask::new(&key, part.entries.iter().map(range).collect())
        };
        let asks = parts.iter().map(ask).collect();
        let answers = self.links.gather(asks, 1).await;
        let mut observations = Vec::new();
        for (part, answer) in parts.iter().zip(answers) {
            match answer.and_then(Answer::accepted) {
                Ok(answer) => observations.extend(self.observed(part, answer.replies)),
                Err(error) => {
                    let partition = part.of.stream.partition;
                    tracing::debug!(%partition, %error, "lost jobs could not be read");
                }
            }
        }
        observations
    }

    fn observed(&self, part: &Finding, replies: Vec<Value>) -> Vec<(PartitionId, Body)> {
        let Consumer { stream, worker, is_dead } = &part.of;
        let (partition, queue, counted) = (stream.partition, &stream.queue, *is_dead);
        let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
        for (entry, value) in part.entries.iter().zip(replies) {
            match found(*entry, queue, value) {
                Found::Job(of) => jobs.push(of),
                Found::Unreadable => unreadable.push(*entry),
                Found::NotOurs => {}
            }
        }
        let mut bodies = Vec::new();
        if !jobs.is_empty() {
            tracing::warn!(%worker, %partition, %queue, jobs = jobs.len(), counted, "jobs are lost");
            self.metrics.lost.inc_by(jobs.len() as u64);
            let sight = |of: &JobRef| self.workers.sight(worker.as_str(), partition, queue, of.entry);
            let seen: Vec<Sight> = jobs.iter().map(sight).collect();
            if counted {
                seen.iter().for_each(|sight| self.metrics.lost_after.observe(sight.silent_ms as f64 / 1_000.0));
            }
            bodies.push((partition, Body::Lost(Lost { worker: worker.clone(), counted, jobs, seen })));
        }
        if !unreadable.is_empty() {
            tracing::error!(%worker, %partition, %queue, entries = unreadable.len(), "entries of a job stream are no jobs");
            bodies.push((partition, Body::Unreadable(Unreadable { queue: queue.clone(), entries: unreadable })));
        }
        bodies
    }

    /// Appends observations to the logs.
    async fn tell(&mut self, observations: Vec<(PartitionId, Body)>) {
        let partitions: Vec<PartitionId> = observations.iter().map(|(partition, _)| *partition).collect();
        let ask = |(partition, body)| {
            let log = self.keys.partition(partition).log();
            let wire = codec::encode(&LogEntry::new(body));
            let mut add = redis::cmd("XADD");
            add.arg(&log).arg("*").arg(wire.field).arg(wire.bytes);
            Ask::new(&log, vec![add])
        };
        let asks = observations.into_iter().map(ask).collect();
        let answers = self.links.gather(asks, ENTRIES_AT_ONCE).await;
        for (partition, answer) in partitions.into_iter().zip(answers) {
            note(partition, answer.and_then(Answer::accepted));
        }
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
