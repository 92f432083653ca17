//! How it is found out whether a step is where it has to be.

use std::collections::{BTreeSet, HashMap, HashSet};

use redis::Value;
use stepfleet_protocol::{
    beat::Beat,
    codec,
    gate::Gate,
    id::{JobId, PartitionId, StreamId},
    limits::CHUNK_STEPS,
    message::Job,
    name::Name,
};

use super::{ASKS_PER_TRIP, Auditor, Place, Subject};
use crate::{
    machine::event::Timer,
    shell::links::Ask,
    store::{
        link::Dial,
        record::{self, pack_ready, pack_timer},
        reply,
    },
};

/// Entries of one read of a job stream: with inputs inside, less than a MiB.
const ENTRIES_PER_READ: usize = 100;
/// Entries of a job stream that are read, at most. Beyond that nothing can be said about it.
const ENTRIES_MAX: usize = 20_000;
/// Gates of a partition that are looked at, at most.
const GATES_MAX: usize = 2_000;
/// Workers whose accounts are read, at most.
const WORKERS_MAX: usize = 5_000;

impl<D: Dial> Auditor<D> {
    /// Asks for the step's place. The first reply is nil if it is not there; jobs, work items and letters are
    /// looked for otherwise.
    pub(super) fn look_at_place(&self, subject: Subject, place: Place, queue: Option<&Name>) -> Ask {
        let keys = self.keys.partition(subject.run.partition());
        let index = subject.index.unwrap_or_default();
        let (key, member) = match (place, queue) {
            (Place::Ready, Some(queue)) => (keys.ready(queue), pack_ready(subject.run, index)),
            (Place::Timer(job), _) => (keys.timers(), pack_timer(subject.run, Timer::Retry { index, job })),
            (Place::Timeout, _) => (keys.timers(), pack_timer(subject.run, Timer::Run)),
            // No member of this name is ever there.
            (Place::Ready | Place::Job(_) | Place::Nothing | Place::Work | Place::Letter(_), _) => {
                (keys.timers(), Vec::new())
            }
        };
        let mut score = redis::cmd("ZSCORE");
        score.arg(&key).arg(member);
        Ask::new(&key, vec![score])
    }

    /// Asks for the packed state of the step, or of the run.
    pub(super) fn look_at_state(&self, subject: Subject) -> Ask {
        let keys = self.keys.partition(subject.run.partition());
        let mut get = redis::cmd("HGET");
        let key = match subject.index {
            Some(index) if index >= CHUNK_STEPS => keys.chunk(&subject.run, index / CHUNK_STEPS),
            Some(_) | None => keys.run(&subject.run),
        };
        match subject.index {
            Some(index) => get.arg(&key).arg(index),
            None => get.arg(&key).arg(record::FIELD_RECORD),
        };
        Ask::new(&key, vec![get])
    }

    /// Whether the ready step is parked at a gate; none if that cannot be known now.
    pub(super) async fn at_a_gate(&mut self, subject: Subject) -> Option<bool> {
        let keys = self.keys.partition(subject.run.partition());
        let list = keys.gates();
        let found = self.links.one(&list, redis::cmd("SMEMBERS").arg(&list).clone()).await.ok()?;
        let names = reply::array(&found)?.iter().filter_map(reply::text);
        let gates: Vec<Gate> = names.filter_map(|name| Gate::parse(name).ok()).collect();
        if gates.len() > GATES_MAX {
            return None;
        }
        let member = pack_ready(subject.run, subject.index?);
        let ask = |gate: &Gate| {
            let key = keys.parked(gate);
            Ask::new(&key, vec![redis::cmd("ZSCORE").arg(&key).arg(&member[..]).clone()])
        };
        let asks = gates.iter().map(ask).collect();
        for answer in self.links.gather(asks, ASKS_PER_TRIP).await {
            if *answer.ok()?.replies.first()? != Value::Nil {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The jobs that workers say they hold; none if not all could be asked.
    pub(super) async fn held(&mut self) -> Option<HashSet<JobId>> {
        let list = self.keys.workers();
        let mut range = redis::cmd("ZRANGE");
        range.arg(&list).arg(0).arg(WORKERS_MAX);
        let found = self.links.one(&list, range).await.ok()?;
        let ids: Vec<&str> = reply::array(&found)?.iter().filter_map(reply::text).collect();
        if ids.len() > WORKERS_MAX {
            return None;
        }
        let ask = |id: &&str| {
            let key = self.keys.worker(id);
            Ask::new(&key, vec![redis::cmd("HGET").arg(&key).arg("beat").clone()])
        };
        let asks = ids.iter().map(ask).collect();
        let mut held = HashSet::new();
        for answer in self.links.gather(asks, ASKS_PER_TRIP).await {
            let found = answer.ok()?;
            if found.replies.iter().any(|reply| reply::error(reply).is_some()) {
                return None;
            }
            let beat = found.replies.first().and_then(reply::bytes).and_then(|b| codec::unpack::<Beat>(b).ok());
            held.extend(beat.into_iter().flat_map(|beat| beat.held).map(|held| held.job));
        }
        Some(held)
    }

    /// The jobs on these streams, taken by a worker or not; streams that cannot be read to their end are left out.
    pub(super) async fn on_streams(
        &mut self,
        streams: BTreeSet<(PartitionId, Name)>,
    ) -> HashMap<(PartitionId, Name), HashSet<JobId>> {
        let mut out = HashMap::new();
        for stream in streams {
            if let Some(jobs) = self.on_stream(&stream).await {
                out.insert(stream, jobs);
            }
        }
        out
    }

    async fn on_stream(&mut self, (partition, queue): &(PartitionId, Name)) -> Option<HashSet<JobId>> {
        let key = self.keys.partition(*partition).jobs(queue);
        let (mut jobs, mut from, mut read) = (HashSet::new(), StreamId::ZERO, 0);
        while read < ENTRIES_MAX {
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(from.to_string()).arg("+").arg("COUNT").arg(ENTRIES_PER_READ);
            // A refusal is no answer: it must not pass for an empty stream.
            let entries = reply::entries(self.links.read(&key, range).await.ok()?);
            let Some((last, _)) = entries.last() else { return Some(jobs) };
            (from, read) = (last.next(), read + entries.len());
            let whole = entries.len() < ENTRIES_PER_READ;
            for (_, fields) in entries {
                let (field, bytes) = fields.first()?;
                // What is no job is the observer's affair, and what is of a newer program may be any job.
                match codec::decode::<Job>(field, bytes) {
                    Ok(job) => drop(jobs.insert(job.id)),
                    Err(codec::DecodeError::Newer(_)) => return None,
                    Err(codec::DecodeError::Malformed(_)) => {}
                }
            }
            if whole {
                return Some(jobs);
            }
        }
        None
    }
}
