//! `bench`: throughput, latency and memory on a server of its own, against a bare floor measured in the same run.
//!
//! One coordinator process and one worker process of this very program, and Redis beside them. Machines are noisy, so what
//! counts are ratios of one run.

mod floor;
mod latency;
mod load;
mod probe;
mod report;

use std::path::PathBuf;

use clap::Args;
use stepfleet_protocol::limits::CONCURRENCY_MAX;

use super::{Given, server};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use report::Report;

/// `bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  make bench                            in a release build, with everything it needs
  stepfleet bench --runs 10000 --chains 2000 --to /tmp/bench.json")]
pub(crate) struct BenchArgs {
    /// One-step runs for the throughput.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) runs: usize,
    /// Ten-step chains for the throughput.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) chains: usize,
    /// Steps of the wide graph.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) wide: usize,
    /// Runs for the latency on an idle fleet.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) idle: usize,
    /// Partitions of the throughput runs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) partitions: u16,
    /// Slots of the worker process.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) slots: usize,
    /// The server program to measure on; found on the PATH or in `.tools` if not given.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_TEST_SERVER")]
    pub(crate) server: Option<PathBuf>,
    /// Write the figures here as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    pub(crate) to: PathBuf,
}

/// Jobs of the floor.
const FLOOR_JOBS: usize = 200_000;

/// Measures, and prints one table.
///
/// # Errors
/// No server program; a part of the fleet that does not come up or does not finish.
pub(crate) async fn run(args: BenchArgs, _given: &Given, out: &Out) -> Result<Exit, Failure> {
    let program = server::find(args.server.as_deref())?;
    let folder = std::env::temp_dir().join(format!("stepfleet-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| Failure::failed(format!("`{}`: {e}", folder.display())))?;
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
    if let Some(parent) = args.to.parent() {
        let _ = std::fs::create_dir_all(parent);
    }
    let json = serde_json::to_string_pretty(&report.json()).unwrap_or_default();
    std::fs::write(&args.to, json).map_err(|e| Failure::failed(format!("`{}`: {e}", args.to.display())))?;
    Ok(Exit::Done)
}

async fn measure(args: &BenchArgs, port: u16, out: &Out) -> anyhow::Result<Report> {
    let url = format!("redis://127.0.0.1:{port}");
    let mut probe = probe::Probe::new(&url).await?;
    let server = probe.description().await?;
    out.say(&format!("on {server}, append-only file on"));
    let mut report = Report::on(server);
    // The append-only file is on (everysec), for floor and product alike.
    out.say("floor: bare XADD, XREADGROUP and XACK of job and result in batches of 100, trimmed");
    let before = probe.server().await?.cpu_s;
    report.put("floor.jobs_per_s", floor::jobs_per_s(&url, &mut probe, FLOOR_JOBS).await?);
    let cpu_s = probe.server().await?.cpu_s - before;
    report.put("floor.redis_us_per_job", cpu_s * 1e6 / FLOOR_JOBS as f64);
    out.say("throughput: one-step runs");
    let one = load::Load { name: "one_step", runs: args.runs, steps: 1, limit: None };
    load::throughput(args, &url, &mut probe, one, &mut report).await?;
    out.say("throughput: ten-step chains");
    let chains = load::Load { name: "chain10", runs: args.chains, steps: 10, limit: None };
    load::throughput(args, &url, &mut probe, chains, &mut report).await?;
    out.say("throughput: ten-step chains under a limit that is just not reached");
    let most = u32::try_from(2 * args.slots).unwrap_or(u32::MAX).min(CONCURRENCY_MAX);
    let limited = load::Load { name: "limited", limit: Some(most), ..chains };
    load::throughput(args, &url, &mut probe, limited, &mut report).await?;
    out.say("wide graphs");
    load::wide(args, &url, &mut probe, &mut report).await?;
    out.say("latency on an idle fleet");
    latency::measure(args, &url, &mut probe, &mut report).await?;
    out.say("memory");
    load::memory(args, &url, &mut probe, &mut report).await?;
    Ok(report)
}
