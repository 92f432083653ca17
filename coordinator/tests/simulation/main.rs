//! Seeded simulation: whole fleets, and campaigns, over the server in memory, with simulated time and everything that may go
//! wrong. `SEEDS` says how many seeds to run, `SEED` runs one; one seed is one story, event by event.

mod campaigns;
mod checkers;
mod fleet;
mod fleets;
#[cfg(stepfleet_mutants)]
mod mutants;
mod seeds;

use fleet::*;
use stepfleet_coordinator::{
    shell::owner::Memory,
    store::memory::{Clock, MemoryServer},
};
use stepfleet_protocol::{message::Outcome, name::Name, state::State};

/// A name that is known to be one.
fn name(text: &str) -> Name {
    Name::new(text).expect("a legal name")
}

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

#[test]
fn no_seed_of_faults_loses_doubles_or_disorders_anything() {
    if let Some((_, text)) = seeds::each(seeds::wanted(seeds::SEEDS_DEFAULT), seeds::fleet) {
        panic!("{text}");
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    let story = |seed| {
        run(async move {
            fleets::story(seed)
                .await
                .0
                .trace
                .borrow()
                .iter()
                .map(|told| (told.at_ms, told.what.clone()))
                .collect::<Vec<_>>()
        })
    };
    for seed in 0..2 {
        let (first, second) = (story(seed), story(seed));
        let at = first.iter().zip(&second).position(|(a, b)| a != b);
        assert_eq!(at.map(|at| (&first[at], &second[at])), None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
