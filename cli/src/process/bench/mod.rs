//! `bench`: throughput, latency and memory on a server of its own, against a bare floor measured in the same run.
//!
//! One coordinator process and one worker process of this very program, and Redis beside them. Machines are noisy, so what
//! counts are ratios of one run. `--compare` measures nothing and puts two runs side by side.

mod args;
mod compare;
mod delay;
mod floor;
mod graphs;
mod lab;
mod large;
mod latency;
mod load;
mod origin;
mod probe;
mod report;
mod scale;
mod slow;

use std::io::Write;
use std::path::Path;

pub(crate) use args::BenchArgs;

use super::{Given, server};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use args::{AppendOnly, Section};
use lab::Lab;
use origin::Origin;
use report::Report;

/// Measures, and prints one table; or compares.
///
/// # Errors
/// No server program; a part of the fleet that does not come up or does not finish; a report that cannot be read.
pub(crate) async fn run(args: BenchArgs, _given: &Given, out: &Out) -> Result<Exit, Failure> {
    if let Some(base) = &args.compare {
        return compare_with(base, &args.to, out);
    }
    let program = server::find(args.server.as_deref())?;
    let folder = std::env::temp_dir().join(format!("stepfleet-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| fault(&folder, &error))?;
    let server = server::Server::start(program, &folder).await?;
    let report = measure(&args, server.port, out).await;
    server.stop().await;
    let _ = std::fs::remove_dir_all(&folder);
    let report = report.map_err(|error| Failure::failed(format!("{error:#}")))?;
    if out.is_json() {
        out.json(&report.json())?;
    } else {
        out.line(&report.table())?;
    }
    let json = serde_json::to_string_pretty(&report.json()).unwrap_or_default();
    make_room(&args.to);
    std::fs::write(&args.to, json).map_err(|error| fault(&args.to, &error))?;
    if !args.no_history {
        append(&args.history, &report).map_err(|error| fault(&args.history, &error))?;
    }
    Ok(Exit::Done)
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("`{}`: {error}", path.display()))
}

fn make_room(path: &Path) {
    if let Some(parent) = path.parent() {
        // What is missing then is told when the file is written.
        let _ = std::fs::create_dir_all(parent);
    }
}

fn append(path: &Path, report: &Report) -> std::io::Result<()> {
    make_room(path);
    let mut history = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    history.write_all(format!("{}\n", report.line()).as_bytes())
}

/// Exit code 1 if a figure is worse by more than a tenth.
fn compare_with(base: &Path, now: &Path, out: &Out) -> Result<Exit, Failure> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).map_err(|error| fault(path, &error))?;
        compare::read(&text).map_err(|error| Failure::usage(format!("`{}`: {error:#}", path.display())))
    };
    let rows = compare::compare(&read(base)?, &read(now)?);
    if out.is_json() {
        out.json(&rows)?;
    } else {
        out.line(&compare::table(&rows))?;
    }
    let worse = rows.iter().filter(|row| row.is_regression()).count();
    if worse == 0 {
        return Ok(Exit::Done);
    }
    out.say(&format!("{worse} of {} figures are worse by more than a tenth", rows.len()));
    Ok(Exit::Failed)
}

async fn measure(args: &BenchArgs, port: u16, out: &Out) -> anyhow::Result<Report> {
    let url = format!("redis://127.0.0.1:{port}");
    let mut probe = probe::Probe::new(&url).await?;
    if args.append_only == AppendOnly::No {
        probe.set("appendonly", "no").await?;
        // A coordinator refuses a server that keeps nothing at all: a snapshot that never comes is enough for it.
        probe.set("save", "86400 2000000000").await?;
    }
    let server = probe.description().await?;
    out.say(&format!("on {server}, append-only file {}", args.append_only.word()));
    let report = Report::new(Origin::here(server, args.append_only));
    let mut lab = Lab { args, url, port, probe, report };
    for (section, what) in SECTIONS {
        if args.wants(section) {
            out.say(what);
            one(section, &mut lab, out).await?;
        }
    }
    Ok(lab.report)
}

/// In the order in which they are measured: the floor first, as others are compared with it.
const SECTIONS: [(Section, &str); 11] = [
    (Section::Floor, "floor: bare XADD, XREADGROUP and XACK of job and result in batches of 100, trimmed"),
    (Section::OneStep, "throughput: one-step runs"),
    (Section::Chains, "throughput: ten-step chains"),
    (Section::Limited, "throughput: ten-step chains under a limit that is just not reached"),
    (Section::FanOut, "throughput: fan-outs, 1-50-1"),
    (Section::Wide, "wide graphs"),
    (Section::Latency, "latency on an idle fleet"),
    (Section::Memory, "memory"),
    (Section::Scale, "scale: CPU of a step with more partitions, workers and slots"),
    (Section::Latency1Ms, "throughput with a millisecond more to the server"),
    (Section::Large, "large"),
];

async fn one(section: Section, lab: &mut Lab<'_>, out: &Out) -> anyhow::Result<()> {
    match section {
        Section::Floor => floor::measure(lab).await,
        Section::OneStep => load::one_step(lab).await,
        Section::Chains => load::chains(lab).await,
        Section::Limited => load::limited(lab).await,
        Section::FanOut => load::fan_outs(lab).await,
        Section::Wide => load::wide(lab).await,
        Section::Latency => latency::measure(lab).await,
        Section::Memory => load::memory(lab).await,
        Section::Scale => scale::measure(lab).await,
        Section::Latency1Ms => slow::measure(lab).await,
        Section::Large => large::measure(lab, out).await,
    }
}
