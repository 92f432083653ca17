//! How one attempt is run: limits, stops and panics around the handler, and the result at its end.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use opentelemetry::context::FutureExt as _;
use stepfleet_protocol::{
    failure::{Category, Failure as WireFailure},
    keys,
    limits::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX},
    message::{JobResult, Outcome, Returned},
    value::{Input, Payload, ValueRef},
};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use crate::{
    attempt::{Attempt, Cause},
    classify::ErrorContext,
    failure::{CALL_UNKNOWN, Failure},
    handler::{Call, Called},
    kit::{Kit, Report},
    limits::{CANCEL_GRACE, DRAIN_GRACE, TIMEOUT_GRACE, VALUE_RETRY},
    trace::Traced,
};

/// Runs an attempt and reports what became of it. The slot is free only when the report is on its way, so that a writer
/// that cannot write holds new work back.
pub(crate) async fn run(
    kit: Arc<Kit>,
    attempt: Attempt,
    handler: Arc<dyn Call>,
    input: Input,
    slot: OwnedSemaphorePermit,
) {
    if kit.gates.blocks(attempt.message(), &attempt.of().queue) {
        report(&kit, &attempt, Duration::ZERO, Outcome::Returned(Returned::Gated)).await;
        return drop(slot);
    }
    let begun = attempt.begin();
    kit.metrics.slots_used.inc();
    let traced = Traced::begin(&kit, &attempt);
    let called = supervised(&kit, &attempt, handler, input, &traced).await;
    let ran = begun.elapsed();
    kit.metrics.ran(&attempt.message().handler, ran.as_secs_f64());
    let outcome =
        outcome_of(&attempt, called.map(|called| called.map_err(|failure| judged(&kit, &attempt, ran, failure))));
    traced.end(&kit.tracing, &outcome);
    report(&kit, &attempt, ran, outcome).await;
    kit.metrics.slots_used.dec();
    drop(slot);
}

/// Reports what became of a job, once: whoever comes second is ignored.
pub(crate) async fn report(kit: &Kit, attempt: &Attempt, ran: Duration, outcome: Outcome) {
    if !attempt.claim_result() {
        return;
    }
    kit.metrics.ended(&attempt.of().queue, &outcome);
    let (mut outcome, value) = by_reference(attempt, outcome);
    if let Outcome::Failed(failure) = &mut outcome {
        // Only here: what goes well need not pay for it.
        failure.origin = Some(Box::new(kit.origin.clone()));
    }
    let gate = attempt.message().gate.clone();
    let result = JobResult { of: attempt.of().clone(), run_ms: ran.as_millis() as u64, outcome, gate };
    let report = Report::Result { partition: attempt.partition(), result, value };
    if kit.reports.send(report).await.is_err() {
        // The worker was given up with this result unwritten: its coordinator will see it die.
        tracing::warn!(job = %attempt.job(), "a result could not be reported: the writer has stopped");
    }
}

/// What the handler returned; none if it was told to stop and did not in time.
async fn supervised(
    kit: &Kit,
    attempt: &Attempt,
    handler: Arc<dyn Call>,
    input: Input,
    traced: &Traced,
) -> Option<Called> {
    let work = AssertUnwindSafe(work(kit, attempt, handler, input, traced));
    let work = work.catch_unwind().with_context(traced.context()).instrument(traced.log().clone());
    let mut work = pin!(Some(work));
    let mut called = poll_fn(|context| match work.as_mut().as_pin_mut() {
        Some(work) => work.poll(context).map(|ended| ended.unwrap_or_else(|panic| Err(panicked(&*panic)))),
        None => Poll::Pending,
    });
    let first = tokio::select! {
        biased;
        called = &mut called => Some(called),
        () = attempt.cancelled() => None,
        () = past(attempt.limit()) => {
            attempt.stop(Cause::TimedOut);
            None
        }
    };
    let ended = match first {
        Some(called) => Some(called),
        None => tokio::time::timeout(grace(attempt.cause()), called).await.ok(),
    };
    // A handler that is given up is dropped here; what it panics with then is of no use to anybody.
    let _panicked = catch_unwind(AssertUnwindSafe(|| work.set(None)));
    ended
}

