//! What all parts of a running worker share.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use stepfleet_connect::Redis;
use stepfleet_protocol::{
    failure::Origin,
    id::{JobId, PartitionId, StreamId, WorkerId},
    keys::Keys,
    message::{JobRef, JobResult},
    name::Name,
};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    calls::Ledger, classify::Classifier, gates::Gates, handler::Call, metrics::Metrics, table::Table, trace::Tracing,
};

/// Shared by the tasks of one worker.
pub(crate) struct Kit {
    pub(crate) redis: Redis,
    pub(crate) keys: Keys,
    pub(crate) worker: WorkerId,
    /// Uid of the pod that it runs in.
    pub(crate) pod: Option<String>,
    /// What failed attempts say of this program.
    pub(crate) origin: Origin,
    /// Most urgent first; never empty.
    pub(crate) queues: Vec<Name>,
    pub(crate) handlers: HashMap<Name, Arc<dyn Call>>,
    pub(crate) classifier: Arc<dyn Classifier>,
    /// The records of external calls.
    pub(crate) ledger: Arc<Ledger>,
    /// What spans of attempts say.
    pub(crate) tracing: Tracing,
    pub(crate) slots: usize,
    /// Slots that no job has.
    pub(crate) free: Arc<Semaphore>,
    /// Places for jobs without a handler; beyond them such jobs take a slot.
    pub(crate) unhandled: Arc<Semaphore>,
    pub(crate) table: Table,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Number of partitions; 0 until it was read.
    pub(crate) partitions: watch::Sender<u16>,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
    pub(crate) attempts: TaskTracker,
    /// Take nothing more.
    pub(crate) drain: CancellationToken,
    /// Nothing will be reported any more.
    pub(crate) flush: CancellationToken,
    /// Changes when a job may be there: the doorbell of Cluster.
    pub(crate) doorbell: watch::Sender<u64>,
    /// Gates that hold jobs back.
    pub(crate) gates: Gates,
    /// A beat is wanted at once.
    pub(crate) beat_now: Notify,
    /// Whether the worker's own control channel is heard.
    pub(crate) hearing: watch::Sender<Hearing>,
}

/// How the worker's own control channel is heard.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hearing {
    /// It was heard at some time.
    was_heard: bool,
    /// It was lost and is not heard now: coordinators see that nobody listens there.
    pub(crate) is_deaf: bool,
    /// How many times it was lost.
    losses: u64,
}

impl Hearing {
    pub(crate) fn lose(&mut self) {
        self.is_deaf = true;
        self.losses += 1;
    }

    pub(crate) fn regain(&mut self) {
        (self.was_heard, self.is_deaf) = (true, false);
    }

    /// How many times it was lost, for coordinators: told only once it was heard, so that nobody misses a worker there that
    /// has just come.
    pub(crate) fn told_losses(&self) -> Option<u64> {
        self.was_heard.then_some(self.losses)
    }
}

/// What the writer writes.
#[derive(Debug)]
pub(crate) enum Report {
    /// What became of a job, with the value that it carries by reference.
    Result { partition: PartitionId, result: JobResult, value: Option<Bytes> },
    /// A job is held longer than a second.
    Started { partition: PartitionId, job: JobRef, running_ms: u64 },
    /// An entry of a job stream that names no job.
    Unreadable(Unreadable),
}

/// An entry of a job stream that names no job.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable {
    pub(crate) partition: PartitionId,
    pub(crate) stream: String,
    pub(crate) entry: StreamId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) why: String,
}

impl Report {
    pub(crate) fn partition(&self) -> PartitionId {
        match self {
            Self::Result { partition, .. } | Self::Started { partition, .. } => *partition,
            Self::Unreadable(unreadable) => unreadable.partition,
        }
    }

    /// The job whose result this is.
    pub(crate) fn result_of(&self) -> Option<JobId> {
        match self {
            Self::Result { result, .. } => Some(result.of.job),
            Self::Started { .. } | Self::Unreadable(_) => None,
        }
    }

    /// Bytes of the value that goes by reference.
    pub(crate) fn value_bytes(&self) -> usize {
        match self {
            Self::Result { value, .. } => value.as_ref().map_or(0, Bytes::len),
            Self::Started { .. } | Self::Unreadable(_) => 0,
        }
    }
}

/// When the worker last read its streams, by its own monotonic clock.
#[derive(Debug)]
pub(crate) struct Pulse {
    born: Instant,
    /// Milliseconds after `born`.
    read: AtomicU64,
}

impl Pulse {
    /// Counts as read now: a worker has its grace to begin with.
    pub(crate) fn new() -> Self {
        Self { born: Instant::now(), read: AtomicU64::new(0) }
    }

    /// Streams were read now.
    pub(crate) fn note(&self) {
        self.read.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last successful read.
    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.read.load(Ordering::Relaxed)))
    }

    /// Whether the worker reads: only then may it beat and be ready.
    pub(crate) fn is_fresh(&self) -> bool {
        self.age() < Duration::from_millis(stepfleet_protocol::limits::DEAD_AFTER_MS / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_once_the_channel_was_heard() {
        let mut hearing = Hearing::default();
        hearing.lose();
        assert_eq!(hearing.told_losses(), None, "nobody is to miss it where it never was");
        hearing.regain();
        assert_eq!((hearing.told_losses(), hearing.is_deaf), (Some(1), false));
        hearing.lose();
        assert_eq!((hearing.told_losses(), hearing.is_deaf), (Some(2), true));
    }
}
