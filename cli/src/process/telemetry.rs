//! What the programs say of themselves: the log on stderr, text for people or a JSON object a line, and traces.

mod export;
mod level;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stepfleet_coordinator::shell::spans::Spans;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

use self::export::Export;
use crate::failure::Failure;

/// The variable with a filter, as `info,stepfleet_coordinator=debug`.
const FILTER: &str = "STEPFLEET_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The log, as it was written.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// How log lines look. STEPFLEET_LOG sets a filter.
    #[arg(long, value_enum, value_name = "FORM", env = "STEPFLEET_LOG_FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// File with a log filter, such as `info,stepfleet_worker=debug`. It is read every two seconds, so that the level changes
    /// while the program runs; while it is missing or empty STEPFLEET_LOG holds.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_LOG_FILE")]
    log_file: Option<PathBuf>,
}

impl LogArgs {
    /// The log of `dev`.
    pub(super) fn text() -> Self {
        Self { log_format: LogFormat::Text, log_file: None }
    }
}

/// What has to be ended with the program.
#[derive(Debug)]
pub(super) struct Telemetry {
    export: Export,
}

impl Telemetry {
    /// Where spans of a coordinator go.
    pub(super) fn spans(&self) -> Spans {
        if self.export.is_on() { Spans::on() } else { Spans::default() }
    }

    /// Sends what is left of the traces, and waits a moment for it.
    pub(super) async fn end(self) {
        self.export.end().await;
    }
}

/// Starts the log, at `STEPFLEET_LOG` or this level, and the traces of this service, if the variables of OpenTelemetry say
/// where to.
///
/// # Errors
/// The filter or a variable cannot be read.
pub(super) fn start(args: &LogArgs, level: &str, service: &'static str) -> Result<Telemetry, Failure> {
    let text = std::env::var(FILTER).unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| Failure::usage(format!("bad filter `{text}` in {FILTER}: {error}")))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match args.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // A second start, which only a test can make, changes nothing.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    if let Some(path) = args.log_file.clone() {
        tokio::spawn(level::follow(path, text, handle));
    }
    Ok(Telemetry { export: export::start(service)? })
}
