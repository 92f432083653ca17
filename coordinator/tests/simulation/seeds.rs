//! Runs seeds on all processors, and tells the first story that went wrong: the last events of its run, and how to repeat it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    fleet::Line,
    fleets::{
        self,
        world::{Told, Violation, World},
    },
};

/// Seeds of a test run beside others; `SEEDS` says otherwise, as `.ci/run` does.
pub(crate) const SEEDS_DEFAULT: u64 = 30;
/// Events that a story that went wrong tells; `TRACE` says otherwise.
const TOLD_MAX: usize = 40;

/// The seeds to run: the one of `SEED`, else as many as `SEEDS` says.
pub(crate) fn wanted(default: u64) -> std::ops::Range<u64> {
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(default),
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: allowed is a whole number from 0")))
}

/// Runs `one` for every seed, on as many threads as there are processors; the first one that failed, and what it said.
pub(crate) fn each(seeds: std::ops::Range<u64>, one: fn(u64) -> Option<String>) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Relaxed)
                    && seed < seeds.end
                {
                    if let Some(text) = one(seed) {
                        failed.lock().expect("no panic").insert(seed, text);
                        // Those before it are done already, or being done.
                        next.store(seeds.end, Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no panic").into_iter().next()
}

/// Tells the story of a seed; what went wrong, if something did.
pub(crate) fn fleet(seed: u64) -> Option<String> {
    crate::run(async {
        let (world, violation) = fleets::story(seed).await;
        match violation {
            Some(violation) => Some(report(&world, &violation).await),
            None => None,
        }
    })
}

async fn report(world: &World, violation: &Violation) -> String {
    let Violation { checker, run, what } = violation;
    let about = run.map(|run| format!(" run {run}:")).unwrap_or_default();
    let partition = run.map(|run| run.partition());
    let concerns = |told: &&Told| match (told.run, told.partition) {
        (None, of) => of.is_none() || partition.is_none() || of == partition,
        (of, _) => of == *run,
    };
    let mut told: Vec<Told> = world.trace.borrow().iter().filter(concerns).cloned().collect();
    if let Some(run) = run
        && let Ok(Some(stored)) = Line::new(world.server.dial()).stored(&world.part(run.partition()), *run).await
    {
        let event = |t: &stepfleet_coordinator::machine::decision::Transition| Told {
            at_ms: t.at_ms,
            run: Some(*run),
            partition,
            what: format!("    {t}"),
        };
        let events = stored.history.iter().map(event);
        told.extend(events);
        told.sort_by_key(|told| told.at_ms);
    }
    let first_ms = world.trace.borrow().first().map_or(0, |told| told.at_ms);
    let skipped = told.len().saturating_sub(number("TRACE").map_or(TOLD_MAX, |n| n as usize));
    let lines: Vec<String> = told[skipped..]
        .iter()
        .map(|told| format!("  {:>9.3} s  {}", told.at_ms.saturating_sub(first_ms) as f64 / 1_000.0, told.what))
        .collect();
    format!(
        "seed {}: checker `{checker}`:{about} {what}\n{}\nagain: SEED={} make simulate",
        world.seed,
        lines.join("\n"),
        world.seed
    )
}
