//! What a handler returns when its attempt failed.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use stepfleet_protocol::{
    failure::{Category, Failure as Wire, cut},
    limits::{ERROR_TEXT_BYTES_MAX, PAYLOAD_BYTES_MAX, RETRY_AFTER_MS_MAX},
    value::Payload,
};

use crate::value;

/// Causes that are kept of one error.
const CAUSES_MAX: usize = 16;

/// A failed attempt: a category that picks the retry policy, a message for people, and what else is worth keeping.
///
/// Every `std::error::Error` becomes one by `?`: `transient`, with its chain of causes. For that reason it is no
/// `std::error::Error` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(Box<Wire>);

impl Failure {
    /// A failure of any category.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        Self(Box::new(Wire::new(category, message)))
    }

    /// Network, temporary unavailability: retried soon.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Category::Transient, message)
    }

    /// A refusal that no retry changes: the step fails.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(Category::Permanent, message)
    }

    /// Invalid or missing input: held for a person.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Category::Data, message)
    }

    /// Out of memory, database lost, disk full: retried, and counted double by breakers.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(Category::System, message)
    }

    /// The other side asked to wait: retried after `wait`, at most 24 hours.
    pub fn rate_limited(wait: Duration) -> Self {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(RETRY_AFTER_MS_MAX);
        Self::new(Category::RateLimited, format!("rate limited for {}ms", wait.as_millis())).retry_after_ms(ms)
    }

    /// A stable word for this failure, such as `card_declined`. At most 128 bytes are kept.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(cut(code.into(), 128));
        self
    }

    /// The sentence for people, instead of the one it has.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.0.message = cut(message.into(), ERROR_TEXT_BYTES_MAX);
        self
    }

    /// The wait that the other side asked for, whatever the category.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        self.retry_after_ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(RETRY_AFTER_MS_MAX))
    }

    /// Whether another try makes sense, instead of what the category says. The budget of attempts holds all the same.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = Some(retryable);
        self
    }

    /// Anything more that is worth keeping: a body, the last lines of output. A value that cannot be written, or is
    /// larger than 1 MiB, is replaced by the reason.
    #[must_use]
    pub fn detail(mut self, detail: impl Serialize) -> Self {
        let bytes = match value::write(&detail) {
            Ok(bytes) if bytes.len() <= PAYLOAD_BYTES_MAX => bytes,
            Ok(bytes) => reason(&format!("a detail of {} bytes was left out", bytes.len())),
            Err(error) => reason(&format!("the detail could not be written: {error}")),
        };
        self.0.detail = Some(Payload::Inline(bytes));
        self
    }

    /// The category.
    pub fn category(&self) -> Category {
        self.0.category
    }

    /// As it crosses Redis.
    pub(crate) fn into_wire(self) -> Wire {
        *self.0
    }

    /// As it crosses Redis.
    pub fn wire(&self) -> &Wire {
        &self.0
    }

    fn retry_after_ms(mut self, ms: u64) -> Self {
        self.0.retry_after_ms = Some(ms);
        self
    }
}

fn reason(text: &str) -> Bytes {
    value::write(&text).expect("a text can be written")
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source.filter(|_| causes.len() < CAUSES_MAX) {
            causes.push(cut(cause.to_string(), ERROR_TEXT_BYTES_MAX));
            source = cause.source();
        }
        let mut failure = Self::new(category_of(&error), error.to_string());
        failure.0.causes = causes;
        failure
    }
}

/// The category of an error by its type alone.
fn category_of(error: &(dyn Error + 'static)) -> Category {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory) => Category::System,
        _ => Category::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    fn fails() -> Result<(), Failure> {
        Err(Outer(io::Error::other("inner")))?;
        Ok(())
    }

    #[test]
    fn any_error_becomes_transient_with_its_causes() {
        let wire = fails().expect_err("it fails").into_wire();
        assert_eq!((wire.category, wire.message.as_str()), (Category::Transient, "outer"));
        assert_eq!(wire.causes, ["inner"]);
    }

    #[test]
    fn a_full_disk_is_a_fault_of_the_system() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(failure.category(), Category::System);
    }

    #[test]
    fn a_wait_is_bounded_by_a_day() {
        let wire = Failure::rate_limited(Duration::from_secs(1_000_000)).code("slow").into_wire();
        assert_eq!((wire.retry_after_ms, wire.code.as_deref()), (Some(RETRY_AFTER_MS_MAX), Some("slow")));
    }

    #[test]
    fn a_handler_may_have_the_last_word_about_another_try() {
        let verdict = |failure: Failure| failure.into_wire().retryable;
        assert_eq!(verdict(Failure::permanent("no")), None, "else the category decides");
        assert_eq!(verdict(Failure::permanent("not yet").retryable(true)), Some(true));
        assert_eq!(verdict(Failure::transient("never").retryable(false)), Some(false));
    }

    #[test]
    fn a_detail_that_is_too_large_is_replaced_by_the_reason() {
        let wire = Failure::permanent("no").detail("x".repeat(PAYLOAD_BYTES_MAX + 1)).into_wire();
        assert!(wire.detail.expect("a reason").len() < 100);
    }
}
