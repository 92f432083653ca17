//! The walk: page by page over the listings of open runs, oldest first.

use std::{collections::hash_map::Entry, sync::Arc};

use redis::Value;
use stepfleet_protocol::{
    codec,
    id::{PartitionId, RunId},
    limits::CHUNK_STEPS,
    name::Name,
    state::State,
    workflow::Workflow,
};
use tokio::time::Instant;

use super::{
    ASKS_PER_TRIP, Auditor, Followed, PLANS_KEPT, Place, RUNS_PER_TICK, SUSPECTS_MAX, Subject, suspects::Suspect,
};
use crate::{
    machine::run::{Step, Undoing},
    shell::links::Ask,
    store::{
        link::Dial,
        record::{self, RunRecord},
        reply,
    },
};

/// Runs younger than this are left for the next walk, in milliseconds.
const YOUNG_MS: u64 = 2_000;
/// Listings of runs that may have something to do: suspended ones may have a job that still runs, or be about to stop.
const LISTINGS: [State; 2] = [State::Processing, State::Suspended];

/// How far a walk is.
#[derive(Debug)]
pub(super) struct Walk {
    partitions: Vec<PartitionId>,
    listing: usize,
    /// The score where the next page begins, and how many runs with that score are seen.
    from: (u64, usize),
    /// Runs that were looked at in the present partition.
    runs: u64,
}

impl Walk {
    pub(super) fn over(partitions: Vec<PartitionId>) -> Self {
        Self { partitions, listing: 0, from: (0, 0), runs: 0 }
    }
}

/// A step, or the run, that has to be somewhere.
pub(super) struct Wanted {
    pub(super) subject: Subject,
    pub(super) place: Place,
    pub(super) queue: Option<Name>,
    /// Its packed state.
    pub(super) packed: Vec<u8>,
}

impl<D: Dial> Auditor<D> {
    /// Looks at the next runs.
    pub(super) async fn step(&mut self) {
        let mut left = RUNS_PER_TICK;
        while left > 0 {
            let Some(walk) = &self.walk else { return };
            let Some(partition) = walk.partitions.last().copied() else {
                self.walk = None;
                return;
            };
            let Some(seen) = self.page(partition, left).await else {
                // The node is away: its partition is looked at by the next walk.
                self.next_partition();
                continue;
            };
            left = left.saturating_sub(seen.max(1));
        }
    }

