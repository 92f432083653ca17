//! Seeded simulation: the real owner over the server in memory, with lost requests, lost replies, late EXECs and dying
//! owners and workers. `SEEDS` says how many seeds to run, `SEED` runs one.

mod campaigns;
mod checks;
mod fleet;
mod gates;

use std::{collections::BTreeMap, time::Duration};

use checks::{check, check_nothing_is_left};
use fleet::*;
use gates::Gates;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use stepfleet_coordinator::{
    machine::decision::Why,
    shell::owner::{Memory, Owner, OwnerError},
    store::{
        memory::{Clock, Faults, MemoryDial, MemoryLink, MemoryServer, Snapshot},
        room,
    },
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    id::{JobId, RunId},
    message::{Body, Job, JobRef, Lost, Outcome, Resolution, Returned, Verb},
    state::State,
    workflow::Workflow,
};

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    rt.expect("a runtime").block_on(future)
}

#[test]
fn a_chain_goes_from_submit_to_completed() {
    run(async {
        let server = MemoryServer::new(Clock::default());
        let dial = server.dial();
        let mut client = Client::new(dial.clone(), 1);
        let run = client.run_id();
        client.submit(run, &chain(3), None, false).await.expect("no faults");
        let mut owner = own(&dial, 7, Memory::default()).await.expect("nobody else owns it");
        let mut worker = Worker::new(dial.clone(), 1);
        let mut done = Vec::new();
        for _ in 0..20 {
            owner.turn(false).await.expect("no faults");
            if owner.server_ms == 0 {
                continue;
            }
            let jobs = worker.take(10).await.unwrap_or_default();
            for (_, job) in &jobs {
                done.push(job.step.to_string());
            }
            if !jobs.is_empty() {
                let results = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect();
                worker.answer(results).await.expect("no faults");
            }
        }
        assert_eq!(done, ["s0", "s1", "s2"]);
        let stored = stored(&mut client, run).await.expect("no faults").expect("the run is stored");
        assert_eq!(stored.record.state, State::Completed);
        let moves: Vec<String> = stored.history.iter().map(ToString::to_string).collect();
        assert_eq!(moves[0], "run: created -> queued (Submitted)");
        assert_eq!(moves.last().map(String::as_str), Some("run: processing -> completed (Done)"));
    });
}

/// Small runs that one seed submits.
const SMALL_RUNS: usize = 12;
/// All of them, with the wide one.
const RUNS: usize = SMALL_RUNS + 1;
/// Steps of the wide run that are ready at once: more than the window of a queue, so that some have to wait in the ready set.
const WIDE: usize = 300;
/// The turn that a rollback goes back to. The wide run comes just before, so that jobs are dispatched on both time lines.
const SNAPSHOT: u32 = 200;
/// The turn of the rollback.
const ROLLBACK: u32 = 260;
/// Longest time that a worker holds a job, in turns: longer than a rollback goes back.
const HELD_MAX: u32 = 90;
/// From this turn on nothing goes wrong any more.
const CALM: u32 = 3_000;
/// Everything has ended by then.
const TURNS: u32 = 5_000;

