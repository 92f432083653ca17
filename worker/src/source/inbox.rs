//! What is done with entries that were read: run, held for want of a handler, handed back, or put aside.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use stepfleet_protocol::{
    codec::{self, DecodeError},
    failure::{Category, Failure},
    id::{JobId, RunId},
    message::{Job, JobRef, Outcome, Returned},
    name::Name,
    value::Input,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{plan::Streams, reply::Entry};
use crate::{
    attempt::Attempt,
    calls::Ledger,
    handler::Call,
    kit::{Kit, Report, Unreadable},
    limits::NO_HANDLER_HOLD,
    runner,
};

/// Of a job that cannot be read, or is of a newer version: enough to answer for it.
#[derive(Deserialize)]
struct Head {
    id: JobId,
    run: RunId,
    index: u32,
    workflow: Name,
    step: Name,
    handler: Name,
}

/// A job that was read, with what will be done with it.
struct Taken {
    attempt: Attempt,
    input: Input,
    /// Failed before it could begin.
    broken: Option<Failure>,
}

/// Takes in what was read. `slots` are free slots, which the jobs share; what is left of them is free again.
pub(super) async fn take(
    kit: &Arc<Kit>,
    streams: &Streams,
    entries: Vec<Entry>,
    mut slots: Option<OwnedSemaphorePermit>,
) {
    if entries.is_empty() {
        return;
    }
    let mut inputs = Vec::with_capacity(entries.len());
    let mut attempts = Vec::with_capacity(entries.len());
    for entry in entries {
        match decoded(&kit.ledger, streams, entry) {
            Ok(Taken { attempt, input, broken }) => {
                inputs.push((attempt.job(), input, broken));
                attempts.push(attempt);
            }
            Err(unreadable) => put_aside(kit, unreadable).await,
        }
    }
    let fresh = kit.table.add(attempts);
    let mut inputs = inputs.into_iter();
    for (attempt, is_cancelled) in fresh {
        let (_, input, broken) =
            inputs.find(|(job, ..)| *job == attempt.job()).expect("new jobs keep the order they were read in");
        let early = if is_cancelled {
            Some(Outcome::Cancelled)
        } else if let Some(failure) = broken {
            Some(Outcome::Failed(failure))
        } else {
            kit.drain.is_cancelled().then_some(Outcome::Returned(Returned::Drain))
        };
        match early {
            Some(outcome) => runner::report(kit, &attempt, Duration::ZERO, outcome).await,
            None => begin(kit, attempt, input, &mut slots).await,
        }
    }
}

async fn begin(kit: &Arc<Kit>, attempt: Attempt, input: Input, slots: &mut Option<OwnedSemaphorePermit>) {
    let Some(handler) = kit.handlers.get(&attempt.message().handler).cloned() else {
        return hold(kit, attempt, slots);
    };
    match slots.as_mut().and_then(|slots| slots.split(1)) {
        Some(slot) => spawn(kit, attempt, handler, input, slot),
        None => runner::report(kit, &attempt, Duration::ZERO, Outcome::Returned(Returned::Surplus)).await,
    }
}

fn spawn(kit: &Arc<Kit>, attempt: Attempt, handler: Arc<dyn Call>, input: Input, slot: OwnedSemaphorePermit) {
    // Boxed: the runtime moves what it is given twice more, and this is some kilobytes.
    kit.attempts.spawn(Box::pin(runner::run(Arc::clone(kit), attempt, handler, input, slot)));
}

/// Holds a job that this worker has no handler for, then hands it back to those who may have one. Without the wait it
/// would come back at once.
fn hold(kit: &Arc<Kit>, attempt: Attempt, slots: &mut Option<OwnedSemaphorePermit>) {
    let place = Arc::clone(&kit.unhandled).try_acquire_owned().ok();
    let place = place.or_else(|| slots.as_mut().and_then(|slots| slots.split(1)));
    let kit = Arc::clone(kit);
    kit.clone().attempts.spawn(async move {
        let outcome = tokio::select! {
            () = attempt.cancelled() => Outcome::Cancelled,
            () = kit.drain.cancelled() => Outcome::Returned(Returned::Drain),
            () = tokio::time::sleep(NO_HANDLER_HOLD) => Outcome::Returned(Returned::NoHandler),
        };
        runner::report(&kit, &attempt, Duration::ZERO, outcome).await;
        drop(place);
    });
}

async fn put_aside(kit: &Kit, unreadable: Unreadable) {
    kit.metrics.unreadable.inc();
    tracing::error!(
        stream = unreadable.stream, entry = %unreadable.entry, why = unreadable.why,
        "an entry of a job stream names no job; it goes to the quarantine"
    );
    // The writer has gone only if the worker was given up.
    let _given_up = kit.reports.send(Report::Unreadable(unreadable)).await;
}

fn decoded(ledger: &Arc<Ledger>, streams: &Streams, entry: Entry) -> Result<Taken, Unreadable> {
    let error = match codec::decode::<Job>(&entry.field, &entry.bytes) {
        Ok(mut job) => {
            let input = std::mem::take(&mut job.input);
            return Ok(Taken { attempt: attempt_of(ledger, streams, &entry, job), input, broken: None });
        }
        Err(error) => error,
    };
    let stream = &streams.all()[entry.stream];
    let plain = match entry.field.as_slice() {
        field if field == codec::FIELD_LZ4.as_bytes() => {
            codec::decompress(&entry.bytes).ok().map(|bytes| bytes.to_vec())
        }
        _ => None,
    };
    match codec::unpack::<Head>(plain.as_ref().unwrap_or(&entry.bytes)) {
        Ok(head) => {
            let broken = match &error {
                // No handler fits a job of a newer version: it is handed back like any other that has none.
                DecodeError::Newer(_) => None,
                DecodeError::Malformed(_) => {
                    let why = format!("the job cannot be read: {error}");
                    Some(Failure::new(Category::Permanent, why).with_code("malformed_job"))
                }
            };
            let job = job_of(head, matches!(error, DecodeError::Newer(_)));
            Ok(Taken { attempt: attempt_of(ledger, streams, &entry, job), input: Input::None, broken })
        }
        Err(_) => Err(Unreadable {
            partition: stream.partition,
            stream: stream.key.clone(),
            entry: entry.id,
            why: error.to_string(),
            bytes: entry.bytes,
        }),
    }
}

/// The name of a handler that nobody can have: the builder refuses it.
pub(crate) const NO_HANDLER: &str = "0.newer-version";

fn job_of(head: Head, newer: bool) -> Job {
    let handler = if newer { Name::new(NO_HANDLER).expect("a legal name") } else { head.handler };
    Job {
        v: codec::VERSION,
        id: head.id,
        run: head.run,
        workflow: head.workflow,
        step: head.step,
        index: head.index,
        generation: 1,
        attempt: 1,
        max_attempts: 1,
        handler,
        timeout_ms: 0,
        input: Input::None,
        traceparent: None,
        gate: None,
        canary: false,
        undo: false,
    }
}

/// The job that an entry names, if it can be read.
pub(super) fn job_id(entry: &Entry) -> Option<JobId> {
    codec::decode::<Job>(&entry.field, &entry.bytes).ok().map(|job| job.id)
}

fn attempt_of(ledger: &Arc<Ledger>, streams: &Streams, entry: &Entry, job: Job) -> Attempt {
    let stream = &streams.all()[entry.stream];
    let of = JobRef { job: job.id, run: job.run, index: job.index, queue: stream.queue.clone(), entry: entry.id };
    Attempt::new(job, of, stream.partition, Arc::clone(ledger))
}
