//! What is needed to say why a step does not run: a few reads about one step, at one moment as nearly as that goes.

use std::time::{Duration, Instant};

use redis::Value;
use stepfleet_protocol::{
    codec,
    gate::{Gate, GateState},
    id::{JobId, StreamId},
    keys::{GROUP, slot},
    message::Job,
    name::Name,
    state::State,
};

use super::{super::client::Client, ClientError, count, fleet::Registered, reply, runs::Found};
use crate::{
    machine::run::{AttemptError, Step},
    store::record::{pack_ready, priority_of, ready_score},
};

/// Entries of a job stream among which a job is looked for.
const ENTRIES_MAX: usize = 2_000;
/// Entries of one read.
const ENTRIES_PER_READ: usize = 100;
/// Gates that are looked at.
const GATES_MAX: usize = 500;
/// Needed steps that are looked at.
const NEEDS_MAX: usize = 100;
/// Failed attempts among which those of the step are looked for.
const ERRORS_MAX: usize = 200;
/// Milliseconds between looks at a queue, for its rate: a busy one shows it at once, half a second is for a slow one.
const RATE_WAITS_MS: [u64; 4] = [15, 15, 70, 400];
/// Jobs taken that are enough to tell a rate, if workers took some between each two looks: they take many in one read.
const RATE_ENOUGH: i64 = 40;

/// A step and what it may wait for.
#[derive(Debug, Clone)]
pub struct Situation {
    /// Its name.
    pub name: String,
    /// The handler.
    pub handler: String,
    /// The queue its jobs go to.
    pub queue: String,
    /// Its state.
    pub step: Step,
    /// The steps it needs, with their states, at most 100.
    pub needs: Vec<(String, State)>,
    /// When its next attempt is due, in Unix milliseconds of the server.
    pub due_ms: Option<u64>,
    /// Its last failed attempt.
    pub error: Option<AttemptError>,
    /// Where it waits.
    pub place: Spot,
    /// The queue, and who reads it.
    pub readers: Readers,
}

/// Where a step that is to run was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Spot {
    /// It was not looked for, or found nowhere.
    None,
    /// In the ready set, or on the stream and not taken.
    Waiting {
        /// How many of its partition are before it.
        ahead: u64,
        /// Since when, in Unix milliseconds of the server.
        since_ms: u64,
        /// Jobs of the queue and partition that workers took in a second; none if it was not measured.
        per_second: Option<f64>,
    },
    /// Parked at a gate.
    Gate(GateFacts),
    /// A worker says that it has the job.
    Held {
        /// Who.
        worker: String,
        /// It has not been heard of for so long that it will be declared dead.
        silent: bool,
        /// How long the handler has been running; none if it has not begun.
        running_ms: Option<u64>,
        /// Its own account, in per cent.
        progress: Option<u8>,
    },
    /// Delivered to a worker whose account does not name it yet.
    Delivered {
        /// Who.
        worker: String,
        /// For how long, in milliseconds.
        idle_ms: u64,
    },
}

/// The gate that a step is parked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GateFacts {
    /// Its key, such as `handler:charge` or `queue:mail`.
    pub gate: String,
    /// How many are parked before it, in its partition.
    pub ahead: u64,
    /// How many are parked, in its partition.
    pub parked: u64,
    /// Since when the gate is shut, in Unix milliseconds; none if it is not known.
    pub since_ms: Option<u64>,
    /// When it may open by itself, in Unix milliseconds; none if only a person opens it, or if it is not known.
    pub opens_ms: Option<u64>,
    /// Who shut it, and why.
    pub why: Option<String>,
    /// It is not shut, and has this limit.
    pub limit: Option<String>,
}

impl GateFacts {
    fn new(gate: &Gate, (ahead, parked): (u64, u64), state: Option<&GateState>) -> Self {
        let why = |state: &GateState| format!("{} by {}: {}", state.stand.as_str(), state.actor, state.reason);
        Self {
            gate: gate.to_string(),
            ahead,
            parked,
            since_ms: state.map(|state| state.since_ms),
            opens_ms: state.map(|state| state.until_ms).filter(|until| *until > 0),
            why: state.map(why),
            limit: None,
        }
    }
}

/// Who reads a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readers {
    /// Live workers that subscribe to it.
    pub live: u32,
    /// Those of them that have the handler.
    pub able: u32,
    /// Slots of the able ones.
    pub slots: u32,
    /// Jobs that the able ones are running.
    pub running: u32,
}