/// One seed's story.
struct Story {
    seed: u64,
    rng: StdRng,
    server: MemoryServer,
    dial: MemoryDial,
    client: Client<MemoryDial>,
    runs: Vec<(RunId, Workflow)>,
    workers: Vec<Worker<MemoryDial>>,
    owner: Option<Owner<MemoryLink>>,
    rival: Option<Owner<MemoryLink>>,
    memory: Memory,
    reigns: u64,
    snapshot: Option<Snapshot>,
    effects: BTreeMap<(RunId, u32), u32>,
    /// What every job that a worker ever saw was for.
    jobs: BTreeMap<JobId, (RunId, u32, u32, u32)>,
    /// Gates that open and close, as an owner sees them, and the words of owners that nobody minds.
    gates: Gates,
    /// Jobs that take long: until which turn, whose they are, what becomes of them.
    held: Vec<(u32, usize, JobRef, Outcome)>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let server = MemoryServer::new(Clock::default());
        let dial = server.dial();
        server.set_faults(Faults {
            seed,
            lose_request: 0.02,
            lose_reply: 0.02,
            late_exec: 0.02,
            late_by_max: Duration::from_secs(2),
            latency_max: Duration::from_millis(3),
        });
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            client: Client::new(dial.clone(), seed),
            runs: Vec::new(),
            workers: vec![Worker::new(dial.clone(), 1), Worker::new(dial.clone(), 2)],
            owner: None,
            rival: None,
            memory: Memory::default(),
            reigns: 0,
            snapshot: None,
            effects: BTreeMap::new(),
            jobs: BTreeMap::new(),
            gates: Gates::new(seed),
            held: Vec::new(),
            server,
            dial,
        }
    }

    /// The client repeats a submit whose fate it does not know.
    async fn submit(&mut self, run: RunId, plan: &Workflow, mut again: bool) {
        while self.client.submit(run, plan, None, again).await.is_err() {
            again = true;
        }
    }

    async fn own(&mut self) {
        let seed = self.seed;
        if self.owner.is_none() || self.rng.random_bool(0.01) {
            // RACE: the old owner may go on as a rival with its old reign; it must not commit.
            self.rival = self.owner.take().or(self.rival.take());
            self.reigns += 1;
            self.owner = own(&self.dial, seed << 20 | self.reigns, self.memory.clone()).await.ok();
            if let Some(owner) = &mut self.owner {
                owner.attach(self.gates.link());
                owner.set_rules(self.gates.rules());
            }
        }
        self.gates.answer(&mut self.rng);
        if let Some(old) = &mut self.rival
            && self.rng.random_bool(0.3)
            && old.turn(false).await.is_err()
        {
            self.rival = None;
        }
        if let Some(current) = &mut self.owner
            && let Err(error) = current.turn(false).await
        {
            assert!(is_doubt(&error), "seed {seed}: {error}");
            self.memory = current.memory();
            self.owner = None;
            if matches!(&error, OwnerError::Turn(turn) if turn.is_full()) {
                drop(room::make(&self.dial, &all_keys(), PARTITION).await);
            }
        }
    }

    /// Now and then: a wish of a person, a server that is full for a moment, a rollback.
    async fn disturb(&mut self, turn: u32) {
        if self.rng.random_bool(0.02) && !self.runs.is_empty() {
            let (run, plan) = &self.runs[self.rng.random_range(0..self.runs.len())];
            let (run, is_wide) = (*run, plan.steps.len() == WIDE);
            let index = self.rng.random_range(0..plan.steps.len() as u32);
            let verbs = [
                Verb::Cancel,
                Verb::Suspend { now: true },
                Verb::Suspend { now: false },
                Verb::Resume,
                Verb::Retry,
                Verb::RetryFrom { index },
                Verb::Resolve { index, resolution: Resolution::Completed(None) },
                Verb::Resolve { index, resolution: Resolution::Failed("by hand".into()) },
                Verb::Compensate,
            ];
            let verb = verbs[self.rng.random_range(0..verbs.len())].clone();
            // Nobody cancels the wide run: a step of it that is forgotten must be missed.
            if !(is_wide && verb == Verb::Cancel) {
                while self.client.command(run, verb.clone()).await.is_err() {}
            }
        }
        if self.rng.random_bool(0.05) {
            self.gates.stir(&mut self.rng, turn);
        }
        if self.rng.random_bool(0.01) {
            self.server.set_full(true);
            self.own().await;
            self.server.set_full(false);
        }
        if turn == SNAPSHOT {
            self.snapshot = Some(self.server.snapshot());
            // The reign that begins here and the first one after the rollback have the same number.
            self.owner = None;
        }
        if turn == ROLLBACK && self.seed % 2 == 1 {
            let snapshot = self.snapshot.take().expect("taken before");
            self.server.restore(&snapshot);
            // What was answered after the snapshot is lost; whoever waits for a run submits it again.
            for (run, plan) in self.runs.clone() {
                self.submit(run, &plan, true).await;
            }
        }
    }

    async fn work(&mut self, turn: u32, calm: bool) {
        self.finish_held(turn, calm).await;
        for place in 0..self.workers.len() {
            let worker = &mut self.workers[place];
            // An XREADGROUP whose reply is lost leaves jobs pending at a live worker: it reads its own list again.
            let mut jobs = match worker.take(self.rng.random_range(1..6)).await {
                Ok(jobs) => jobs,
                Err(_) => worker.own_pending().await,
            };
            // What it holds it has begun already.
            jobs.retain(|(of, _)| !self.held.iter().any(|(_, at, held, _)| *at == place && held.job == of.job));
            if jobs.is_empty() {
                continue;
            }
            for (of, job) in &jobs {
                self.note(of, job);
            }
            let worker = &mut self.workers[place];
            if !calm && self.rng.random_bool(0.05) {
                // It dies with its jobs, as an observer tells; sometimes its results come all the same.
                let lost = Lost {
                    worker: worker.id.clone(),
                    counted: true,
                    jobs: jobs.iter().map(|j| j.0.clone()).collect(),
                    seen: Vec::new(),
                };
                while worker.client.append(Body::Lost(lost.clone())).await.is_err() {}
                if self.rng.random_bool(0.5) {
                    continue;
                }
            }
            let mut results: Vec<_> = jobs.into_iter().map(|(of, _)| (of, outcome(&mut self.rng, calm))).collect();
            if !calm && self.rng.random_bool(0.2) {
                // A long job: its result may come when a rollback has undone its dispatch.
                let (of, outcome) = results.swap_remove(0);
                self.held.push((turn + self.rng.random_range(1..HELD_MAX), place, of, outcome));
            }
            if results.is_empty() {
                continue;
            }
            while worker.answer(results.clone()).await.is_err() {}
            if self.rng.random_bool(0.1) {
                while worker.answer(results.clone()).await.is_err() {}
            }
        }
    }

    /// Answers for the long jobs whose time has come.
    async fn finish_held(&mut self, turn: u32, calm: bool) {
        for (until, place, of, outcome) in std::mem::take(&mut self.held) {
            if turn < until && !calm {
                self.held.push((until, place, of, outcome));
                continue;
            }
            let result = vec![(of, outcome)];
            while self.workers[place].answer(result.clone()).await.is_err() {}
        }
    }

    /// A worker begins a job. Its id is the fence of all its results, so it must name the same try for ever, on every time
    /// line.
    fn note(&mut self, of: &JobRef, job: &Job) {
        *self.effects.entry((of.run, of.index)).or_default() += 1;
        let this = (job.run, job.index, job.generation, job.attempt);
        let first = *self.jobs.entry(job.id).or_insert(this);
        assert_eq!(first, this, "seed {}: job {} names two tries", self.seed, job.id);
    }

    async fn stored(&mut self, run: RunId) -> Option<Stored> {
        loop {
            if let Ok(found) = stored(&mut self.client, run).await {
                return found;
            }
        }
    }

    /// How many runs have not ended; those that are held go on when all is calm.
    async fn open(&mut self, calm: bool) -> usize {
        let mut open = 0;
        for (run, _) in self.runs.clone() {
            let state = self.stored(run).await.map(|s| s.record.state);
            open += usize::from(!state.is_some_and(State::is_finished));
            if calm && state == Some(State::Suspended) {
                let verb = if self.rng.random_bool(0.5) { Verb::Resume } else { Verb::Retry };
                while self.client.command(run, verb.clone()).await.is_err() {}
            }
        }
        open
    }
}

