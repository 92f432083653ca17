//! What `bench` is called with: sections, and how much of each.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// The bare commands that any queue on streams needs.
    Floor,
    /// Throughput of one-step runs.
    OneStep,
    /// Throughput of ten-step chains.
    Chains,
    /// Throughput of chains under a limit that is just not reached.
    Limited,
    /// Throughput of one step, fifty behind it, one behind these.
    FanOut,
    /// One run of many steps: the cost of a step must not grow with the run.
    Wide,
    /// Latency on an idle fleet.
    Latency,
    /// Memory of queued steps.
    Memory,
    /// CPU of a step with more partitions, workers and slots.
    Scale,
    /// Throughput that is left with a millisecond more to the server.
    #[value(name = "latency1ms")]
    Latency1Ms,
    /// A million queued steps, a run of 100,000, 10,000 workers, large payloads, a long job.
    Large,
}

/// Whether the server keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AppendOnly {
    /// On, synced each second.
    Everysec,
    /// Off.
    No,
}

impl AppendOnly {
    /// As it is written in options and reports.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Everysec => "everysec",
            Self::No => "no",
        }
    }
}

/// `bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  make bench                            in a release build, with everything it needs
  make bench-compare BASE=old.json      what became worse since an earlier run
  stepfleet bench --section chains --section latency
  stepfleet bench --runs 10000 --chains 2000 --to /tmp/bench.json
  stepfleet bench --compare old.json --to new.json")]
pub(crate) struct BenchArgs {
    /// Measure only this; may be given several times. The ratios to the floor need `floor`.
    #[arg(long, value_enum, value_name = "SECTION")]
    pub(crate) section: Vec<Section>,
    /// Measure nothing: compare the figures of --to with those of this earlier run. Exit code 1 if one is worse by more
    /// than a tenth.
    #[arg(long, value_name = "FILE", conflicts_with = "section")]
    pub(crate) compare: Option<PathBuf>,
    /// Jobs of the floor.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub(crate) floor_jobs: usize,
    /// One-step runs for the throughput.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) runs: usize,
    /// Ten-step chains for the throughput.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) chains: usize,
    /// Fan-outs of 52 steps for the throughput.
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub(crate) fan_outs: usize,
    /// Steps of the wide graph.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) wide: usize,
    /// Runs for the latency on an idle fleet.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) idle: usize,
    /// Ten-step chains for each size of the fleet in `scale`, and for each latency in `latency1ms`.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub(crate) scale_chains: usize,
    /// Queued steps of `large`.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) queued: usize,
    /// Steps of the one run of `large`.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) large_run: usize,
    /// Simulated workers of `large`.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) workers: usize,
    /// Payloads of 1 MiB of `large`, 200 a second.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) payloads: usize,
    /// Seconds that the long job of `large` runs, and that the simulated workers beat; at least 45 to see a stream trimmed
    /// behind a long job.
    #[arg(long, value_name = "N", default_value_t = 45)]
    pub(crate) seconds: u64,
    /// Partitions of the throughput runs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) partitions: u16,
    /// Slots of the worker process.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) slots: usize,
    /// The server program to measure on; found on the PATH or in `.tools` if not given.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_TEST_SERVER")]
    pub(crate) server: Option<PathBuf>,
    /// The server's append-only file, for floor and product alike.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = AppendOnly::Everysec)]
    pub(crate) append_only: AppendOnly,
    /// Write the figures here as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    pub(crate) to: PathBuf,
    /// Append the figures, a line of JSON, to this file.
    #[arg(long, value_name = "FILE", default_value = "target/bench-history.jsonl")]
    pub(crate) history: PathBuf,
    /// Append to no history.
    #[arg(long)]
    pub(crate) no_history: bool,
}

impl BenchArgs {
    /// Whether a section is to be measured.
    pub(super) fn wants(&self, section: Section) -> bool {
        self.section.is_empty() || self.section.contains(&section)
    }
}
