//! What spans of coordinators and workers share: contexts as OpenTelemetry has them, and the attributes of the semantic
//! conventions of messaging (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).

use opentelemetry::{
    KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceState},
};

use crate::trace::TraceContext;

/// The value of `messaging.system`.
const SYSTEM: &str = "stepfleet";

impl From<&TraceContext> for SpanContext {
    fn from(of: &TraceContext) -> Self {
        let (trace, span) = (TraceId::from_bytes(of.trace), SpanId::from_bytes(of.span));
        Self::new(trace, span, TraceFlags::new(of.flags), true, TraceState::default())
    }
}

impl TraceContext {
    /// Of a span that was begun; none of one that no provider made.
    pub fn of(span: &SpanContext) -> Option<Self> {
        let flags = span.trace_flags().to_u8();
        let context = Self { trace: span.trace_id().to_bytes(), span: span.span_id().to_bytes(), flags };
        span.is_valid().then_some(context)
    }
}

/// What every span says. The type of an operation, such as `send`, is its name here.
pub fn messaging(operation: &'static str, destination: String) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", SYSTEM),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", destination),
    ]
}