/// The whole work of an attempt: the input, then the handler.
async fn work(kit: &Kit, attempt: &Attempt, handler: Arc<dyn Call>, input: Input, traced: &Traced) -> Called {
    let input = match input {
        Input::None => Bytes::new(),
        Input::Whole(Payload::Inline(bytes)) => bytes,
        Input::Whole(Payload::Ref(value)) => Box::pin(fetched(kit, attempt, &value)).await?,
    };
    traced.takes(&kit.tracing, &input);
    handler.call(attempt.clone(), input).await
}

async fn past(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn grace(cause: Option<Cause>) -> Duration {
    match cause {
        Some(Cause::Cancelled) | None => CANCEL_GRACE,
        Some(Cause::TimedOut) => TIMEOUT_GRACE,
        Some(Cause::Drained) => DRAIN_GRACE,
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::transient(format!("the handler panicked: {}", text.unwrap_or("no message"))).code("panic")
}

/// With the category that the worker's classifier finds, where the handler named none.
fn judged(kit: &Kit, attempt: &Attempt, ran: Duration, failure: Failure) -> Failure {
    let context = ErrorContext {
        run: attempt.run(),
        workflow: attempt.workflow(),
        step: attempt.step(),
        handler: attempt.message().handler.as_str(),
        job: attempt.job(),
        attempt: attempt.attempt(),
        max_attempts: attempt.max_attempts(),
        duration: ran,
    };
    failure.judged(&*kit.classifier, &context)
}

fn outcome_of(attempt: &Attempt, called: Option<Called>) -> Outcome {
    match (attempt.cause(), called) {
        (Some(Cause::Cancelled), _) => Outcome::Cancelled,
        (Some(Cause::Drained), _) | (None, None) => Outcome::Returned(Returned::Drain),
        (Some(Cause::TimedOut), _) => {
            let limit = stepfleet_protocol::duration::Millis(attempt.message().timeout_ms);
            let mut message = format!("step `{}` ran past its limit of {limit}", attempt.step());
            let code = if attempt.has_open_call() {
                message.push_str(" in the middle of an external call, whose outcome is unknown");
                CALL_UNKNOWN
            } else {
                "timeout"
            };
            Outcome::Failed(WireFailure::new(Category::Timeout, message).with_code(code))
        }
        (None, Some(Ok(output))) => Outcome::Completed(output.map(Payload::Inline)),
        (None, Some(Err(failure))) => Outcome::Failed(failure.into_wire()),
    }
}

/// Moves a large value out of the outcome: it goes to the key of the job.
fn by_reference(attempt: &Attempt, mut outcome: Outcome) -> (Outcome, Option<Bytes>) {
    let payload = match &mut outcome {
        Outcome::Completed(Some(payload)) => payload,
        Outcome::Failed(WireFailure { detail: Some(payload), .. }) => payload,
        Outcome::Completed(None) | Outcome::Failed(_) | Outcome::Returned(_) | Outcome::Cancelled => {
            return (outcome, None);
        }
    };
    let value = match payload {
        Payload::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => bytes.clone(),
        Payload::Inline(_) | Payload::Ref(_) => return (outcome, None),
    };
    *payload = Payload::Ref(ValueRef { id: attempt.job().to_string(), bytes: value.len() as u64 });
    (outcome, Some(value))
}

/// Reads an input that came by reference. While Redis does not answer it is asked again: the attempt's limit ends that.
async fn fetched(kit: &Kit, attempt: &Attempt, value: &ValueRef) -> Result<Bytes, Failure> {
    if value.bytes > PAYLOAD_BYTES_MAX as u64 * 4 {
        return Err(Failure::data(format!("the input has {} bytes", value.bytes)).code("input_too_large"));
    }
    let slot = keys::slot(attempt.partition());
    let mut ask = redis::cmd("GET");
    ask.arg(kit.keys.partition(attempt.partition()).value(&value.id));
    loop {
        let read: Result<Option<Vec<u8>>, String> = match kit.redis.pooled(slot).await {
            Ok(mut connection) => ask.query_async(&mut connection).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(Some(bytes)) => return Ok(bytes.into()),
            Ok(None) => {
                let message = format!("the input is stored under `{}`, and there is nothing", value.id);
                return Err(Failure::data(message).code("input_missing"));
            }
            Err(error) => {
                tracing::debug!(%error, "the input could not be read; trying again");
                let _as_it_was = kit.redis.refresh().await;
                tokio::time::sleep(VALUE_RETRY).await;
            }
        }
    }
}
