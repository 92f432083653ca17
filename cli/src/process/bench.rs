//! `bench`: throughput, latency and memory on a server of its own.

use std::path::PathBuf;

use clap::Args;

use super::Given;
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// `bench`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  make bench                            in a release build, with everything it needs
  stepfleet bench --runs 10000 --chains 2000 --to /tmp/bench.json")]
pub(crate) struct BenchArgs {
    /// One-step runs for the throughput.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) runs: u32,
    /// Ten-step chains for the throughput.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) chains: u32,
    /// Steps of the wide graph.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) wide: u32,
    /// The server program to measure on; found on the PATH or in `.tools` if not given.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_TEST_SERVER")]
    pub(crate) server: Option<PathBuf>,
    /// Write the figures here as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    pub(crate) to: PathBuf,
}

/// Measures.
///
/// # Errors
/// No server program.
#[expect(clippy::unused_async, reason = "the measurements are asynchronous")]
pub(crate) async fn run(args: BenchArgs, _given: &Given, _out: &Out) -> Result<Exit, Failure> {
    let BenchArgs { runs, chains, wide, server: _, to } = args;
    Err(Failure::failed(format!(
        "nothing measures {runs} runs, {chains} chains and {wide} steps for `{}`",
        to.display()
    )))
}
