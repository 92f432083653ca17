//! A worker that keeps the rules of the protocol: it beats, names what it holds, reads its own pending list after a lost reply,
//! reports until the log has taken it, now and then twice, and stops what it is told to stop.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use redis::Value;
use stepfleet_coordinator::{mutants::mutant, store::reply};
use stepfleet_protocol::{
    beat::{Beat, Held, Phase},
    codec,
    failure::{Category, Failure},
    id::{JobId, PartitionId, WorkerId},
    keys::GROUP,
    limits::HEARTBEAT_MS,
    message::{Body, Job, JobRef, JobResult, Outcome, Results, Returned, Started},
    name::Name,
};
use tokio::sync::Notify;

use super::{
    plans::{LONG_MS, QUEUES},
    process::Process,
    world::Try,
};
use crate::{fleet::Line, name};

/// Jobs that one worker does at once.
pub(crate) const SLOTS: usize = 4;

/// A job at the worker.
struct Holding {
    of: JobRef,
    partition: PartitionId,
    begun: u64,
    stop: Rc<Notify>,
}

struct Worker {
    process: Rc<Process>,
    id: WorkerId,
    held: RefCell<BTreeMap<JobId, Holding>>,
    /// Results that a log has taken: who finds such a job in its own list sends them again.
    done: RefCell<BTreeMap<JobId, JobResult>>,
    /// Results that the log has not taken, by partition.
    results: RefCell<BTreeMap<PartitionId, Vec<JobResult>>>,
    news: Notify,
}

/// Runs one until it is killed.
pub(crate) async fn run(process: Rc<Process>, id: WorkerId) {
    let (held, done, results) = (RefCell::default(), RefCell::default(), RefCell::default());
    let worker = Rc::new(Worker { process: process.clone(), id, held, done, results, news: Notify::new() });
    process.spawn(worker.clone().beat());
    process.spawn(worker.clone().report());
    process.spawn(worker.clone().look_for_stops());
    worker.take().await;
}

