//! The log of the programs, on stderr: text for people, or a JSON object a line.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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

/// Starts the log: `STEPFLEET_LOG`, or this level.
///
/// # Errors
/// The filter cannot be read.
pub(super) fn start(format: LogFormat, level: &str) -> Result<(), Failure> {
    let text = std::env::var(FILTER).unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| Failure::usage(format!("bad filter `{text}` in {FILTER}: {error}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start, which only a test can make, changes nothing.
    let _ = match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(())
}