    fn next_partition(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.partitions.pop();
            (walk.listing, walk.from, walk.runs) = (0, (0, 0), 0);
        }
    }

    /// One page of a listing: how many runs it had; none if the node did not answer.
    async fn page(&mut self, partition: PartitionId, limit: usize) -> Option<usize> {
        let walk = self.walk.as_ref()?;
        let (from, offset) = walk.from;
        let keys = self.keys.partition(partition);
        let key = keys.runs(LISTINGS[walk.listing]);
        let time = self.links.one(&key, redis::cmd("TIME")).await.ok()?;
        let now_ms = reply::time_ms(&time)?;
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(&key).arg(from).arg(now_ms.saturating_sub(YOUNG_MS)).arg("WITHSCORES");
        range.arg("LIMIT").arg(offset).arg(limit);
        let found = self.links.one(&key, range).await.ok()?;
        let runs: Vec<(RunId, u64)> = reply::array(&found)
            .unwrap_or_default()
            .chunks_exact(2)
            .filter_map(|pair| Some((reply::bytes(&pair[0]).and_then(RunId::from_bytes)?, reply::score(&pair[1])?)))
            .collect();
        let ids: Vec<RunId> = runs.iter().map(|(run, _)| *run).collect();
        let wanted = self.wanted(&ids).await;
        self.first_look(wanted).await;
        self.metrics.audited.inc_by(runs.len() as u64);
        let walk = self.walk.as_mut()?;
        walk.runs += runs.len() as u64;
        match runs.last() {
            Some((_, last)) if runs.len() >= limit => {
                let same = runs.iter().rev().take_while(|(_, score)| score == last).count();
                walk.from = (*last, if *last == from { offset + runs.len() } else { same });
            }
            _ if walk.listing + 1 < LISTINGS.len() => (walk.listing, walk.from) = (walk.listing + 1, (0, 0)),
            _ => {
                let runs = walk.runs;
                self.say(partition, now_ms, runs).await;
                self.next_partition();
            }
        }
        Some(runs.len())
    }

    /// Notes that the walk over the partition is done, for those who ask how things are.
    async fn say(&mut self, partition: PartitionId, now_ms: u64, runs: u64) {
        let key = self.keys.partition(partition).audited();
        let suspects = self.suspects.keys().filter(|subject| subject.run.partition() == partition).count();
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg("at_ms").arg(now_ms).arg("runs").arg(runs).arg("suspects").arg(suspects);
        if let Err(error) = self.links.one(&key, set).await {
            tracing::debug!(%partition, %error, "the walk could not be noted");
        }
    }

    /// What has to be somewhere, of these runs of one partition.
    async fn wanted(&mut self, runs: &[RunId]) -> Vec<Wanted> {
        let whole = |keys: String| Ask::new(&keys, vec![redis::cmd("HGETALL").arg(&keys).clone()]);
        let asks = runs.iter().map(|run| whole(self.keys.partition(run.partition()).run(run))).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        let mut out = Vec::new();
        for (run, answer) in runs.iter().zip(answers) {
            let Some(fields) = answer.ok().and_then(|answer| answer.replies.into_iter().next()) else { continue };
            let fields = reply::pairs(fields);
            let Some((_, packed)) = fields.iter().find(|(name, _)| name.as_ref() == record::FIELD_RECORD.as_bytes())
            else {
                continue;
            };
            let Ok(record) = record::unpack_run(packed) else { continue };
            // A part of a large transition is still to come, and moves its steps.
            if record.work > 0 || (record.state.is_finished() && record.active == 0) {
                continue;
            }
            if record.active == 0 {
                if record.state != State::Suspended {
                    let subject = Subject { run: *run, index: None };
                    out.push(Wanted { subject, place: Place::Nothing, queue: None, packed: packed.to_vec() });
                }
                continue;
            }
            let Some(followed) = self.followed(*run, &record).await else { continue };
            let queues = &followed.queues;
            // A suspended run that failed has none; the others are looked at when they go on.
            if followed.timeout_ms > 0
                && record.undoing == Undoing::None
                && record.ending.is_none()
                && record.state != State::Suspended
                && !record.state.is_finished()
            {
                let subject = Subject { run: *run, index: None };
                out.push(Wanted { subject, place: Place::Timeout, queue: None, packed: packed.to_vec() });
            }
            steps(*run, queues, fields, &mut out);
            let keys = self.keys.partition(run.partition());
            let chunks = 1..(queues.len() as u32).div_ceil(CHUNK_STEPS);
            let asks = chunks.map(|chunk| whole(keys.chunk(run, chunk))).collect();
            for answer in self.links.gather(asks, 16).await {
                let Some(fields) = answer.ok().and_then(|answer| answer.replies.into_iter().next()) else { continue };
                steps(*run, queues, reply::pairs(fields), &mut out);
            }
        }
        out
    }

    /// What is needed of the run's plan.
    async fn followed(&mut self, run: RunId, record: &RunRecord) -> Option<Arc<Followed>> {
        if let Some(found) = self.plans.get(&record.plan) {
            return Some(found.clone());
        }
        let key = self.keys.partition(run.partition()).plan(&record.plan);
        let found = self.links.one(&key, redis::cmd("GET").arg(&key).clone()).await.ok()?;
        let plain = codec::decompress(reply::bytes(&found)?).ok()?;
        let workflow: Workflow = codec::unpack(&plain).ok()?;
        let queues = workflow.steps.values().map(|step| workflow.resolved(step).queue).collect();
        let followed = Arc::new(Followed { queues, timeout_ms: workflow.timeout.0 });
        if self.plans.len() >= PLANS_KEPT {
            self.plans.clear();
        }
        self.plans.insert(record.plan.clone(), followed.clone());
        Some(followed)
    }

    /// Who is not where it has to be becomes a suspect. Jobs are looked for in the second look only: nearly all are
    /// done by then.
    async fn first_look(&mut self, wanted: Vec<Wanted>) {
        let look = |w: &Wanted| self.look_at_place(w.subject, w.place, w.queue.as_ref());
        let asks = wanted.iter().map(look).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        let now = Instant::now();
        for (wanted, answer) in wanted.into_iter().zip(answers) {
            let Ok(answer) = answer else { continue };
            if answer.replies.first().is_none_or(|found| *found != Value::Nil) {
                continue;
            }
            if self.suspects.len() < SUSPECTS_MAX {
                let suspect = Suspect { since: now, place: wanted.place, queue: wanted.queue, packed: wanted.packed };
                match self.suspects.entry(wanted.subject) {
                    Entry::Occupied(mut known) => {
                        if known.get().packed != suspect.packed {
                            known.insert(suspect);
                        }
                    }
                    Entry::Vacant(free) => drop(free.insert(suspect)),
                }
            }
        }
    }
}

/// What the steps of these fields have to be found in.
fn steps(run: RunId, queues: &[Name], fields: Vec<(bytes::Bytes, bytes::Bytes)>, out: &mut Vec<Wanted>) {
    for (name, packed) in fields {
        let Some(index) = std::str::from_utf8(&name).ok().and_then(|text| text.parse::<u32>().ok()) else { continue };
        let (Ok(step), Some(queue)) = (record::unpack_step(&packed), queues.get(index as usize)) else { continue };
        let Some(place) = place_of(&step) else { continue };
        let subject = Subject { run, index: Some(index) };
        out.push(Wanted { subject, place, queue: Some(queue.clone()), packed: packed.to_vec() });
    }
}

/// Where a step has to be; none if it waits for nothing of its own.
fn place_of(step: &Step) -> Option<Place> {
    if step.in_flight {
        return step.job.map(Place::Job);
    }
    match step.state {
        State::Queued => Some(Place::Ready),
        State::Retrying => step.job.map(Place::Timer),
        State::Created
        | State::Processing
        | State::Waiting
        | State::Completed
        | State::Failed
        | State::Suspended
        | State::Cancelled
        | State::Skipped => None,
    }
}