impl Worker {
    async fn beat(self: Rc<Self>) {
        let keys = self.process.world.keys.clone();
        let mut line = Line::new(self.process.dial());
        let mut count = 0;
        loop {
            count += 1;
            let mut register = redis::cmd("ZADD");
            register.arg(keys.workers()).arg(count).arg(self.id.as_str());
            let mut beat = redis::cmd("HSET");
            beat.arg(keys.worker(&self.id)).arg("n").arg(count).arg("beat").arg(codec::pack(&self.account()));
            let told = match line.one(register).await {
                Ok(_) => line.one(beat).await,
                Err(error) => Err(error),
            };
            // What failed comes again with the next beat, or at once if it has lost its channel.
            let wait_ms = if told.is_ok() { HEARTBEAT_MS } else { self.process.world.draw(500..HEARTBEAT_MS) };
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    fn account(&self) -> Beat {
        let now = self.process.world.at();
        let held = self.held.borrow();
        let held = held.iter().map(|(job, holding)| Held {
            job: *job,
            partition: holding.partition,
            queue: holding.of.queue.clone(),
            entry: holding.of.entry,
            running_ms: Some(now - holding.begun),
            progress: None,
        });
        Beat {
            v: 1,
            read_age_ms: 0,
            phase: Phase::Running,
            slots: SLOTS as u32,
            queues: QUEUES.map(name).into(),
            handlers: ["noop", "pay", "other", "undo"].map(name).into(),
            version: "1.0.0".into(),
            host: "h".into(),
            pid: 1,
            held: held.collect(),
            pod: None,
        }
    }

    /// Reads jobs for ever. After a doubtful read it looks what is its own.
    async fn take(self: Rc<Self>) {
        let world = self.process.world.clone();
        let mut line = Line::new(self.process.dial());
        let streams: Vec<(PartitionId, Name)> =
            world.all_partitions().flat_map(|p| QUEUES.map(|q| (p, name(q)))).collect();
        let mut in_doubt = false;
        loop {
            if self.held.borrow().len() >= SLOTS && !in_doubt {
                self.news.notified().await;
                continue;
            }
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(GROUP).arg(self.id.as_str());
            if in_doubt {
                read.arg("COUNT").arg(50);
            } else {
                read.arg("COUNT").arg(2).arg("BLOCK").arg(1_000);
            }
            read.arg("STREAMS");
            for (partition, queue) in &streams {
                read.arg(world.part(*partition).jobs(queue));
            }
            for _ in &streams {
                read.arg(if in_doubt { "0" } else { ">" });
            }
            match line.one(read).await {
                Ok(found) => {
                    in_doubt = false;
                    self.begin_all(&found);
                }
                Err(_) => {
                    in_doubt = true;
                    world.pause(20..60).await;
                }
            }
        }
    }

    fn begin_all(self: &Rc<Self>, found: &Value) {
        for stream in reply::array(found).unwrap_or_default() {
            let pair = reply::array(stream).unwrap_or_default();
            let (Some(key), Some(entries)) = (pair.first().and_then(reply::bytes), pair.get(1)) else { continue };
            let world = &self.process.world;
            let places = world.all_partitions().flat_map(|p| QUEUES.map(|q| (p, name(q))));
            let place = places.into_iter().find(|(p, queue)| world.part(*p).jobs(queue).as_bytes() == key);
            let Some((partition, queue)) = place else { continue };
            for (entry, fields) in reply::entries(entries.clone()) {
                // One that was acked meanwhile has no fields in the own list.
                let Some((field, bytes)) = fields.first() else { continue };
                let job: Job = codec::decode(field, bytes).expect("a job of ours");
                let of = JobRef { job: job.id, run: job.run, index: job.index, queue: queue.clone(), entry };
                if mutant("worker_acks") {
                    self.ack(&of);
                }
                self.begin(partition, of, job);
            }
        }
    }

    /// What a worker must not do: the owner acks, in the commit that decides the result.
    fn ack(self: &Rc<Self>, of: &JobRef) {
        let mut ack = redis::cmd("XACK");
        ack.arg(self.process.world.part(of.run.partition()).jobs(&of.queue)).arg(GROUP).arg(of.entry.to_string());
        let mut line = Line::new(self.process.dial());
        self.process.spawn(async move { drop(line.one(ack).await) });
    }

    fn begin(self: &Rc<Self>, partition: PartitionId, of: JobRef, job: Job) {
        if self.held.borrow().contains_key(&job.id) {
            return;
        }
        if let Some(result) = self.done.borrow().get(&job.id) {
            self.results.borrow_mut().entry(partition).or_default().push(result.clone());
            return;
        }
        let world = self.process.world.clone();
        let begun = world.at();
        let this = (job.run, job.index, job.generation, job.attempt);
        let first = *world.ledger.borrow_mut().jobs.entry(job.id).or_insert(this);
        if first != this {
            world.violated("jobs", Some(job.run), format!("job {} names two tries: {first:?} and {this:?}", job.id));
        }
        let number = {
            let mut ledger = world.ledger.borrow_mut();
            ledger.tries.push(Try {
                job: job.id,
                run: job.run,
                index: job.index,
                generation: job.generation,
                worker: self.id.clone(),
                begun,
                ended: None,
                outcome: None,
                reported: None,
                logged_ms: None,
            });
            ledger.tries.len() - 1
        };
        world.tell(Some(job.run), format!("{} begins {} try {} of step {}", self.id, job.id, job.attempt, job.index));
        let (stop, me) = (Rc::new(Notify::new()), self.clone());
        let (stopped, at) = (stop.clone(), of.clone());
        let id = job.id;
        self.process.spawn(async move { me.work(number, at, job, stopped).await });
        self.held.borrow_mut().insert(id, Holding { of, partition, begun, stop });
    }

    async fn work(self: Rc<Self>, number: usize, of: JobRef, job: Job, stop: Rc<Notify>) {
        let world = self.process.world.clone();
        let begun = world.at();
        let (mut takes_ms, outcome) = self.fate(&job);
        let mut outcome = outcome;
        if job.timeout_ms > 0 && takes_ms > job.timeout_ms {
            takes_ms = job.timeout_ms;
            outcome = Outcome::Failed(Failure::new(Category::Timeout, "ran past its limit").with_code("timeout"));
        }
        let outcome = tokio::select! {
            biased;
            () = stop.notified() => Outcome::Cancelled,
            () = tokio::time::sleep(Duration::from_millis(takes_ms)) => outcome,
        };
        {
            let mut ledger = world.ledger.borrow_mut();
            (ledger.tries[number].ended, ledger.tries[number].outcome) = (Some(world.at()), Some(outcome.clone()));
        }
        world.tell(Some(of.run), format!("{} ends {}: {}", self.id, job.id, word(&outcome)));
        if !world.calm.get() && world.chance(0.05) {
            // Others overtake it.
            world.pause(10..3_000).await;
        }
        let gate = job.gate.clone();
        let result = JobResult { of: of.clone(), run_ms: world.at() - begun, outcome, gate };
        let twice = !world.calm.get() && world.chance(0.08);
        let partition = of.run.partition();
        self.results.borrow_mut().entry(partition).or_default().push(result.clone());
        self.news.notify_waiters();
        if twice {
            world.pause(1..4_000).await;
            self.results.borrow_mut().entry(partition).or_default().push(result);
            self.news.notify_waiters();
        }
    }

    /// How long a job takes, and what becomes of it.
    fn fate(&self, job: &Job) -> (u64, Outcome) {
        let world = &self.process.world;
        let takes_ms = match world.draw(0..100) {
            _ if world.calm.get() => world.draw(1..20),
            0..60 if job.timeout_ms >= LONG_MS => world.draw(20_000..70_000),
            0..60 => world.draw(1..50),
            60..92 => world.draw(50..900),
            _ => world.draw(900..12_000),
        };
        let failed = |category, text: &str| Outcome::Failed(Failure::new(category, text));
        let at_bank = job.gate.as_ref().is_some_and(|gate| gate.as_str() == "target:bank");
        let outcome = match world.draw(0..100) {
            _ if world.calm.get() => Outcome::Completed(None),
            _ if at_bank && world.bank_is_down.get() => failed(Category::Transient, "the bank is closed"),
            0..10 => failed(Category::Transient, "no luck"),
            10..12 => failed(Category::System, "no memory"),
            12..14 => failed(Category::Permanent, "never"),
            14 => failed(Category::Data, "no such number"),
            15..18 => Outcome::Returned(Returned::Drain),
            18 => Outcome::Returned(Returned::Surplus),
            _ => Outcome::Completed(None),
        };
        (takes_ms, outcome)
    }

    /// Brings results and news of long jobs to the logs.
    async fn report(self: Rc<Self>) {
        let world = self.process.world.clone();
        let mut line = Line::new(self.process.dial());
        let mut told: BTreeSet<JobId> = BTreeSet::new();
        loop {
            let waiting: Vec<PartitionId> = self.results.borrow().keys().copied().collect();
            for partition in waiting {
                let results = self.results.borrow().get(&partition).cloned().unwrap_or_default();
                let body = Body::Results(Results { worker: self.id.clone(), results: results.clone() });
                if let Ok(entry) = line.append(&world.part(partition), body).await {
                    let mut left = self.results.borrow_mut();
                    let rest = left.get_mut(&partition).map(|all| all.split_off(results.len())).unwrap_or_default();
                    left.remove(&partition);
                    if !rest.is_empty() {
                        left.insert(partition, rest);
                    }
                    drop(left);
                    self.reported(&results, entry.ms);
                }
            }
            self.tell_started(&mut line, &mut told).await;
            if self.results.borrow().is_empty() {
                tokio::select! {
                    biased;
                    () = self.news.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(700)) => {}
                }
            } else {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }

    fn reported(&self, results: &[JobResult], logged_ms: u64) {
        let now = self.process.world.at();
        let mut ledger = self.process.world.ledger.borrow_mut();
        for result in results {
            let mine = |t: &&mut Try| t.job == result.of.job && t.worker == self.id && t.reported.is_none();
            let tries = ledger.tries.iter_mut().filter(mine);
            tries.for_each(|t| (t.reported, t.logged_ms) = (Some(now), Some(logged_ms)));
            self.held.borrow_mut().remove(&result.of.job);
            self.done.borrow_mut().insert(result.of.job, result.clone());
        }
        self.news.notify_waiters();
    }

    async fn tell_started(&self, line: &mut Line<super::process::ProcessDial>, told: &mut BTreeSet<JobId>) {
        let world = &self.process.world;
        let now = world.at();
        let mut long: BTreeMap<PartitionId, Vec<(JobRef, u64)>> = BTreeMap::new();
        for (job, holding) in self.held.borrow().iter() {
            let has_ended = self.results.borrow().values().flatten().any(|r| r.of.job == *job);
            if now - holding.begun >= 1_000 && !has_ended && !told.contains(job) {
                long.entry(holding.partition).or_default().push((holding.of.clone(), now - holding.begun));
            }
        }
        for (partition, jobs) in long {
            let ids: Vec<JobId> = jobs.iter().map(|(of, _)| of.job).collect();
            let body = Body::Started(Started { worker: self.id.clone(), jobs });
            if line.append(&world.part(partition), body).await.is_ok() {
                told.extend(ids);
            }
        }
    }

    /// Looks for jobs that are to be stopped while it has some.
    async fn look_for_stops(self: Rc<Self>) {
        let world = self.process.world.clone();
        let mut line = Line::new(self.process.dial());
        loop {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            let partitions: BTreeSet<PartitionId> = self.held.borrow().values().map(|h| h.partition).collect();
            for partition in partitions {
                let mut read = redis::cmd("SMEMBERS");
                read.arg(world.part(partition).cancels());
                let Ok(found) = line.one(read).await else { continue };
                let jobs = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text);
                for job in jobs.filter_map(|text| text.parse::<JobId>().ok()) {
                    if let Some(holding) = self.held.borrow().get(&job) {
                        holding.stop.notify_one();
                    }
                }
            }
        }
    }
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed(_) => "completed".into(),
        Outcome::Failed(failure) => format!("failed ({})", failure.category),
        Outcome::Returned(why) => format!("returned ({why:?})"),
        Outcome::Cancelled => "cancelled".into(),
    }
}
