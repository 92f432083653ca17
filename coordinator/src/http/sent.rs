//! Spans of submits: a `send` for one run; a `create` for each run of a bulk submit, and a `send` for them together.
//!
//! The span of a run's submit is its creation context: it goes with the run, and all its other spans are below it. Where spans
//! go nowhere, what the submitter sent goes with the run as it is.

use opentelemetry::{
    KeyValue,
    global::BoxedSpan,
    trace::{Link, Span, SpanBuilder, SpanKind, Status},
};
use stepfleet_protocol::{span::messaging, trace::TraceContext};

use super::{error::ApiResult, view::Submitted};
use crate::shell::spans::Spans;

/// Where submits go, as others see it.
const DESTINATION: &str = "runs";

fn builder(name: &'static str, kind: SpanKind) -> SpanBuilder {
    let attributes = messaging(name, DESTINATION.to_owned());
    SpanBuilder::from_name(format!("{name} {DESTINATION}")).with_kind(kind).with_attributes(attributes)
}

/// The context that goes with a run: that of its own span, else the one that its submitter gave.
fn context(own: Option<&BoxedSpan>, given: Option<&String>) -> Option<String> {
    let own = own.and_then(|span| TraceContext::of(span.span_context()));
    own.map(|own| own.to_string()).or_else(|| given.cloned())
}

/// The submit of one run.
pub(super) struct Sent {
    span: Option<BoxedSpan>,
    given: Option<String>,
}

impl Sent {
    /// Begins, below the span of the submitter if it `given` one.
    pub(super) fn one(spans: &Spans, given: Option<String>) -> Self {
        let span = spans.begin(given.as_deref(), || builder("send", SpanKind::Producer));
        Self { span, given }
    }

    /// The context that goes with the run.
    pub(super) fn traceparent(&self) -> Option<String> {
        context(self.span.as_ref(), self.given.as_ref())
    }

    /// Ends with what came of it.
    pub(super) fn until(self, submitted: ApiResult<Submitted>) -> ApiResult<Submitted> {
        if let Some(mut span) = self.span {
            match &submitted {
                Ok(run) => {
                    span.set_attribute(KeyValue::new("messaging.message.conversation_id", run.id.to_string()));
                    span.set_attribute(KeyValue::new("stepfleet.run.known", run.known));
                }
                Err(error) => {
                    span.set_attribute(KeyValue::new("error.type", error.problem.code.clone()));
                    span.set_status(Status::error(error.problem.detail.clone()));
                }
            }
        }
        submitted
    }
}

/// A group of a bulk submit.
pub(super) struct Batch {
    spans: Spans,
    given: Option<String>,
    send: Option<BoxedSpan>,
}

impl Batch {
    /// Begins a group of so many runs.
    pub(super) fn new(spans: &Spans, given: Option<String>, count: usize) -> Self {
        let mut send = spans.begin(given.as_deref(), || builder("send", SpanKind::Client));
        if let Some(span) = &mut send {
            span.set_attribute(KeyValue::new("messaging.batch.message_count", count as i64));
        }
        Self { spans: spans.clone(), given, send }
    }

    /// The context of one of them: in the submitter's trace if there is one, else in a trace of its own.
    pub(super) fn create(&self) -> Option<String> {
        let link = |send: &BoxedSpan| Link::new(send.span_context().clone(), Vec::new(), 0);
        let links = || self.send.iter().map(link).collect();
        let span =
            self.spans.begin(self.given.as_deref(), || builder("create", SpanKind::Producer).with_links(links()));
        context(span.as_ref(), self.given.as_ref())
    }

    /// Ends, with so many that were refused.
    pub(super) fn done(self, refused: usize) {
        if let (Some(mut span), 1..) = (self.send, refused) {
            span.set_attribute(KeyValue::new("error.type", "refused"));
            span.set_status(Status::error(format!("{refused} were refused")));
        }
    }
}
