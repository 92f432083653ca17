//! What a coordinator keeps of what is done with: the settings, for `coordinator` and `dev`.

use clap::Args;
use stepfleet_coordinator::{shell::retention::Retention, store::submit::IDEMPOTENCY_MS};
use stepfleet_protocol::duration::Millis;

use super::Checks;
use super::settings::number;

/// The shortest time that anything may be kept.
const SHORTEST: Millis = Millis::from_secs(1);
/// Most of anything in a partition.
const COUNT_MAX: u64 = 1_000_000_000;

/// As they were written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Retention, of each partition")]
pub(super) struct RetentionArgs {
    /// Delete completed, cancelled and failed runs this long after their end; `coordinator` takes 25h at least, the time in
    /// which an idempotency key has to find its run.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_RETAIN_COMPLETED", default_value_t = Millis(Retention::default().completed_ms).to_string())]
    retain_completed: String,
    /// Keep at most so many completed runs, so many cancelled and so many failed ones, whatever their age.
    #[arg(long, value_name = "N", env = "STEPFLEET_RETAIN_RUNS", default_value_t = Retention::default().runs_max.to_string())]
    retain_runs: String,
    /// Delete dead letters after this time; a run that is deleted takes its own along.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_RETAIN_DEAD_LETTERS", default_value_t = Millis(Retention::default().letters_ms).to_string())]
    retain_dead_letters: String,
    /// Keep at most so many dead letters, the newest.
    #[arg(long, value_name = "N", env = "STEPFLEET_RETAIN_DEAD_LETTERS_MAX", default_value_t = Retention::default().letters_max.to_string())]
    retain_dead_letters_max: String,
    /// Keep about so many entries of the outbox, the newest.
    #[arg(long, value_name = "N", env = "STEPFLEET_RETAIN_EVENTS", default_value_t = Retention::default().events_max.to_string())]
    retain_events: String,
    /// Delete audit entries after this time.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_RETAIN_AUDIT", default_value_t = Millis(Retention::default().audit_ms).to_string())]
    retain_audit: String,
}

/// How seriously idempotency keys are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// A run must be there as long as its key: a repeated request would start it again.
    FindTheirRuns,
    /// Runs may be deleted at once, for trying things out.
    MayBeLost,
}

impl RetentionArgs {
    /// Checks everything; `None` after a problem.
    pub(super) fn check(&self, keys: Keys, checks: &mut Checks) -> Option<Retention> {
        let least = match keys {
            Keys::FindTheirRuns => Millis(IDEMPOTENCY_MS),
            Keys::MayBeLost => SHORTEST,
        };
        let completed = checks.read("retain_completed", &self.retain_completed, |text| time(text, least));
        let runs = checks.read("retain_runs", &self.retain_runs, count);
        let letters = checks.read("retain_dead_letters", &self.retain_dead_letters, |text| time(text, SHORTEST));
        let letters_max = checks.read("retain_dead_letters_max", &self.retain_dead_letters_max, count);
        let events = checks.read("retain_events", &self.retain_events, count);
        let audit = checks.read("retain_audit", &self.retain_audit, |text| time(text, SHORTEST));
        Some(Retention {
            completed_ms: completed?.0,
            runs_max: runs?,
            letters_ms: letters?.0,
            letters_max: letters_max?,
            events_max: events?,
            audit_ms: audit?.0,
        })
    }
}

fn count(text: &str) -> Result<u64, String> {
    number(text, 1..=COUNT_MAX)
}

fn time(text: &str, least: Millis) -> Result<Millis, String> {
    let found = Millis::parse(text).map_err(|error| error.to_string())?;
    if found >= least {
        return Ok(found);
    }
    let why = if least == SHORTEST { "" } else { ", as long as idempotency keys have to find their runs" };
    Err(format!("`{found}` is too short: allowed are {least} to 3650d{why}"))
}
