//! What a worker tells of itself with each beat, what a coordinator saw of it when its jobs were lost, and what reaches it on
//! its control channel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    gate::Gate,
    id::{JobId, PartitionId, StreamId},
    name::Name,
    pod::PodEnd,
};

/// Field of a worker's registry hash, beside its account: how many times it lost its own control channel. A worker that writes
/// it has been heard there, beats at once when it is not any more, and every
/// [`QUICK_BEAT_MS`](crate::limits::QUICK_BEAT_MS) until it is again.
pub const FIELD_LOSSES: &str = "losses";

/// A worker's account of itself, in its registry hash with each beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Version of the message.
    pub v: u8,
    /// Milliseconds since the last successful read of job streams.
    pub read_age_ms: u64,
    /// What it is doing.
    pub phase: Phase,
    /// Slots in all.
    pub slots: u32,
    /// Queues, most urgent first.
    pub queues: Vec<Name>,
    /// Handlers it has.
    pub handlers: Vec<Name>,
    /// The program's version.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The process id.
    pub pid: u32,
    /// Jobs it holds: running, or taken and not begun.
    pub held: Vec<Held>,
    /// Uid of the pod of Kubernetes that it runs in, if it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// A coordinator's account of itself, about twice a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorBeat {
    /// Version of the message.
    pub v: u8,
    /// The program's version.
    pub version: String,
    /// The version of the fleet's policies that its partitions are decided with; 0 before there are any.
    #[serde(default)]
    pub policies: u64,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Takes jobs.
    Running,
    /// Finishes what it has and takes nothing.
    Draining,
}

/// A job that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The job.
    pub job: JobId,
    /// The partition of its stream.
    pub partition: PartitionId,
    /// The queue of its stream.
    pub queue: Name,
    /// Its entry there.
    pub entry: StreamId,
    /// How long the handler has been running; none if it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_ms: Option<u64>,
    /// The handler's own account of its progress, in per cent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
}

/// What a coordinator knew of a worker when it reported one of its jobs lost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sight {
    /// For how long its beat had not moved while the server answered and took writes, in milliseconds.
    pub silent_ms: u64,
    /// How long the server took to answer the last look at its record, in milliseconds.
    #[serde(default)]
    pub trip_ms: u64,
    /// By its last beat, when that was written: milliseconds since it had read its job streams. None if it never told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_age_ms: Option<u64>,
    /// Its last beat named the job.
    #[serde(default)]
    pub held: bool,
    /// By its last beat, when that was written: how long the handler had been running. None if it had not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_ms: Option<u64>,
    /// For how long, at the last look, nobody had been listening on its control channel, in milliseconds. None if somebody did,
    /// or that was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_ms: Option<u64>,
    /// How its pod ended, if Kubernetes told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodEnd>,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(end) = &self.pod {
            write!(f, "{end}; ")?;
        }
        let Self { silent_ms, trip_ms, .. } = self;
        write!(f, "its beat had not moved for {silent_ms} ms, and the server answered in {trip_ms} ms; ")?;
        if let Some(ms) = self.gone_ms {
            write!(f, "it had been gone from its control channel for {ms} ms; ")?;
        }
        match self.read_age_ms {
            Some(age) => write!(f, "at its last beat it had read its job streams {age} ms before, ")?,
            None => return write!(f, "it never told anything"),
        }
        match (self.held, self.running_ms) {
            (true, Some(ms)) => write!(f, "and had been running the job for {ms} ms"),
            (true, None) => write!(f, "and held the job without having begun it"),
            (false, _) => write!(f, "and did not name the job"),
        }
    }
}

/// A message on a control channel: of one worker, or of a partition for all workers that may hold its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Stop these jobs.
    Cancel(Vec<JobId>),
    /// Take nothing more, finish, leave.
    Drain,
    /// There are jobs on the stream of this queue (the doorbell of Cluster).
    Jobs(Name),
    /// Gates have changed: these hold jobs back now, all others do not. Sent on the channel of any one partition.
    Gates(Vec<Gate>),
}
