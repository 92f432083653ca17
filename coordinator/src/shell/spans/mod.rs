//! Traces: what commits did as OpenTelemetry spans, told once they have applied. Names and attributes follow the semantic
//! conventions of messaging (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).
//!
//! A run is one trace. The spans of a run and of its jobs have ids that follow from their own, so that a job can name its
//! parent, and a step those that it needed, without a word about it in Redis. A run without a trace context, or one whose
//! trace is not recorded, costs nothing but the look.

pub mod facts;
mod ids;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    global::{self, BoxedSpan, BoxedTracer},
    trace::{Link, Span, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use stepfleet_protocol::{
    id::RunId,
    span::messaging,
    trace::{TraceContext, span_of_job, span_of_run},
};

use self::facts::{Ended, Fact, Sent, Settled, Traced};
pub use self::ids::Ids;
use super::tally::JobEnd;

/// Links of a span, at most: the default of the OpenTelemetry SDK.
const LINKS_MAX: usize = 128;

/// Where spans go; nowhere unless it is switched on.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<BoxedTracer>>);

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spans").field(&self.is_on()).finish()
    }
}

impl Spans {
    /// To the global provider, which must make ids by [`Ids`].
    pub fn on() -> Self {
        let scope = InstrumentationScope::builder("stepfleet").with_version(env!("CARGO_PKG_VERSION")).build();
        Self(Some(Arc::new(global::tracer_with_scope(scope))))
    }

    /// Whether they go anywhere.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span with an id of its own, below the one that a `traceparent` names; none if they go nowhere.
    pub fn begin(&self, above: Option<&str>, builder: impl FnOnce() -> SpanBuilder) -> Option<BoxedSpan> {
        let tracer = self.0.as_ref()?;
        let above = above.and_then(|text| text.parse().ok());
        Some(tracer.build_with_context(builder(), &above.as_ref().map(remote).unwrap_or_default()))
    }

    /// Tells of a span of a commit that applied at `at_ms` of the server's clock.
    pub(super) fn tell(&self, traced: Traced, at_ms: u64) {
        let Some(tracer) = &self.0 else { return };
        let Traced { run, of, fact } = traced;
        match fact {
            Fact::Sent(sent) => tell_sent(tracer, (run, &of), &sent, at_ms),
            Fact::Settled(settled) => tell_settled(tracer, (run, &of), *settled, at_ms),
            Fact::Ended(ended) => tell_ended(tracer, (run, &of), &ended),
        }
    }
}

