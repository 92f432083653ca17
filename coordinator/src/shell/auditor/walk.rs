//! The walk: page by page over the listings of open runs, or of failed ones, oldest first.

use std::{collections::btree_map::Entry, panic::catch_unwind, sync::Arc};

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

use super::{ASKS_PER_TRIP, Auditor, PLANS_KEPT, Place, SUSPECTS_MAX, Subject, ask::Done, suspects::Suspect};
use crate::{
    machine::{
        plan::Plan,
        run::{Step, Undoing},
    },
    shell::links::Ask,
    store::{
        link::Dial,
        record::{self, RunRecord},
        reply, young,
    },
};

/// Open runs younger than this are left for the next walk, in milliseconds.
const SETTLED_MS: u64 = 2_000;
/// Listings of runs that may have something to do: suspended ones may have a job that still runs, or be about to stop.
const OPEN: &[State] = &[State::Processing, State::Suspended];
/// Listings of runs that have only dead letters to lose. Cancelled runs have none that are open.
const FAILED: &[State] = &[State::Failed];

/// How far a walk is.
#[derive(Debug)]
pub(super) struct Walk {
    partitions: Vec<PartitionId>,
    listings: &'static [State],
    listing: usize,
    /// The score where the next page begins, and how many runs with that score are seen.
    from: (u64, usize),
    /// Runs that were looked at in the present partition.
    runs: u64,
    /// When it came to the present partition, in Unix milliseconds of the server.
    began_ms: u64,
}

impl Walk {
    pub(super) fn over_open(partitions: Vec<PartitionId>) -> Self {
        Self { partitions, listings: OPEN, listing: 0, from: (0, 0), runs: 0, began_ms: 0 }
    }

    fn is_over_open(&self) -> bool {
        self.listings == OPEN
    }

    pub(super) fn over_failed(partitions: Vec<PartitionId>) -> Self {
        Self { listings: FAILED, ..Self::over_open(partitions) }
    }
}

/// What a look needs of a plan.
#[derive(Debug)]
pub(super) struct Steps {
    /// The queues of each step, those that undo others behind the written ones.
    queues: Vec<Queues>,
    /// The time-out of a run, in milliseconds; 0 for none.
    timeout_ms: u64,
}

/// Where the jobs of a step may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queues {
    /// Its own queue, where it also waits to be released.
    pub(super) own: Name,
    /// That of its fallback, if it is another one.
    pub(super) fallback: Option<Name>,
}

/// A step, or the run, that has to be somewhere.
pub(super) struct Wanted {
    pub(super) subject: Subject,
    pub(super) place: Place,
    pub(super) queues: Option<Queues>,
    /// Its packed state.
    pub(super) packed: Vec<u8>,
}

