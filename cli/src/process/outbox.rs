//! How subscribers are told what was committed: the settings, for `coordinator` and `dev`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use stepfleet_coordinator::{
    shell::dispatcher::{Dispatcher, EscalationCommand, EscalationLog, Settings, Subscriber},
    store::client::Client,
};
use stepfleet_protocol::duration::Millis;

use super::Checks;
use super::settings::number;

/// Most entries of one read.
const BATCH_MAX: u64 = 1_000;
/// The shortest and the longest time between two looks.
const INTERVALS: std::ops::RangeInclusive<Millis> = Millis(10)..=Millis::from_secs(3_600);

/// As they were written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Outbox, of each partition and subscriber")]
pub(super) struct OutboxArgs {
    /// Read at most so many entries at once.
    #[arg(long, value_name = "N", env = "STEPFLEET_OUTBOX_BATCH", default_value_t = Settings::default().batch.to_string())]
    outbox_batch: String,
    /// Look for new entries after this time when there were none, 10ms to 1h.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_OUTBOX_INTERVAL", default_value_t = default_interval().to_string())]
    outbox_interval: String,
    /// Run this program for each commit in which a step gave up or escalated, with a line of JSON for each of them on stdin.
    /// Code 0 means that it has them; anything else is tried five times. It may be told the same again.
    #[arg(long, value_name = "PROGRAM", env = "STEPFLEET_ESCALATION_COMMAND")]
    escalation_command: Option<PathBuf>,
}

/// As they are meant.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    batch: usize,
    interval: Duration,
    command: Option<PathBuf>,
}

fn default_interval() -> Millis {
    Millis(Settings::default().interval.as_millis() as u64)
}

impl OutboxArgs {
    /// Checks everything; `None` after a problem.
    pub(super) fn check(&self, checks: &mut Checks) -> Option<Outbox> {
        let batch = checks.read("outbox_batch", &self.outbox_batch, |text| number(text, 1..=BATCH_MAX));
        let interval = checks.read("outbox_interval", &self.outbox_interval, interval);
        let command = self.escalation_command.clone();
        Some(Outbox { batch: usize::try_from(batch?).ok()?, interval: interval?.std(), command })
    }
}

impl Outbox {
    /// The dispatcher with the built-in subscribers. The fleet's audit entries are kept for `audit_ms`.
    pub(super) fn dispatcher(&self, client: Client, audit_ms: u64) -> Dispatcher {
        let settings = Settings { batch: self.batch, interval: self.interval, audit_ms, ..Settings::default() };
        let mut subscribers: Vec<Arc<dyn Subscriber>> = vec![Arc::new(EscalationLog)];
        if let Some(program) = &self.command {
            subscribers.push(Arc::new(EscalationCommand { program: program.clone() }));
        }
        Dispatcher::new(client, settings, subscribers)
    }
}

fn interval(text: &str) -> Result<Millis, String> {
    let found = Millis::parse(text).map_err(|error| error.to_string())?;
    let (least, most) = (INTERVALS.start(), INTERVALS.end());
    if INTERVALS.contains(&found) { Ok(found) } else { Err(format!("`{found}`: allowed are {least} to {most}")) }
}
