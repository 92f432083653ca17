//! Ids of spans: random, but for those that are known before their spans are told.

use std::cell::Cell;

use opentelemetry::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

thread_local! {
    /// The id of the next span that this thread begins.
    static NEXT: Cell<Option<SpanId>> = const { Cell::new(None) };
}

/// Makes ids: for a provider whose spans include those of a coordinator.
#[derive(Debug, Clone, Default)]
pub struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

/// Begins one span with this id.
pub(super) fn as_if<T>(span: [u8; 8], begin: impl FnOnce() -> T) -> T {
    NEXT.set(Some(SpanId::from_bytes(span)));
    let begun = begin();
    // One that no provider made took no id.
    NEXT.set(None);
    begun
}
