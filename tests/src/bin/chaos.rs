//! `make chaos`: everything that can happen, to real servers and programs, and what came of it.
//!
//! `MINUTES` for each test (3), `SEED` (several with commas are a test each, added up by topology), `TOPOLOGY` (single,
//! sentinel, cluster or all), `FAULTS` (their words in JSON, with commas; all), `OLD` (a `stepfleet` of an older version),
//! `MIN_REPLICAS` (`min-replicas-to-write` of servers that have a replica) and `REPORT=1` (write docs/reliability.md) are
//! read from the environment. With the word `worker` it is a worker of such a test instead. Ends with 1 if something
//! happened that must not, as [`Report::is_bad`] says.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use stepfleet_tests::binary;
use stepfleet_tests::chaos::document;
use stepfleet_tests::chaos::faults::Kind;
use stepfleet_tests::chaos::report::Report;
use stepfleet_tests::chaos::servers::Topology;
use stepfleet_tests::chaos::work::{WorkerArgs, run_worker};
use stepfleet_tests::chaos::{Plan, run};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "worker") {
        run_worker(worker_args(&words[1..])?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        reports = chaos() => {
            let bad = reports?.iter().any(Report::is_bad);
            Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        // What was made in the system is taken away by its owners as they are dropped.
        stopped = tokio::signal::ctrl_c() => stopped.context("watch for Ctrl-C").map(|()| ExitCode::FAILURE),
    }
}

async fn chaos() -> anyhow::Result<Vec<Report>> {
    let setting = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let minutes: f64 = match setting("MINUTES") {
        Some(text) => {
            let read = text.parse().ok().filter(|minutes| (0.1..=600.0).contains(minutes));
            read.with_context(|| format!("MINUTES is `{text}`: allowed is a number from 0.1 to 600"))?
        }
        None => 3.0,
    };
    let seeds: Vec<u64> = match setting("SEED") {
        Some(text) => {
            let read: Option<_> = text.split(',').map(|word| word.parse().ok()).collect();
            read.with_context(|| format!("SEED is `{text}`: allowed are whole numbers from 0, with commas"))?
        }
        None => vec![u64::from(rand::random::<u32>())],
    };
    let topologies = match setting("TOPOLOGY").as_deref() {
        None | Some("all") => Topology::ALL.to_vec(),
        Some(one) => vec![one.parse()?],
    };
    let faults = match setting("FAULTS") {
        None => Kind::FAULTS.to_vec(),
        Some(text) => text.split(',').map(kind).collect::<anyhow::Result<_>>()?,
    };
    let min_replicas = match setting("MIN_REPLICAS") {
        Some(text) => text.parse().with_context(|| format!("MIN_REPLICAS is `{text}`: allowed is a whole number"))?,
        None => 0,
    };
    let mut reports: Vec<Report> = Vec::new();
    for topology in topologies {
        for (place, seed) in seeds.iter().enumerate() {
            let folder = binary::root().join("target/chaos").join(format!("{}-{seed}", topology.as_str()));
            let kept = folder.display();
            println!("{} for {minutes} minutes, SEED={seed}; everything is kept in {kept}", topology.as_str());
            let plan = Plan {
                topology,
                seed: *seed,
                duration: Duration::from_secs_f64(minutes * 60.0),
                faults: faults.clone(),
                privileged: true,
                coordinators: 2,
                workers: 4,
                clients: 8,
                per_second: 2.0,
                old: setting("OLD").map(PathBuf::from),
                min_replicas,
                folder,
            };
            let report = run(&plan, &|line| println!("{line}")).await?;
            println!("\n{}", report.markdown());
            match reports.last_mut().filter(|_| place > 0) {
                Some(sum) => sum.add(report),
                None => reports.push(report),
            }
            let path = binary::root().join("target/chaos/report.json");
            std::fs::write(&path, serde_json::to_string_pretty(&reports)?)?;
        }
    }
    if setting("REPORT").is_some() {
        document::write(&binary::root().join("docs/reliability.md"), &reports)?;
    }
    Ok(reports)
}

fn kind(word: &str) -> anyhow::Result<Kind> {
    let found = Kind::FAULTS.into_iter().find(|kind| kind.word() == word);
    let allowed: Vec<&str> = Kind::FAULTS.iter().map(|kind| kind.word()).collect();
    found.with_context(|| format!("unknown fault `{word}`: allowed are {}", allowed.join(", ")))
}

fn worker_args(words: &[String]) -> anyhow::Result<WorkerArgs> {
    let (mut redis, mut name, mut effects) = (None, None, None);
    for pair in words.chunks(2) {
        match pair {
            [option, value] if option == "--redis" => redis = Some(value.clone()),
            [option, value] if option == "--name" => name = Some(value.clone()),
            [option, value] if option == "--effects" => effects = Some(PathBuf::from(value)),
            other => bail!("unknown words {other:?}: allowed are --redis, --name and --effects with their values"),
        }
    }
    let missing = "--redis, --name and --effects are needed";
    Ok(WorkerArgs { redis: redis.context(missing)?, name: name.context(missing)?, effects: effects.context(missing)? })
}
