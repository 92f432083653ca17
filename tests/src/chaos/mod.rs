//! Chaos on the real thing: real servers and programs, to which everything happens that can happen, and a checker that
//! believes nobody.
//!
//! [`run`] starts a fleet ([`world`]), lets clients submit ([`clients`]) while one fault after the other is done to it
//! ([`faults`], [`inject`]), heals everything, and judges what is left ([`settle`]) by three records that know nothing
//! of each other: what clients were told ([`history`], judged by [`queue`]), what the product says has happened (judged
//! by [`moves`] and [`promises`]), and what handlers did ([`effects`]).

pub mod clients;
pub mod disk;
pub mod document;
pub mod effects;
pub mod faults;
pub mod history;
pub mod hosts;
pub mod inject;
pub mod link;
pub mod moves;
pub mod programs;
pub mod promises;
pub mod queue;
pub mod recovery;
pub mod report;
pub mod servers;
pub mod settle;
mod split;
mod strain;
pub mod table;
pub mod work;
pub mod world;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::RngExt;

use self::clients::{Clients, Counter};
use self::effects::now_ns;
use self::faults::{Deck, Kind};
use self::history::History;
use self::report::{Evidence, Report};
use self::servers::Topology;
use self::settle::Settled;
use self::world::World;
use crate::lab::START;

/// What a test does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it runs on.
    pub topology: Topology,
    /// What chooses faults, victims and work.
    pub seed: u64,
    /// For how long faults are begun.
    pub duration: Duration,
    /// The faults that are dealt.
    pub faults: Vec<Kind>,
    /// Namespaces and a small disk are made where that is possible.
    pub privileged: bool,
    /// Coordinators, at least 2.
    pub coordinators: usize,
    /// Workers, at least 3, so that one that dies is no more than a third of them.
    pub workers: usize,
    /// Clients.
    pub clients: usize,
    /// Runs that each submits in a second.
    pub per_second: f64,
    /// A `stepfleet` of an older version.
    pub old: Option<PathBuf>,
    /// `min-replicas-to-write` of every server with data; 0: they write alone.
    pub min_replicas: u32,
    /// Where everything is written.
    pub folder: PathBuf,
}

/// Runs a test; what it found.
///
/// # Errors
/// It could not be run to its end. What was found is no error.
pub async fn run(plan: &Plan, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    // What an earlier test of this name left would be taken for its own.
    if plan.folder.exists() {
        fs::remove_dir_all(&plan.folder)?;
    }
    fs::create_dir_all(&plan.folder)?;
    let begun = Instant::now();
    let mut world = World::start(plan).await?;
    let ended = drive(plan, &mut world, begun, say).await;
    world.keep_logs(&plan.folder);
    ended
}

async fn drive(plan: &Plan, world: &mut World, begun: Instant, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    let api = world.apis().into_iter().next().context("there is a coordinator")?;
    api.register(&work::workflow()).await?;
    let counter = Arc::new(Counter {
        bases: world.coordinators.iter().map(programs::Slot::base).collect(),
        history: Arc::new(History::begin(&plan.folder)?),
        submissions: Mutex::default(),
        wished: Mutex::default(),
        fault: AtomicUsize::new(0),
        odd: Mutex::default(),
    });
    let clients = Clients::start(&counter, plan.clients, plan.per_second, plan.seed);
    let is_possible = |kind: &&Kind| !world.skipped.iter().any(|(skipped, _)| skipped == *kind);
    let kinds: Vec<Kind> = plan.faults.iter().filter(is_possible).copied().collect();
    world.skipped.retain(|(kind, _)| plan.faults.contains(kind));
    let (mut deck, mut faults, mut ended) = (Deck::new(&kinds), Vec::new(), Vec::new());
    let shaken = Instant::now();
    recovery::until_commits(&world.effects, &world::all_partitions(), now_ns(), START)
        .await
        .context("work does not begin")?;
    while shaken.elapsed() < plan.duration {
        let kind = deck.deal(&mut world.random);
        counter.fault.store(faults.len() + 1, Ordering::Relaxed);
        let fault = world.inject(kind).await?;
        say(&format!(
            "{:>4} s  {kind}: {}; work goes on after {:?} ms",
            begun.elapsed().as_secs(),
            fault.what,
            fault.recovery_ms
        ));
        faults.push(fault);
        ended.extend(revive(world, say)?);
        let quiet = world.random.random_range(1.0..2.5);
        tokio::time::sleep(Duration::from_secs_f64(quiet)).await;
    }
    world.servers.heal().await?;
    clients.end().await;
    ended.extend(revive(world, say)?);
    world.until_ready(START).await?;
    say(&format!("{:>4} s  everything is whole; looking at what is left", begun.elapsed().as_secs()));
    let settled = settle::settle(world, &counter).await?;
    let queue = queue::judge(&counter.history.ops())?;
    let findings = unended(&api, &settled).await;
    let odd = counter.odd.lock().expect("nobody panics with it").clone();
    let lives = world.workers.iter().flat_map(|slot| slot.lives().to_vec()).collect();
    let report = Report::of(Evidence {
        topology: plan.topology,
        seed: plan.seed,
        seconds: begun.elapsed().as_secs(),
        faults,
        settled: &settled,
        queue: &queue,
        lives,
        skipped: world.skipped.clone(),
        ended,
        odd,
        findings,
    });
    keep(plan, &report, &settled)?;
    Ok(report)
}

/// Starts again what has ended by itself, which nothing may; what that was.
fn revive(world: &mut World, say: &dyn Fn(&str)) -> anyhow::Result<Vec<String>> {
    let mut ended = Vec::new();
    for slot in world.slots() {
        if !slot.is_running()? {
            let what = format!("{} has ended by itself", slot.name());
            say(&what);
            ended.push(what);
            slot.ended(now_ns());
            slot.start(false)?;
        }
    }
    Ok(ended)
}

/// Why runs that should have ended have not.
async fn unended(api: &crate::lab::Api, settled: &Settled) -> Vec<String> {
    let mut why = Vec::new();
    for run in settled.runs.iter().filter(|run| !run.is_over()).take(5) {
        why.push(format!("run {} is {}: {}", run.run, run.account.state, settle::explain(api, &run.run).await));
    }
    why
}

/// Writes the report, and the histories of runs that something is wrong with.
fn keep(plan: &Plan, report: &Report, settled: &Settled) -> anyhow::Result<()> {
    fs::write(plan.folder.join("report.json"), serde_json::to_string_pretty(report)?)?;
    let is_right = |run: &settle::Ended| {
        let account = &run.account;
        account.illegal.is_empty()
            && account.doubled.is_empty()
            && account.unaccounted.is_empty()
            && run.broken.is_empty()
            && run.is_over()
    };
    let folder = plan.folder.join("runs");
    fs::create_dir_all(&folder)?;
    for run in settled.runs.iter().filter(|run| !is_right(run)) {
        fs::write(folder.join(format!("{}.json", run.run)), serde_json::to_string_pretty(&run.history)?)?;
    }
    Ok(())
}
