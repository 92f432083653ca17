//! Every number that bounds a worker, in one place.

use std::time::Duration;

/// Jobs that run at once unless the builder says otherwise.
pub const CONCURRENCY_DEFAULT: usize = 64;
/// Jobs that may be set to run at once, at most.
pub const CONCURRENCY_MAX: usize = 65_536;
/// How long running jobs may take to finish once the worker drains.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest time one read waits on the server for a job.
pub const BLOCK_MAX: Duration = Duration::from_secs(2);
/// What a read may take beyond the time that it blocks.
pub const READ_MARGIN: Duration = Duration::from_secs(2);
/// How long one write of results may take before the connection counts as lost.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader on Cluster waits for a doorbell before it looks by itself.
pub const DOORBELL_WAIT: Duration = Duration::from_secs(1);
/// How often the number of partitions is read again.
pub const PARTITIONS_EVERY: Duration = Duration::from_secs(10);
/// A reader without a free slot proves that it can read this often: more often than the 4 s after which coordinators miss who
/// is gone from its control channel.
pub const PROOF_EVERY: Duration = Duration::from_secs(2);
/// First wait before a lost connection is opened again; it doubles, with jitter.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait before a lost connection is opened again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Entries of one page of a worker's own pending list.
pub const PENDING_PAGE: usize = 128;
/// Results in one log entry.
pub const ENTRY_RESULTS_MAX: usize = 128;
/// Payload bytes after which a log entry takes no further result.
pub const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Reports between the attempts and the writer; a full channel holds finished jobs in their slots.
pub const REPORTS_MAX: usize = 4_096;
/// Reports that the writer holds back for a server that does not answer.
pub const WAITING_MAX: usize = 8_192;
/// Bytes of values that the writer holds back for a server that does not answer.
pub const WAITING_BYTES_MAX: usize = 64 << 20;
/// How long written results are remembered, to send them again to a server that may have lost them.
pub const RECENT_FOR: Duration = Duration::from_secs(60);
/// Bytes of written results that are remembered.
pub const RECENT_BYTES_MAX: usize = 64 << 20;
/// How long the ids of jobs whose results were written are remembered, so that a job that is still pending is not done again.
pub const WRITTEN_FOR: Duration = Duration::from_secs(3_600);
/// Ids of jobs whose results were written that are remembered; about 100 bytes each.
pub const WRITTEN_MAX: usize = 100_000;
/// How often an idle writer asks whether its server is still there.
pub const WRITER_PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long an attempt that ran out of time may take to stop by itself.
pub const TIMEOUT_GRACE: Duration = Duration::from_secs(1);
/// An attempt that is still there so long after its limit is named in no beat any more: its handler does not come back. Longer
/// than the half minute after which its coordinator gives it up, so that it counts as a try.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How long a cancelled attempt may take to stop by itself.
pub const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How long an attempt may take to stop by itself when the worker must leave.
pub const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// How long a worker that leaves tries to write its last results and to deregister.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a job without a handler is held before it is handed back.
pub const NO_HANDLER_HOLD: Duration = Duration::from_secs(1);
/// How often held jobs are looked at: for `started`, and for jobs without a handler.
pub const TICK_EVERY: Duration = Duration::from_millis(200);
/// Cancelled jobs that are remembered in case they arrive later.
pub const CANCELLED_MAX: usize = 10_000;
/// A worker's registry entry vanishes this long after its last beat.
pub const REGISTRY_TTL: Duration = Duration::from_secs(24 * 3_600);
/// How long the reading of a value from Redis waits before it is tried again.
pub const VALUE_RETRY: Duration = Duration::from_millis(250);
/// Control channels that are subscribed to at the same time.
pub const SUBSCRIBES_AT_ONCE: usize = 64;
