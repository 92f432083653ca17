//! One attempt of one step: what a handler is told of it, and what can be asked of it while it runs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use stepfleet_protocol::{
    beat::Held,
    id::{JobId, PartitionId, RunId},
    message::{Job, JobRef},
};
use tokio_util::sync::CancellationToken;

use crate::{
    calls::{ExternalCall, Ledger},
    limits::STUCK_AFTER,
};

/// Progress that nobody has told.
const UNKNOWN: u8 = u8::MAX;

/// Why an attempt is told to stop. The first cause stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    /// A cancel asked for it.
    Cancelled = 1,
    /// It ran past its limit.
    TimedOut = 2,
    /// The worker must leave.
    Drained = 3,
}

/// The attempt that a handler works on. Clones are the same attempt.
#[derive(Debug, Clone)]
pub struct Attempt(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    job: Job,
    of: JobRef,
    partition: PartitionId,
    ledger: Arc<Ledger>,
    /// External calls so far.
    calls: AtomicU32,
    /// Those of them whose outcome is not known.
    open_calls: AtomicU32,
    taken: Instant,
    begun: OnceLock<Instant>,
    done: AtomicBool,
    /// The trace context of the span in which it runs.
    trace: OnceLock<String>,
    /// Whether `started` was reported.
    told: AtomicBool,
    progress: AtomicU8,
    cause: AtomicU8,
    stop: CancellationToken,
}

impl Attempt {
    /// The attempt of a job that was just taken.
    pub(crate) fn new(job: Job, of: JobRef, partition: PartitionId, ledger: Arc<Ledger>) -> Self {
        Self(Arc::new(Inner {
            job,
            of,
            partition,
            ledger,
            calls: AtomicU32::new(0),
            open_calls: AtomicU32::new(0),
            taken: Instant::now(),
            begun: OnceLock::new(),
            done: AtomicBool::new(false),
            trace: OnceLock::new(),
            told: AtomicBool::new(false),
            progress: AtomicU8::new(UNKNOWN),
            cause: AtomicU8::new(0),
            stop: CancellationToken::new(),
        }))
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.0.job.run
    }

    /// The workflow's name.
    pub fn workflow(&self) -> &str {
        self.0.job.workflow.as_str()
    }

    /// The step's name.
    pub fn step(&self) -> &str {
        self.0.job.step.as_str()
    }

