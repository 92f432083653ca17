//! What spans of attempts say, as it was written.

use clap::{Args, ValueEnum};
use stepfleet_worker::{Parentage, Tracing};

use super::{Checks, settings::number};

/// Bytes of a value that a span shows, at most.
const VALUES_MAX: u64 = 65_536;

/// How spans of attempts belong to their runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// Below the span that sent the job: a run is one trace.
    Parent,
    /// In traces of their own, linked to it.
    Link,
}

/// What spans of attempts say.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// How spans of attempts belong to their runs, where traces are sent: below them, or in traces of their own that link to them.
    #[arg(long, value_enum, value_name = "HOW", env = "STEPFLEET_TRACE_PARENTAGE", default_value_t = Place::Parent)]
    trace_parentage: Place,
    /// Show inputs and outputs on spans as JSON, this many bytes of each; 0 shows none.
    #[arg(long, value_name = "BYTES", env = "STEPFLEET_TRACE_VALUES", default_value = "0")]
    trace_values: String,
    /// Show members whose names contain one of these words as `***`, in whatever case; may be repeated [default: password, passwd,
    /// secret, token, authorization, api_key, apikey, credential, cookie].
    #[arg(long, value_name = "WORD", env = "STEPFLEET_TRACE_REDACT", value_delimiter = ',')]
    trace_redact: Vec<String>,
}

impl TraceArgs {
    /// As it is meant; none after a problem.
    pub(super) fn check(&self, checks: &mut Checks<'_>) -> Option<Tracing> {
        let values = checks.read("trace_values", &self.trace_values, |text| number(text, 0..=VALUES_MAX))?;
        let parentage = match self.trace_parentage {
            Place::Parent => Parentage::Parent,
            Place::Link => Parentage::Link,
        };
        let words: Vec<String> = self.trace_redact.iter().filter(|word| !word.trim().is_empty()).cloned().collect();
        let redact = if words.is_empty() { Tracing::redacted() } else { words };
        Some(Tracing { parentage, values: usize::try_from(values).ok()?, redact })
    }
}
