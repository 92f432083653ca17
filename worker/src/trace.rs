//! Spans of attempts, by the semantic conventions of messaging: one of kind consumer for each handler that runs.
//!
//! They go to the global tracer provider of OpenTelemetry; while none is set they are nothing, and cost little. The span is
//! current while the handler runs: spans that the handler begins with OpenTelemetry are below it, and with
//! `tracing-opentelemetry` so are those of `tracing`.

use opentelemetry::{
    Context, KeyValue,
    global::{self, BoxedTracer},
    trace::{Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use serde_json::Value as Json;
use std::sync::LazyLock;
use stepfleet_protocol::{failure::cut, message::Outcome, span::messaging, trace::TraceContext, value::Payload};

use crate::{attempt::Attempt, kit::Kit, value};

/// What stands for a value that is not shown.
const REDACTED: &str = "***";

/// How the span of an attempt belongs to the one in which its job was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parentage {
    /// It is below it: a run is one trace.
    #[default]
    Parent,
    /// It begins a trace of its own and links to it: long runs stay small traces.
    Link,
}

/// What spans of attempts say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// How they belong to the run.
    pub parentage: Parentage,
    /// Bytes of inputs and outputs that they show as JSON, each; 0 shows none, which is the default.
    pub values: usize,
    /// Members of objects whose names contain one of these words, in whatever case, are shown as `***`.
    pub redact: Vec<String>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { parentage: Parentage::Parent, values: 0, redact: Self::redacted() }
    }
}

impl Tracing {
    /// Words that are redacted unless others are given.
    pub fn redacted() -> Vec<String> {
        ["password", "passwd", "secret", "token", "authorization", "api_key", "apikey", "credential", "cookie"]
            .map(str::to_owned)
            .to_vec()
    }

    /// A value as it may be shown.
    fn shown(&self, bytes: &[u8]) -> String {
        match value::read::<Json>(bytes) {
            Ok(mut json) => {
                self.hide(&mut json);
                cut(json.to_string(), self.values)
            }
            Err(_) => format!("{} bytes", bytes.len()),
        }
    }

