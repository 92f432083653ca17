//! Workers, queues and how the fleet does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::PauseView;

/// How well something does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    #[default]
    Healthy,
    /// Work is piling up.
    Warning,
    /// Work waits and nobody does it.
    Critical,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its name and boot id: `name@boot`.
    pub id: String,
    /// `running`, `draining`, `silent` (its beat has not moved for 30 s while this coordinator watched) or `unknown`
    /// (it registered and has not told anything yet).
    pub state: String,
    /// When it registered.
    pub registered_at: String,
    /// Beats so far.
    pub beats: u64,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Jobs it runs now.
    pub running: u32,
    /// Queues, most urgent first.
    pub queues: Vec<String>,
    /// Handlers it has.
    pub handlers: Vec<String>,
    /// The program's version.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The process id.
    pub pid: u32,
    /// Since its last successful read of job streams, as of its last beat.
    pub read_age_ms: u64,
    /// Jobs it holds.
    #[serde(default)]
    pub held: Vec<HeldView>,
}

/// A job that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    /// The job.
    pub job: String,
    /// The partition of its run.
    pub partition: u16,
    /// The queue.
    pub queue: String,
    /// How long it has been running; none if it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_ms: Option<u64>,
    /// The handler's account of its progress, in per cent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
}

/// A queue over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Its name.
    pub name: String,
    /// Jobs nobody has taken: in ready sets and on streams.
    pub depth: u64,
    /// Of these in ready sets.
    pub ready: u64,
    /// Of these on streams.
    pub on_streams: u64,
    /// Jobs that workers have.
    pub pending: u64,
    /// How long the oldest job nobody has taken has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_age_ms: Option<u64>,
    /// How long what waits will take at the rate at which workers took jobs of late; left out while they take none, and
    /// before this coordinator has looked twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
    /// Live workers that read it.
    pub workers: u32,
    /// Their slots.
    pub slots: u32,
    /// How well it does.
    pub level: Level,
    /// Somebody paused it: nothing of it is given to workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PauseView>,
}

/// How the fleet does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetHealth {
    /// The worst level of any queue.
    pub level: Level,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// Workers that take jobs.
    pub workers_live: u32,
    /// Workers that finish what they have.
    pub workers_draining: u32,
    /// Workers whose beat does not move.
    pub workers_silent: u32,
    /// Every queue.
    pub queues: Vec<QueueView>,
}

/// What the fleet has and does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetStats {
    /// Live workers.
    pub workers: u32,
    /// Their slots.
    pub slots: u32,
    /// Jobs that run.
    pub running: u32,
    /// Jobs that run, in per cent of the slots.
    pub utilisation_percent: f64,
    /// By queue.
    pub queues: BTreeMap<String, QueueStats>,
    /// Runs of the last hour.
    pub runs: RunMetrics,
}

/// What the workers of a queue have and do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueueStats {
    /// Live workers that read it.
    pub workers: u32,
    /// Their slots, which other queues may share.
    pub slots: u32,
    /// Its jobs that run.
    pub running: u32,
    /// Jobs nobody has taken.
    pub depth: u64,
    /// Jobs that workers have.
    pub pending: u64,
}

/// A window of time that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub enum Range {
    /// One hour.
    #[serde(rename = "1h")]
    Hour,
    /// One day.
    #[default]
    #[serde(rename = "24h")]
    Day,
    /// Seven days.
    #[serde(rename = "7d")]
    Week,
    /// Thirty days.
    #[serde(rename = "30d")]
    Month,
}

/// Runs that ended in a window of time, and those that go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunMetrics {
    /// The window.
    pub time_range: Range,
    /// Runs that go on now.
    pub active: u64,
    /// Runs that are suspended now.
    pub suspended: u64,
    /// Runs that completed in the window.
    pub completed: u64,
    /// Runs that failed in the window and were neither reopened nor suspended since.
    pub failed: u64,
    /// Runs that were cancelled in the window.
    pub cancelled: u64,
    /// All that ended in the window.
    pub finished: u64,
    /// Failed of finished, in per cent.
    pub error_rate_percent: f64,
    /// Open dead letters now.
    pub dead_letters: u64,
}

/// A worker was told to drain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Draining {
    /// The worker.
    pub id: String,
    /// How many of its connections heard it; 0 when it is unreachable.
    pub heard: u64,
}