fn remote(of: &TraceContext) -> Context {
    Context::new().with_remote_span_context(of.into())
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

/// A link to the span in which a job was sent.
fn link(of: &TraceContext, job: &stepfleet_protocol::id::JobId, why: &'static str) -> Link {
    let attributes = vec![KeyValue::new("stepfleet.link", why)];
    Link::new((&of.at(span_of_job(job))).into(), attributes, 0)
}

fn tell_sent(tracer: &BoxedTracer, (run, of): (RunId, &TraceContext), sent: &Sent, at_ms: u64) {
    let mut attributes = messaging("send", sent.queue.to_string());
    attributes.extend([
        KeyValue::new("messaging.message.id", sent.job.to_string()),
        KeyValue::new("messaging.message.conversation_id", run.to_string()),
        KeyValue::new("stepfleet.workflow", sent.workflow.to_string()),
        KeyValue::new("stepfleet.step", sent.step.to_string()),
        KeyValue::new("stepfleet.attempt", i64::from(sent.attempt)),
        KeyValue::new("stepfleet.generation", i64::from(sent.generation)),
    ]);
    let needed = sent.needed.iter().map(|job| link(of, job, "needs"));
    let links = sent.again_for.iter().map(|job| link(of, job, "retry of")).chain(needed).take(LINKS_MAX);
    let builder = SpanBuilder::from_name(format!("send {}", sent.queue))
        .with_kind(SpanKind::Producer)
        .with_start_time(at(sent.since_ms.min(at_ms)))
        .with_attributes(attributes)
        .with_links(links.collect());
    let parent = remote(&of.at(span_of_run(&run)));
    ids::as_if(span_of_job(&sent.job), || tracer.build_with_context(builder, &parent)).end_with_timestamp(at(at_ms));
}

fn tell_settled(tracer: &BoxedTracer, (run, of): (RunId, &TraceContext), settled: Settled, at_ms: u64) {
    let Settled { job, step, queue, attempt, end, since_ms, failure, retry_ms, letter } = settled;
    let outcome = JobEnd::ALL[end as usize].1;
    let mut attributes = messaging("settle", queue.to_string());
    attributes.extend([
        KeyValue::new("messaging.message.id", job.to_string()),
        KeyValue::new("messaging.message.conversation_id", run.to_string()),
        KeyValue::new("stepfleet.step", step.to_string()),
        KeyValue::new("stepfleet.attempt", i64::from(attempt)),
        KeyValue::new("stepfleet.outcome", outcome),
    ]);
    let category = failure.as_ref().map(|(category, _)| category.as_str());
    attributes.extend(category.map(|category| KeyValue::new("error.type", category)));
    let builder = SpanBuilder::from_name(format!("settle {queue}"))
        .with_kind(SpanKind::Client)
        .with_start_time(at(since_ms.min(at_ms)))
        .with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &remote(&of.at(span_of_job(&job))));
    if let Some(ms) = retry_ms {
        let wait = KeyValue::new("stepfleet.retry.delay_ms", ms as i64);
        span.add_event_with_timestamp("retry planned", at(at_ms), vec![wait]);
    }
    if let Some((_, message)) = failure {
        span.set_status(Status::error(message));
    }
    let parent = Context::new().with_remote_span_context(span.span_context().clone());
    span.end_with_timestamp(at(at_ms));
    let Some(cause) = letter else { return };
    let mut attributes = messaging("send", "dead-letters".to_owned());
    attributes.extend([
        KeyValue::new("messaging.message.conversation_id", run.to_string()),
        KeyValue::new("stepfleet.step", step.to_string()),
        KeyValue::new("stepfleet.dead_letter.cause", cause.as_str()),
    ]);
    attributes.extend(category.map(|category| KeyValue::new("error.type", category)));
    let builder = SpanBuilder::from_name("send dead-letters")
        .with_kind(SpanKind::Producer)
        .with_start_time(at(at_ms))
        .with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &parent);
    span.set_status(Status::error(format!("step `{step}` gave up: {}", cause.as_str())));
    span.end_with_timestamp(at(at_ms));
}

fn tell_ended(tracer: &BoxedTracer, (run, of): (RunId, &TraceContext), ended: &Ended) {
    let attributes = [
        KeyValue::new("messaging.message.conversation_id", run.to_string()),
        KeyValue::new("stepfleet.run", run.to_string()),
        KeyValue::new("stepfleet.workflow", ended.workflow.to_string()),
        KeyValue::new("stepfleet.outcome", ended.state.as_str()),
    ];
    let builder = SpanBuilder::from_name(format!("run {}", ended.workflow))
        .with_kind(SpanKind::Internal)
        .with_attributes(attributes);
    let begin = |builder: SpanBuilder| match ended.since_ms {
        Some(ms) => {
            let builder = builder.with_start_time(at(ms.min(ended.at_ms)));
            ids::as_if(span_of_run(&run), || tracer.build_with_context(builder, &remote(of)))
        }
        // The span of the run is told already, and cannot be told anew: this end is a span below it.
        None => {
            let builder = builder.with_start_time(at(ended.at_ms));
            let mut span = tracer.build_with_context(builder, &remote(&of.at(span_of_run(&run))));
            span.set_attribute(KeyValue::new("stepfleet.run.reopened", true));
            span
        }
    };
    let mut span = begin(builder);
    if ended.failed {
        span.set_status(Status::error(format!("the run ended as {}", ended.state.as_str())));
    }
    span.end_with_timestamp(at(ended.at_ms));
}