impl<D: Dial> Auditor<D> {
    /// Looks at the next runs, about `left` of them.
    pub(super) async fn step(&mut self, mut left: usize) {
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
            (walk.listing, walk.from, walk.runs, walk.began_ms) = (0, (0, 0), 0, 0);
        }
    }

    /// One page of a listing: how many runs it had; none if the node did not answer.
    async fn page(&mut self, partition: PartitionId, limit: usize) -> Option<usize> {
        let walk = self.walk.as_ref()?;
        let (from, offset) = walk.from;
        let keys = self.keys.partition(partition);
        let key = keys.runs(walk.listings[walk.listing]);
        let time = self.links.one(&key, redis::cmd("TIME")).await.ok()?;
        let (now_ms, told) = (reply::time_ms(&time)?, Instant::now());
        let walk = self.walk.as_mut()?;
        if walk.began_ms == 0 {
            walk.began_ms = now_ms;
        }
        // What has failed moves no more.
        let settled_ms = if walk.listings == OPEN { SETTLED_MS } else { 0 };
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(&key).arg(from).arg(now_ms.saturating_sub(settled_ms)).arg("WITHSCORES");
        range.arg("LIMIT").arg(offset).arg(limit);
        // What is young now is left for a later walk.
        let timed_to = young::stored_to(&self.links.read(&keys.head(), young::ask(&keys)).await.ok()?);
        let found = self.links.one(&key, range).await.ok()?;
        let runs: Vec<(RunId, u64)> = reply::array(&found)
            .unwrap_or_default()
            .chunks_exact(2)
            .filter_map(|pair| Some((reply::bytes(&pair[0]).and_then(RunId::from_bytes)?, reply::score(&pair[1])?)))
            .collect();
        let ids: Vec<RunId> = runs.iter().map(|(run, _)| *run).collect();
        let wanted = self.wanted(&ids, timed_to).await;
        self.first_look(wanted).await;
        self.metrics.audited.inc_by(runs.len() as u64);
        let walk = self.walk.as_mut()?;
        walk.runs += runs.len() as u64;
        match runs.last() {
            Some((_, last)) if runs.len() >= limit => {
                let same = runs.iter().rev().take_while(|(_, score)| score == last).count();
                walk.from = (*last, if *last == from { offset + runs.len() } else { same });
            }
            _ if walk.listing + 1 < walk.listings.len() => (walk.listing, walk.from) = (walk.listing + 1, (0, 0)),
            _ => {
                let done = Done { runs: walk.runs, began_ms: walk.began_ms, open: walk.listings == OPEN };
                let end_ms = now_ms + told.elapsed().as_millis() as u64;
                self.say(partition, end_ms, done).await;
                self.next_partition();
            }
        }
        Some(runs.len())
    }

    /// What has to be somewhere, of these runs of one partition.
    async fn wanted(&mut self, runs: &[RunId], timed_to: Option<u64>) -> Vec<Wanted> {
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
            let mut missed = |place| {
                let (subject, packed) = (Subject { run: *run, index: None }, packed.to_vec());
                out.push(Wanted { subject, place, queues: None, packed });
            };
            let (ended, undone) = (record.state.is_finished(), record.undoing != Undoing::None);
            if record.work > 0 {
                // A part of a large transition is still to come, and moves its steps. What is taken back or undone has
                // parts that nobody could make up for.
                if !record.rewinding && !undone {
                    missed(Place::Work);
                }
                continue;
            }
            let has_letters = record.failed > record.tolerated || record.undoing == Undoing::Failed;
            if ended && record.active == 0 && !has_letters {
                continue;
            }
            if record.active == 0 && !ended && record.state != State::Suspended {
                missed(Place::Nothing);
                continue;
            }
            let Some(plan) = self.plan(*run, &record).await else { continue };
            // A failed run that is held keeps the time it ended, and has no time-out any more.
            let armed = plan.timeout_ms > 0 && !ended && record.ending.is_none() && !undone && record.finished_ms == 0;
            if armed && young::is_stored(run.created_ms(), plan.timeout_ms, timed_to) {
                missed(Place::Timeout);
            }
            if record.active == 0 && !has_letters {
                continue;
            }
            let queues = &plan.queues;
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

    /// What the run follows.
    async fn plan(&mut self, run: RunId, record: &RunRecord) -> Option<Arc<Steps>> {
        if let Some(found) = self.plans.get(&record.plan) {
            return Some(found.clone());
        }
        let key = self.keys.partition(run.partition()).plan(&record.plan);
        let found = self.links.one(&key, redis::cmd("GET").arg(&key).clone()).await.ok()?;
        let plain = codec::decompress(reply::bytes(&found)?).ok()?;
        let workflow: Workflow = codec::unpack(&plain).ok()?;
        // It was checked at the door; what was spoiled since then is told by whoever owns the partition.
        let plan = catch_unwind(|| Plan::compile(record.plan.as_str().into(), &workflow)).ok()?;
        let queues = plan.steps.iter().map(|step| {
            let fallback = step.fallback.as_ref().and_then(|fallback| fallback.queue.clone());
            Queues { own: step.queue.clone(), fallback }
        });
        let plan = Arc::new(Steps { queues: queues.collect(), timeout_ms: workflow.timeout.0 });
        if self.plans.len() >= PLANS_KEPT {
            self.plans.clear();
        }
        self.plans.insert(record.plan.clone(), plan.clone());
        Some(plan)
    }

    /// Who is not where it has to be becomes a suspect. Jobs and work items are looked for in the second look only: nearly
    /// all are done by then.
    async fn first_look(&mut self, wanted: Vec<Wanted>) {
        let (mut letters, mut wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|one| matches!(one.place, Place::Letter(_)));
        if !self.letters.0 && self.walk.as_ref().is_some_and(Walk::is_over_open) {
            letters.clear();
        }
        wanted.extend(self.without_letter(letters).await);
        let look = |w: &Wanted| self.look_at_place(w.subject, w.place, w.queues.as_ref().map(|queues| &queues.own));
        let asks = wanted.iter().map(look).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        let now = Instant::now();
        for (wanted, answer) in wanted.into_iter().zip(answers) {
            let Ok(answer) = answer else { continue };
            if answer.replies.first().is_none_or(|found| *found != Value::Nil) {
                continue;
            }
            if self.suspects.len() < SUSPECTS_MAX {
                let suspect = Suspect { since: now, place: wanted.place, queues: wanted.queues, packed: wanted.packed };
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
fn steps(run: RunId, queues: &[Queues], fields: Vec<(bytes::Bytes, bytes::Bytes)>, out: &mut Vec<Wanted>) {
    for (name, packed) in fields {
        let Some(index) = std::str::from_utf8(&name).ok().and_then(|text| text.parse::<u32>().ok()) else { continue };
        let (Ok(step), Some(queues)) = (record::unpack_step(&packed), queues.get(index as usize)) else { continue };
        let Some(place) = place_of(&step) else { continue };
        let subject = Subject { run, index: Some(index) };
        out.push(Wanted { subject, place, queues: Some(queues.clone()), packed: packed.to_vec() });
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
        State::Failed => step.letter.map(Place::Letter),
        State::Created
        | State::Processing
        | State::Waiting
        | State::Completed
        | State::Suspended
        | State::Cancelled
        | State::Skipped => None,
    }
}