impl Readers {
    fn of(workers: &[Registered], queue: &Name, handler: &Name) -> Self {
        use stepfleet_protocol::beat::Phase;
        let mut out = Self::default();
        let beats = workers.iter().filter(|w| !w.silent).filter_map(|w| w.beat.as_ref());
        for beat in beats.filter(|b| b.phase == Phase::Running && b.queues.contains(queue)) {
            out.live += 1;
            if beat.handlers.contains(handler) {
                out.able += 1;
                out.slots += beat.slots;
                out.running += beat.held.iter().filter(|held| held.running_ms.is_some()).count() as u32;
            }
        }
        out
    }
}

impl Client {
    /// Looks at one step of a run; none if the workflow has no such step.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn situation(
        &self,
        run: &Found,
        index: u32,
        workers: &[Registered],
    ) -> Result<Option<Situation>, ClientError> {
        let Some((name, written)) = run.workflow.as_ref().and_then(|w| w.steps.get_index(index as usize)) else {
            return Ok(None);
        };
        let workflow = run.workflow.as_ref().expect("the step is of it");
        let Some((_, step)) = self.steps(run, index, 1).await?.pop() else { return Ok(None) };
        let queue = workflow.resolved(written).queue;
        let mut needs = Vec::new();
        if step.state == State::Created {
            for need in written.needs.iter().take(NEEDS_MAX) {
                let Some(of) = workflow.steps.get_index_of(need) else { continue };
                let found = self.steps(run, of as u32, 1).await?.pop();
                needs.push((need.to_string(), found.map_or(State::Created, |(_, step)| step.state)));
            }
        }
        let due_ms = self.next_attempts(run.id, &[(index, step)]).await?.remove(&index);
        let errors = self.errors(run.id, ERRORS_MAX).await?;
        let place = match (step.in_flight, step.job, step.state) {
            (true, Some(job), _) => self.job_place(run, job, &queue, workers).await?,
            (_, _, State::Queued) => self.ready_place(run, index, &queue).await?,
            _ => Spot::None,
        };
        Ok(Some(Situation {
            name: name.to_string(),
            handler: written.handler.to_string(),
            readers: Readers::of(workers, &queue, &written.handler),
            queue: queue.to_string(),
            step,
            needs,
            due_ms,
            error: errors.into_iter().find(|error| error.index == index),
            place,
        }))
    }

    /// At which worker, or where on its stream, a job is.
    async fn job_place(
        &self,
        run: &Found,
        job: JobId,
        queue: &Name,
        workers: &[Registered],
    ) -> Result<Spot, ClientError> {
        for worker in workers {
            let held = worker.beat.iter().flat_map(|beat| &beat.held).find(|held| held.job == job);
            if let Some(held) = held {
                let (worker, silent) = (worker.id.to_string(), worker.silent);
                return Ok(Spot::Held { worker, silent, running_ms: held.running_ms, progress: held.progress });
            }
        }
        let partition = run.id.partition();
        let key = self.keys.partition(partition).jobs(queue);
        let delivered = self.group_of(run, queue).await?.0;
        let (mut from, mut read, mut undelivered) = (StreamId::ZERO, 0, 0);
        while read < ENTRIES_MAX {
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(from.to_string()).arg("+").arg("COUNT").arg(ENTRIES_PER_READ);
            let entries = reply::entries(self.ask_partition(partition, range).await?);
            let Some((last, _)) = entries.last() else { break };
            (from, read) = (last.next(), read + entries.len());
            for (entry, fields) in entries {
                let found = fields.first().and_then(|(field, bytes)| codec::decode::<Job>(field, bytes).ok());
                let is_it = found.is_some_and(|found| found.id == job);
                if is_it && entry > delivered {
                    let per_second = self.rate(run, queue).await?;
                    return Ok(Spot::Waiting { ahead: undelivered, since_ms: entry.ms, per_second });
                }
                if is_it {
                    return self.delivered(run, &key, entry).await;
                }
                undelivered += u64::from(entry > delivered);
            }
        }
        Ok(Spot::None)
    }

    /// Who has a pending entry.
    async fn delivered(&self, run: &Found, key: &str, entry: StreamId) -> Result<Spot, ClientError> {
        let mut pending = redis::cmd("XPENDING");
        pending.arg(key).arg(GROUP).arg(entry.to_string()).arg(entry.to_string()).arg(1);
        let found = self.ask_partition(run.id.partition(), pending).await?;
        let first = reply::array(&found).unwrap_or_default().first().and_then(reply::array).unwrap_or_default();
        let Some(worker) = first.get(1).and_then(reply::text) else { return Ok(Spot::None) };
        Ok(Spot::Delivered { worker: worker.to_owned(), idle_ms: count(first.get(2)) })
    }

    /// Where a ready step waits.
    async fn ready_place(&self, run: &Found, index: u32, queue: &Name) -> Result<Spot, ClientError> {
        let partition = run.id.partition();
        let keys = self.keys.partition(partition);
        let member = pack_ready(run.id, index);
        let place = |key: String| {
            let (mut score, mut rank, mut size) = (redis::cmd("ZSCORE"), redis::cmd("ZRANK"), redis::cmd("ZCARD"));
            score.arg(&key).arg(&member[..]);
            rank.arg(&key).arg(&member[..]);
            size.arg(&key);
            [score, rank, size].map(|cmd| (slot(partition), cmd))
        };
        let found = self.ask_all(place(keys.ready(queue)).into()).await?;
        let shut = self.gates().await?;
        if let Some(score) = found.first().and_then(reply::score) {
            let pause = Gate::queue(queue);
            if let Some(state) = shut.get(&pause) {
                let (ahead, parked) = (count(found.get(1)), count(found.get(2)));
                return Ok(Spot::Gate(GateFacts::new(&pause, (ahead, parked), Some(state))));
            }
            let (_, waiting) = self.group_of(run, queue).await?;
            let since_ms = score.saturating_sub(ready_score(priority_of(score), 0));
            let per_second = self.rate(run, queue).await?;
            return Ok(Spot::Waiting { ahead: waiting + count(found.get(1)), since_ms, per_second });
        }
        let mut members = redis::cmd("SMEMBERS");
        members.arg(keys.gates());
        let found = self.ask_partition(partition, members).await?;
        let names = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text).take(GATES_MAX);
        let gates: Vec<Gate> = names.filter_map(|name| Gate::parse(name).ok()).collect();
        let found = self.ask_all(gates.iter().flat_map(|gate| place(keys.parked(gate))).collect()).await?;
        let parked = gates.iter().zip(found.chunks_exact(3)).find(|(_, found)| found[0] != Value::Nil);
        let Some((gate, found)) = parked else { return Ok(Spot::None) };
        let mut facts = GateFacts::new(gate, (count(found.get(1)), count(found.get(2))), shut.get(gate));
        if !shut.contains_key(gate) {
            facts.limit = self.limit_facts(gate).await?;
        }
        Ok(Spot::Gate(facts))
    }

    /// What a limit says, and how much of it is in use.
    async fn limit_facts(&self, gate: &Gate) -> Result<Option<String>, ClientError> {
        let policies = self.policies().await?.policies;
        let Some(limit) = policies.limits.get(gate.as_str()) else { return Ok(None) };
        let used = self.limit_in_use(gate).await?;
        let places = limit.concurrency.map(|most| format!("{used} of {most} at once are in use"));
        let rate = limit.rate.map(|rate| format!("at most {rate}"));
        Ok(Some(places.into_iter().chain(rate).collect::<Vec<_>>().join(", ")))
    }

    /// The last delivered entry of a job stream, and how many behind it wait.
    async fn group_of(&self, run: &Found, queue: &Name) -> Result<(StreamId, u64), ClientError> {
        let (found, _) = self.groups(run, queue).await?;
        let group = reply::group(&found, GROUP);
        let delivered = group.and_then(|g| reply::field(g, "last-delivered-id")).and_then(reply::text);
        let lag = group.and_then(|g| reply::field(g, "lag")).and_then(reply::number).unwrap_or(0);
        Ok((delivered.and_then(|text| text.parse().ok()).unwrap_or_default(), lag.max(0) as u64))
    }

    async fn groups(&self, run: &Found, queue: &Name) -> Result<(Value, Option<i64>), ClientError> {
        let partition = run.id.partition();
        let mut info = redis::cmd("XINFO");
        info.arg("GROUPS").arg(self.keys.partition(partition).jobs(queue));
        // A queue without a job yet has no stream: no refusal, but nothing.
        let found = self.ask_all(vec![(slot(partition), info)]).await?.pop().unwrap_or(Value::Nil);
        let read = reply::group(&found, GROUP).and_then(|g| reply::field(g, "entries-read")).and_then(reply::number);
        Ok((found, read))
    }

    /// How many jobs of the queue and partition workers take in a second, now.
    async fn rate(&self, run: &Found, queue: &Name) -> Result<Option<f64>, ClientError> {
        let (_, Some(before)) = self.groups(run, queue).await? else { return Ok(None) };
        let (began, mut last, mut moves, mut rate) = (Instant::now(), before, 0, None);
        for wait_ms in RATE_WAITS_MS {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            let (_, Some(after)) = self.groups(run, queue).await? else { return Ok(None) };
            moves += u32::from(std::mem::replace(&mut last, after) < after);
            let taken = after.saturating_sub(before).max(0);
            rate = Some(taken as f64 / began.elapsed().as_secs_f64());
            if taken >= RATE_ENOUGH && moves >= 2 {
                break;
            }
        }
        Ok(rate)
    }
}
