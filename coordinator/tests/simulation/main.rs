//! Seeded simulation: the real owner over the server in memory, with lost requests, lost replies, late EXECs and dying
//! owners and workers. `SEEDS` says how many seeds to run, `SEED` runs one.

mod fleet;

use fleet::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use stepfleet_coordinator::{
    shell::owner::Memory,
    store::memory::{Clock, Faults, MemoryServer},
};
use stepfleet_protocol::{message::Outcome, state::State};

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

/// Runs one seed: submits runs while faults happen, until everything has ended; then checks.
async fn one_seed(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let server = MemoryServer::new(Clock::default());
    let dial = server.dial();
    server.set_faults(Faults {
        seed,
        lose_request: 0.02,
        lose_reply: 0.02,
        late_exec: 0.02,
        late_by_max: std::time::Duration::from_secs(2),
        latency_max: std::time::Duration::from_millis(3),
    });
    let plans = [chain(1), chain(4), workflow(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])])];
    let mut client = Client::new(dial.clone(), seed);
    let mut runs = Vec::new();
    let mut memory = Memory::default();
    let mut reigns = 0u64;
    let mut owner = None;
    let mut rival = None;
    let mut workers = vec![Worker::new(dial.clone(), 1), Worker::new(dial.clone(), 2)];
    let mut effects = std::collections::BTreeMap::new();
    for turn in 0..4_000 {
        if turn == 3_000 {
            server.set_faults(Faults { latency_max: std::time::Duration::from_millis(1), ..Faults::default() });
        }
        if runs.len() < 12 && rng.random_bool(0.2) {
            let (run, plan) = (client.run_id(), &plans[rng.random_range(0..plans.len())]);
            let mut again = false;
            // The client repeats a submit whose fate it does not know.
            while client.submit(run, plan, None, again).await.is_err() {
                again = true;
            }
            runs.push((run, plan.steps.len()));
        }
        if owner.is_none() || rng.random_bool(0.01) {
            // RACE: the old owner may go on as a rival with its old reign; it must not commit.
            rival = owner.take().or(rival);
            reigns += 1;
            owner = own(&dial, seed << 20 | reigns, memory.clone()).await.ok();
        }
        if let Some(old) = &mut rival
            && rng.random_bool(0.3)
            && old.turn(false).await.is_err()
        {
            rival = None;
        }
        if let Some(current) = &mut owner
            && let Err(error) = current.turn(false).await
        {
            assert!(is_doubt(&error), "seed {seed}: {error}");
            memory = current.memory();
            owner = None;
        }
        work(&mut workers, &mut rng, &mut effects).await;
        let mut open = 0;
        if turn % 50 == 49 {
            for (run, _) in &runs {
                let found = loop {
                    if let Ok(found) = stored(&mut client, *run).await {
                        break found;
                    }
                };
                open += usize::from(!found.is_some_and(|s| s.record.state == State::Completed));
            }
            if runs.len() == 12 && open == 0 {
                break;
            }
        }
        assert!(turn < 3_990, "seed {seed}: {open} runs never ended");
    }
    server.set_faults(Faults::default());
    for (run, steps) in runs {
        let stored = stored(&mut client, run).await.expect("no faults").expect("no run is lost");
        check(seed, &stored, steps);
        for index in 0..steps as u32 {
            assert!(effects.contains_key(&(run, index)), "seed {seed}: a step of {run} completed without being done");
        }
    }
}

async fn work(
    workers: &mut [Worker<stepfleet_coordinator::store::memory::MemoryDial>],
    rng: &mut StdRng,
    effects: &mut std::collections::BTreeMap<(stepfleet_protocol::id::RunId, u32), u32>,
) {
    for worker in workers {
        // An XREADGROUP whose reply is lost leaves jobs pending at a live worker: it reads its own list again.
        let jobs = match worker.take(rng.random_range(1..6)).await {
            Ok(jobs) => jobs,
            Err(_) => worker.own_pending().await,
        };
        for (of, _) in &jobs {
            *effects.entry((of.run, of.index)).or_default() += 1;
        }
        let results: Vec<_> = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect();
        if results.is_empty() {
            continue;
        }
        while worker.answer(results.clone()).await.is_err() {}
        if rng.random_bool(0.1) {
            while worker.answer(results.clone()).await.is_err() {}
        }
    }
}

/// Only legal moves, every step completed once, in an order that the moves of the history chain up.
fn check(seed: u64, stored: &Stored, steps: usize) {
    let mut at = std::collections::BTreeMap::new();
    for t in &stored.history {
        let state = at.entry(t.step).or_insert(State::Created);
        assert_eq!(*state, t.from, "seed {seed}: the history is broken at {t}");
        assert!(t.from == t.to || t.from.may_become(t.to), "seed {seed}: illegal move {t}");
        *state = t.to;
    }
    let completed = stored.history.iter().filter(|t| t.step.is_some() && t.to == State::Completed && t.from != t.to);
    assert_eq!(completed.count(), steps, "seed {seed}: every step completes once");
    assert!(stored.steps.values().all(|s| s.state == State::Completed), "seed {seed}: {:?}", stored.steps);
}

#[test]
fn no_seed_of_faults_loses_or_doubles_a_step() {
    let one = std::env::var("SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let count = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    for seed in one.map_or(0..count, |s| s..s + 1) {
        run(one_seed(seed));
    }
}