/// What becomes of a job.
fn outcome(rng: &mut StdRng, calm: bool) -> Outcome {
    match rng.random_range(0..20) {
        _ if calm => Outcome::Completed(None),
        0 | 1 => Outcome::Failed(Failure::new(Category::Transient, "no luck")),
        2 => Outcome::Failed(Failure::new(Category::Permanent, "never")),
        3 => Outcome::Failed(Failure::new(Category::Timeout, "too slow")),
        4 => Outcome::Returned(Returned::Drain),
        5 => Outcome::Returned(Returned::Gated),
        _ => Outcome::Completed(None),
    }
}

/// `n` steps that need nothing.
fn wide(n: usize) -> Workflow {
    let names: Vec<String> = (0..n).map(|i| format!("w{i}")).collect();
    workflow(&names.iter().map(|name| (name.as_str(), &[][..])).collect::<Vec<_>>())
}

/// Runs one seed: submits runs while faults happen, until everything has ended; then checks.
async fn one_seed(seed: u64) {
    let target: Workflow = serde_json::from_value(serde_json::json!({ "workflow": "pays", "steps": {
        "a": { "handler": "noop", "breaker": "${{ 'ba' + 'nk' }}" },
        "b": { "handler": "noop", "needs": ["a"], "breaker": "bank" },
        "c": { "handler": "noop", "needs": ["b"], "fallback": { "handler": "other" } },
    }}))
    .expect("a legal workflow");
    let diamond = workflow(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])]);
    let plans = [target, chain(1), chain(4), outspoken(), diamond];
    let mut story = Story::new(seed);
    for turn in 0..TURNS {
        let calm = turn >= CALM;
        if turn == CALM {
            story.gates.open();
            story.server.set_faults(Faults { latency_max: Duration::from_millis(1), ..Faults::default() });
        }
        let small = story.runs.len() - usize::from(turn > SNAPSHOT - 3);
        if turn == SNAPSHOT - 3 {
            let (run, plan) = (story.client.run_id(), wide(WIDE));
            story.submit(run, &plan, false).await;
            story.runs.push((run, plan));
        } else if small < SMALL_RUNS && story.rng.random_bool(0.05) {
            let (run, plan) = (story.client.run_id(), plans[story.rng.random_range(0..plans.len())].clone());
            story.submit(run, &plan, false).await;
            story.runs.push((run, plan));
        }
        if !calm {
            story.disturb(turn).await;
        }
        story.own().await;
        story.work(turn, calm).await;
        if turn % 50 == 49 && turn > 300 {
            let open = story.open(calm || story.runs.len() == RUNS).await;
            if story.runs.len() == RUNS && open == 0 {
                break;
            }
            assert!(turn + 50 < TURNS, "seed {seed}: {open} runs never ended");
        }
    }
    story.server.set_faults(Faults::default());
    story.gates.open();
    for (run, plan) in story.runs.clone() {
        let stored = story.stored(run).await.unwrap_or_else(|| panic!("seed {seed}: run {run} is lost"));
        check(seed, &stored, plan.steps.len());
        for (index, step) in &stored.steps {
            let by_hand = stored.history.iter().any(|t| t.step == Some(*index) && t.why == Why::Resolved);
            let done = by_hand || story.effects.contains_key(&(run, *index));
            assert!(
                step.state != State::Completed || done,
                "seed {seed}: a step of {run} completed without being done"
            );
        }
    }
    check_nothing_is_left(&mut story).await;
}

#[test]
fn no_seed_of_faults_loses_or_doubles_a_step() {
    let one = std::env::var("SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let count = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    for seed in one.map_or(0..count, |s| s..s + 1) {
        run(one_seed(seed));
    }
}
