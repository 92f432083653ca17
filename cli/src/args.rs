//! The command line: the global options and the tree of nouns and verbs.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use stepfleet_protocol::duration::Millis;

use crate::{process, verbs};

const AFTER: &str = "\
Examples:
  stepfleet dev                                   everything on this machine, with its own server
  stepfleet workflows check orders.yaml           every problem of a definition, offline
  stepfleet runs start -f orders.yaml --wait      start a run and follow it
  stepfleet runs list --state failed              what went wrong
  stepfleet dead-letters replay --all --dry-run   what a replay would do

Exit codes:
  0  done
  1  failed, or the answer is no: a run that was waited for failed, a definition has problems
  2  wrong use or settings
  3  not found
  4  conflict: the present state does not allow it
  5  the API or the server is unreachable
  6  not allowed

Data goes to stdout, talk to stderr; `--output json` gives the API's JSON unchanged.";

/// Runs workflows on a fleet of workers, with Redis or Valkey as the only server.
#[derive(Debug, Parser)]
#[command(name = "stepfleet", version, after_help = AFTER, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(disable_help_flag = true)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the API.
    #[arg(long, global = true, value_name = "URL", env = "STEPFLEET_API", default_value = "http://127.0.0.1:7070")]
    #[arg(hide_env_values = true)]
    pub(crate) api: String,
    /// File with the token for the API, where it asks for one; else the token itself in the environment, as STEPFLEET_TOKEN.
    #[arg(long, global = true, value_name = "FILE", env = "STEPFLEET_TOKEN_FILE", hide_env_values = true)]
    pub(crate) token_file: Option<std::path::PathBuf>,
    /// Tables for people, or the API's JSON unchanged (one document a line where there are several).
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Give up after this long, as `30s`: on a request (30s if not given), or on the run that is waited for.
    #[arg(long, global = true, value_name = "TIME")]
    pub(crate) timeout: Option<Millis>,
    /// No colours. `NO_COLOR` in the environment does the same.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Say more: each request; the log of `dev`; twice: more of the log.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say nothing but data and failures.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Print this help.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Who reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// People.
    Table,
    /// Programs.
    Json,
}

/// Nouns, and programs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything on this machine: a server with a data folder, a coordinator, workers.
    Dev(process::dev::DevArgs),
    /// Run a coordinator: it schedules steps and serves the API.
    Coordinator(process::coordinator::CoordinatorArgs),
    /// Run a stock worker, with the handlers `exec`, `http` and `sleep`.
    Worker(process::worker::WorkerArgs),
    /// Start, look at, follow and stop runs.
    #[command(subcommand, visible_alias = "run")]
    Runs(verbs::runs::Runs),
    /// Check, register and look at workflows.
    #[command(subcommand, visible_alias = "workflow")]
    Workflows(verbs::workflows::Workflows),
    /// Steps that gave up: look at them, replay them.
    #[command(subcommand, visible_alias = "dead-letter")]
    DeadLetters(verbs::dead_letters::DeadLetters),
    /// The fleet: who works, on what, how well.
    #[command(subcommand)]
    Workers(verbs::workers::Workers),
    /// Queues: how much waits, and for how long.
    #[command(subcommand)]
    Queues(verbs::queues::Queues),
    /// Campaigns over dead letters: replay or close many, with canaries, a rate and a report.
    #[command(subcommand, visible_alias = "campaign")]
    Campaigns(verbs::campaigns::Campaigns),
    /// Look at circuit breakers, and switch them by hand.
    #[command(subcommand)]
    Breakers(verbs::breakers::Breakers),
    /// Look at limits: how much of a handler, or with a target, the fleet does.
    #[command(subcommand)]
    Limits(verbs::limits::Limits),
    /// What holds when something fails: retries, waits, circuit breakers.
    #[command(subcommand, visible_alias = "policy")]
    Policies(verbs::policies::Policies),
    /// Partitions: who owns them, how far they are.
    #[command(subcommand)]
    Partitions(verbs::partitions::Partitions),
    /// Log entries that could not be decided.
    #[command(subcommand)]
    Quarantine(verbs::quarantine::Quarantine),
    /// Who asked for what, and what became of it.
    #[command(subcommand)]
    Audit(verbs::audit::Audit),
    /// Who is told what was committed, and what was not delivered.
    #[command(subcommand, visible_alias = "subscriber")]
    Subscribers(verbs::subscribers::Subscribers),
    /// Make tokens for the API, and check the file of them.
    #[command(subcommand, visible_alias = "token")]
    Tokens(verbs::tokens::TokenVerb),
    /// Make workflows from what other systems recorded.
    #[command(subcommand)]
    Import(verbs::import::Import),
    /// Measure throughput, latency and memory on a server of its own.
    Bench(process::bench::BenchArgs),
    /// Check that the API, and with --redis the servers, are there and set up well.
    Doctor(verbs::doctor::DoctorArgs),
    /// Ask whether a program of the fleet on this host is alive, as the health check of a container.
    Probe(verbs::probe::ProbeArgs),
    /// Completions for a shell.
    Completions(verbs::completions::CompletionsArgs),
}