    /// Which try this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.job.attempt
    }

    /// How many tries there will be in all.
    pub fn max_attempts(&self) -> u32 {
        self.0.job.max_attempts
    }

    /// The job's id: unique for this attempt.
    pub fn job(&self) -> JobId {
        self.0.job.id
    }

    /// The key by which side effects are made idempotent: the same for every attempt of the step, `run/step/generation`.
    pub fn idempotency_key(&self) -> String {
        self.0.job.idempotency_key()
    }

    /// The next external call: its intent is recorded before it is made and its outcome after, so that another attempt does
    /// not make it again. `kind` is a word for it, of which at most 1 KiB is kept. Calls are told apart by their order: every
    /// attempt of a step must begin them in the same one.
    pub fn call(&self, kind: &str) -> ExternalCall {
        ExternalCall::new(self.clone(), kind)
    }

    /// W3C trace context for what the handler calls: the span of this attempt if the worker makes spans, else that of the
    /// run, if it has one.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.trace.get().or(self.0.job.traceparent.as_ref()).map(String::as_str)
    }

    pub(crate) fn traced(&self, traceparent: String) {
        self.0.trace.get_or_init(|| traceparent);
    }

    /// When the attempt will be stopped; none if it has no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.limit().map(|limit| self.begun().unwrap_or(self.0.taken) + limit)
    }

    /// The time until [`Attempt::deadline`]: zero once it has passed, none if there is no limit.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the attempt should stop: its run was cancelled, its time is up, or the worker must leave. What it returns
    /// from now on is not used.
    pub fn is_cancelled(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    /// Waits until the attempt should stop. The handler then has a moment (1 s, after a cancel 5 s) to clean up before
    /// its future is dropped.
    pub async fn cancelled(&self) {
        self.0.stop.cancelled().await;
    }

    /// Tells how far the work is, in per cent; shown with the worker's next beat. More than 100 counts as 100.
    pub fn progress(&self, percent: u8) {
        self.0.progress.store(percent.min(100), Ordering::Relaxed);
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// The number of the next external call, from 1.
    pub(crate) fn next_call(&self) -> u32 {
        self.0.calls.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The outcome of a call is not known from now on.
    pub(crate) fn call_opened(&self) {
        self.0.open_calls.fetch_add(1, Ordering::AcqRel);
    }

    /// The outcome of a call is known.
    pub(crate) fn call_closed(&self) {
        self.0.open_calls.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether there is a call whose outcome is not known.
    pub(crate) fn has_open_call(&self) -> bool {
        self.0.open_calls.load(Ordering::Acquire) > 0
    }

    pub(crate) fn message(&self) -> &Job {
        &self.0.job
    }

    pub(crate) fn of(&self) -> &JobRef {
        &self.0.of
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.0.partition
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        (self.0.job.timeout_ms > 0).then(|| Duration::from_millis(self.0.job.timeout_ms))
    }

    pub(crate) fn begun(&self) -> Option<Instant> {
        self.0.begun.get().copied()
    }

    /// Notes that the handler begins now.
    pub(crate) fn begin(&self) -> Instant {
        *self.0.begun.get_or_init(Instant::now)
    }

    /// Whether its limit is so long over that its handler will not come back: it blocks its thread, or never yields.
    pub(crate) fn is_stuck(&self, now: Instant) -> bool {
        !self.is_done() && is_stuck(self.begun(), self.limit(), now)
    }

    /// Claims the right to say what became of the job. True for one caller only.
    pub(crate) fn claim_result(&self) -> bool {
        !self.0.done.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.0.done.load(Ordering::Acquire)
    }

    /// Whether `started` is due for a job held longer than `after`. True at most once.
    pub(crate) fn tell_started(&self, after: Duration) -> Option<Duration> {
        let running = self.begun()?.elapsed();
        (running >= after && !self.is_done() && !self.0.told.swap(true, Ordering::Relaxed)).then_some(running)
    }

    /// Tells the handler to stop. The first cause stands.
    pub(crate) fn stop(&self, cause: Cause) {
        let _an_earlier_cause_stands =
            self.0.cause.compare_exchange(0, cause as u8, Ordering::AcqRel, Ordering::Acquire);
        self.0.stop.cancel();
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        match self.0.cause.load(Ordering::Acquire) {
            1 => Some(Cause::Cancelled),
            2 => Some(Cause::TimedOut),
            3 => Some(Cause::Drained),
            _ => None,
        }
    }

    /// As it is told in a beat.
    pub(crate) fn held(&self) -> Held {
        let progress = self.0.progress.load(Ordering::Relaxed);
        Held {
            job: self.0.job.id,
            partition: self.0.partition,
            queue: self.0.of.queue.clone(),
            entry: self.0.of.entry,
            running_ms: self.begun().map(|begun| begun.elapsed().as_millis() as u64),
            progress: (progress != UNKNOWN).then_some(progress),
        }
    }
}

fn is_stuck(begun: Option<Instant>, limit: Option<Duration>, now: Instant) -> bool {
    let since = begun.zip(limit).map(|(begun, limit)| begun + limit);
    since.is_some_and(|limit| now.saturating_duration_since(limit) > STUCK_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lesson_07_a_beat_does_not_keep_a_job_alive_whose_handler_does_not_come_back() {
        let begun = Instant::now();
        let (limit, at) = (Duration::from_secs(10), |secs| begun + Duration::from_secs(secs));
        assert!(!is_stuck(Some(begun), Some(limit), at(9)), "it has time left");
        // Its coordinator gives it up after half a minute, and that counts as a try.
        assert!(!is_stuck(Some(begun), Some(limit), at(10 + 45)), "its coordinator goes first");
        assert!(is_stuck(Some(begun), Some(limit), at(10 + 61)));
        assert!(!is_stuck(Some(begun), None, at(1_000_000)), "it may run for ever");
        assert!(!is_stuck(None, Some(limit), at(1_000_000)), "it waits for its slot");
    }
}
