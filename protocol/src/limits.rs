//! Every bound of the protocol, by name. Bytes unless the name says otherwise.

/// Longest name of a workflow, step, handler or queue.
pub const NAME_BYTES_MAX: usize = 63;
/// Largest value (input, output, error detail) that is accepted by default.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Values above this travel by reference.
pub const INLINE_BYTES_MAX: usize = 8 << 10;
/// Messages above this are compressed with lz4.
pub const COMPRESS_ABOVE_BYTES: usize = 1 << 10;
/// Partitions of one installation: 12 bits of a run id carry the partition.
pub const PARTITIONS_MAX: u16 = 4096;
/// Steps of one workflow.
pub const STEPS_MAX: usize = 100_000;
/// Edges (`needs`) of one workflow.
pub const EDGES_MAX: usize = 1_000_000;
/// Text of one workflow.
pub const WORKFLOW_BYTES_MAX: usize = 32 << 20;
/// Attempts that a policy may ask for.
pub const ATTEMPTS_MAX: u32 = 1_000;
/// Losses of one step (its worker died) before it is poison.
pub const LOSSES_MAX: u8 = 3;
/// Step states of one chunk of a run.
pub const CHUNK_STEPS: u32 = 128;
/// Parts of one log entry: runs of a submit, results, jobs, entries. An entry with more is quarantined whole, so that one
/// entry never becomes a commit without bound. Our own writers stop at 128.
pub const ENTRY_PARTS_MAX: usize = 512;
/// Longest text of an error message; the rest is cut.
pub const ERROR_TEXT_BYTES_MAX: usize = 4 << 10;
/// Longest wait that a server may ask for with retry-after.
pub const RETRY_AFTER_MS_MAX: u64 = 24 * 3_600_000;
/// Time between two beats of a worker.
pub const HEARTBEAT_MS: u64 = 10_000;
/// A worker whose beat did not move for this long is dead.
pub const DEAD_AFTER_MS: u64 = 30_000;
/// Time between two beats of a worker that nobody can reach on its control channel.
pub const QUICK_BEAT_MS: u64 = 1_000;
/// A worker that beats quickly without its control channel is dead when it had none for this long and did not beat either.
pub const GONE_AFTER_MS: u64 = 4 * QUICK_BEAT_MS;
/// A worker that holds a job longer than this reports `started`.
pub const STARTED_AFTER_MS: u64 = 1_000;
/// A job that no worker has a handler for is a dead letter after this long.
pub const NO_HANDLER_MS: u64 = 600_000;
/// Recorded external calls of one step and generation, those of all its attempts together.
pub const CALLS_MAX: u32 = 1_000;
/// Largest result of an external call that is kept with its record.
pub const CALL_RESULT_BYTES_MAX: usize = 8 << 10;
/// Longest kind, endpoint, method or note of an external call that is kept; the rest is cut.
pub const CALL_NOTE_BYTES_MAX: usize = 1 << 10;
/// Jobs that a limit of the fleet's policies lets be under way at once.
pub const CONCURRENCY_MAX: u32 = 10_000;
/// Limits of the fleet's policies: every owner tells of its share in each.
pub const POLICY_LIMITS_MAX: usize = 1_000;