    fn hide(&self, json: &mut Json) {
        match json {
            Json::Object(members) => members.iter_mut().for_each(|(name, member)| {
                let name = name.to_lowercase();
                if self.redact.iter().any(|word| name.contains(&word.to_lowercase())) {
                    *member = REDACTED.into();
                } else {
                    self.hide(member);
                }
            }),
            Json::Array(items) => items.iter_mut().for_each(|item| self.hide(item)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
}

/// The tracer of the provider that was global when the first job ran.
static TRACER: LazyLock<BoxedTracer> = LazyLock::new(|| global::tracer("stepfleet-worker"));

/// The span of an attempt.
pub(crate) struct Traced {
    context: Context,
    /// Its place in the log.
    log: tracing::Span,
}

impl Traced {
    /// Begins it.
    pub(crate) fn begin(kit: &Kit, attempt: &Attempt) -> Self {
        let job = attempt.message();
        let sent: Option<TraceContext> = job.traceparent.as_deref().and_then(|text| text.parse().ok());
        let parent: Option<SpanContext> = sent.as_ref().map(Into::into);
        let queue = &attempt.of().queue;
        let mut builder = SpanBuilder::from_name(format!("process {queue}")).with_kind(SpanKind::Consumer);
        let mut above = Context::new();
        match (parent, kit.tracing.parentage) {
            // Of a run that is not recorded nothing is: a trace of its own would be.
            (Some(parent), Parentage::Link) if parent.is_sampled() => {
                builder = builder.with_links(vec![Link::with_context(parent)]);
            }
            (Some(parent), _) => above = above.with_remote_span_context(parent),
            (None, _) => {}
        }
        let span = TRACER.build_with_context(builder, &above);
        let context = above.with_span(span);
        let span = context.span();
        if span.is_recording() {
            span.set_attributes(messaging("process", queue.to_string()));
            span.set_attributes([
                KeyValue::new("messaging.consumer.group.name", stepfleet_protocol::keys::GROUP),
                KeyValue::new("messaging.client.id", kit.worker.to_string()),
                KeyValue::new("messaging.message.id", job.id.to_string()),
                KeyValue::new("messaging.message.conversation_id", job.run.to_string()),
                KeyValue::new("stepfleet.workflow", job.workflow.to_string()),
                KeyValue::new("stepfleet.step", job.step.to_string()),
                KeyValue::new("stepfleet.handler", job.handler.to_string()),
                KeyValue::new("stepfleet.attempt", i64::from(job.attempt)),
                KeyValue::new("stepfleet.max_attempts", i64::from(job.max_attempts)),
            ]);
        }
        let own = TraceContext::of(span.span_context()).filter(|own| Some(own.span) != sent.map(|sent| sent.span));
        if let Some(own) = own {
            attempt.traced(own.to_string());
        }
        let log = tracing::info_span!(
            "attempt", run = %job.run, step = job.step.as_str(), attempt = job.attempt, job = %job.id,
            trace = tracing::field::Empty
        );
        if let Some(here) = own.or(sent) {
            log.record("trace", here.trace_id());
        }
        Self { context, log }
    }

    /// What is current while the handler runs.
    pub(crate) fn context(&self) -> Context {
        self.context.clone()
    }

    /// What every line of the log says while the handler runs.
    pub(crate) fn log(&self) -> &tracing::Span {
        &self.log
    }

    /// The handler's input is known.
    pub(crate) fn takes(&self, tracing: &Tracing, input: &[u8]) {
        let span = self.context.span();
        if tracing.values > 0 && span.is_recording() && !value::is_null(input) {
            span.set_attribute(KeyValue::new("stepfleet.input", tracing.shown(input)));
        }
    }

    /// Ends it with what became of the attempt.
    pub(crate) fn end(self, tracing: &Tracing, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(failure) => {
                let (category, code) = (failure.category.as_str(), failure.code.as_deref());
                tracing::info!(parent: &self.log, category, code, error = failure.message, "the attempt failed");
            }
            Outcome::Completed(_) => tracing::debug!(parent: &self.log, "the attempt is done"),
            Outcome::Cancelled => tracing::debug!(parent: &self.log, "the attempt was cancelled"),
            Outcome::Returned(why) => tracing::debug!(parent: &self.log, ?why, "the job is handed back"),
        }
        let span = self.context.span();
        if span.is_recording() {
            match outcome {
                Outcome::Completed(output) => {
                    if let (1.., Some(Payload::Inline(bytes))) = (tracing.values, output) {
                        span.set_attribute(KeyValue::new("stepfleet.output", tracing.shown(bytes)));
                    }
                }
                Outcome::Failed(failure) => {
                    span.set_attribute(KeyValue::new("error.type", failure.category.as_str()));
                    let code = failure.code.clone().map(|code| KeyValue::new("stepfleet.error.code", code));
                    span.set_attributes(code);
                    span.set_status(Status::error(failure.message.clone()));
                }
                Outcome::Cancelled => span.set_status(Status::error("cancelled")),
                Outcome::Returned(_) => span.set_status(Status::error("handed back")),
            }
        }
        span.end();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_shown_without_what_is_secret_and_cut() {
        let shown = |tracing: &Tracing, json: &Json| tracing.shown(&value::write(json).expect("JSON can be written"));
        let tracing = Tracing { values: 1_000, ..Tracing::default() };
        let json = json!({"user": "eve", "Password": "p", "list": [{"api_key_id": 7, "n": 1}], "tokens": {"a": 1}});
        let hidden =
            json!({"user": "eve", "Password": "***", "list": [{"api_key_id": "***", "n": 1}], "tokens": "***"});
        assert_eq!(shown(&tracing, &json), hidden.to_string());
        let cut_off = Tracing { values: 9, ..Tracing::default() };
        assert_eq!(shown(&cut_off, &json!({"a": "äöü"})), "{\"a\":\"ä", "at a character's border");
        assert_eq!(tracing.shown(&[0xc1]), "1 bytes");
    }
}
