//! What a handler returns when its attempt failed.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use stepfleet_protocol::{
    failure::{Category, Failure as Wire, cut},
    limits::{ERROR_TEXT_BYTES_MAX, PAYLOAD_BYTES_MAX, RETRY_AFTER_MS_MAX},
    value::Payload,
};

use crate::{
    classify::{self, Classifier, ErrorContext, Evidence, Exit},
    value,
};

/// Causes that are kept of one error.
const CAUSES_MAX: usize = 16;
/// Bytes that are kept of a code.
const CODE_BYTES_MAX: usize = 128;
/// Code of a failure that leaves the outcome of an external call unknown.
pub(crate) const CALL_UNKNOWN: &str = "call_unknown";

/// A failed attempt: a category that picks the retry policy, a message for people, and what else is worth keeping.
///
/// Every `std::error::Error` becomes one by `?`, with its chain of causes; the worker's [`Classifier`] then finds the category
/// by the error's type. For that reason it is no `std::error::Error` itself. A category that is named here always stands.
#[derive(Debug, Clone)]
pub struct Failure(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    wire: Wire,
    /// What the category is found by; none where it was named.
    seen: Option<Seen>,
}

/// What was seen of a failure whose category nobody named.
#[derive(Debug, Clone)]
enum Seen {
    Error(Arc<dyn Error + Send + Sync>),
    Status(u16),
    Exit(Exit),
}

impl Failure {
    /// A failure of any category.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { wire: Wire::new(category, message), seen: None }))
    }

    /// An HTTP answer that was not the one wished for; the classifier finds the category by its status.
    pub fn of_status(status: u16, message: impl Into<String>) -> Self {
        Self::seen(Seen::Status(status), message)
    }

    /// A program that did not succeed; the classifier finds the category by how it ended.
    pub fn of_exit(exit: Exit, message: impl Into<String>) -> Self {
        Self::seen(Seen::Exit(exit), message)
    }

    /// With the standard category, until the worker's classifier has judged.
    fn seen(seen: Seen, message: impl Into<String>) -> Self {
        let category = classify::standard(&seen.evidence()).category;
        Self(Box::new(Inner { wire: Wire::new(category, message), seen: Some(seen) }))
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
        Self::new(Category::RateLimited, format!("rate limited for {}ms", wait.as_millis())).retry_after(wait)
    }

    /// A stable word for this failure, such as `card_declined`. At most 128 bytes are kept.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.0.wire.code = Some(cut(code.into(), CODE_BYTES_MAX));
        self
    }

    /// The sentence for people, instead of the one it has.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.0.wire.message = cut(message.into(), ERROR_TEXT_BYTES_MAX);
        self
    }

    /// The wait that the other side asked for, whatever the category.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.wire.retry_after_ms = Some(wait_ms(wait));
        self
    }

    /// Whether another try makes sense, instead of what the category says. The budget of attempts holds all the same.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.wire.retryable = Some(retryable);
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
        self.0.wire.detail = Some(Payload::Inline(bytes));
        self
    }

    /// The category.
    pub fn category(&self) -> Category {
        self.0.wire.category
    }

    /// As it crosses Redis.
    pub(crate) fn into_wire(self) -> Wire {
        self.0.wire
    }

    /// As it crosses Redis.
    pub fn wire(&self) -> &Wire {
        &self.0.wire
    }

    /// With what the classifier makes of it, where the handler did not say.
    pub(crate) fn judged(mut self, classifier: &dyn Classifier, context: &ErrorContext<'_>) -> Self {
        let Inner { wire, seen } = &mut *self.0;
        let mut evidence = seen.as_ref().map(Seen::evidence).unwrap_or_default();
        evidence.category = seen.is_none().then_some(wire.category);
        evidence.code = wire.code.as_deref();
        let verdict = classify::ask(classifier, &evidence, context);
        if seen.is_some() {
            wire.category = verdict.category;
        }
        wire.code = wire.code.take().or_else(|| verdict.code.map(|code| cut(code, CODE_BYTES_MAX)));
        wire.retry_after_ms = wire.retry_after_ms.or_else(|| verdict.retry_after.map(wait_ms));
        self
    }

    /// As the failure of a call whose outcome nobody knows: under one code, whatever its own was.
    pub(crate) fn unknown_call(mut self, call: &str) -> Self {
        let wire = &mut self.0.wire;
        if let Some(code) = wire.code.replace(CALL_UNKNOWN.to_owned()) {
            wire.causes.insert(0, code);
        }
        let message = format!("the outcome of the call `{call}` is unknown: {}", wire.message);
        wire.message = cut(message, ERROR_TEXT_BYTES_MAX);
        self
    }
}

impl Seen {
    fn evidence(&self) -> Evidence<'_> {
        let mut evidence = Evidence::default();
        match self {
            Self::Error(error) => evidence.error = Some(&**error),
            Self::Status(status) => evidence.status = Some(*status),
            Self::Exit(exit) => evidence.exit = Some(*exit),
        }
        evidence
    }
}

/// Two failures are the same if they cross Redis as the same.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.0.wire == other.0.wire
    }
}

impl Eq for Failure {}

fn wait_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(RETRY_AFTER_MS_MAX)
}

fn reason(text: &str) -> Bytes {
    value::write(&text).expect("a text can be written")
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source.filter(|_| causes.len() < CAUSES_MAX) {
            causes.push(cut(cause.to_string(), ERROR_TEXT_BYTES_MAX));
            source = cause.source();
        }
        let message = error.to_string();
        let mut failure = Self::seen(Seen::Error(Arc::new(error)), message);
        failure.0.wire.causes = causes;
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    fn fails() -> Result<(), Failure> {
        Err(Outer(std::io::Error::other("inner")))?;
        Ok(())
    }

    #[test]
    fn any_error_becomes_transient_with_its_causes() {
        let wire = fails().expect_err("it fails").into_wire();
        assert_eq!((wire.category, wire.message.as_str()), (Category::Transient, "outer"));
        assert_eq!(wire.causes, ["inner"]);
    }

    fn judge(failure: Failure, classifier: &dyn Classifier) -> Wire {
        let run = stepfleet_protocol::id::RunId::new(stepfleet_protocol::id::PartitionId(0), 1, 1);
        let context = ErrorContext {
            run,
            workflow: "flow",
            step: "step",
            handler: "handler",
            job: stepfleet_protocol::id::JobId::default(),
            attempt: 3,
            max_attempts: 3,
            duration: Duration::ZERO,
        };
        assert!(context.is_final_attempt());
        failure.judged(classifier, &context).into_wire()
    }

    /// Says the same of everything.
    struct Always;
    impl Classifier for Always {
        fn classify(&self, _: &Evidence<'_>, _: &ErrorContext<'_>) -> classify::Verdict {
            let retry_after = Some(Duration::from_secs(2));
            classify::Verdict { category: Category::Data, code: Some("always".into()), retry_after }
        }
    }

    struct Panics;
    impl Classifier for Panics {
        fn classify(&self, _: &Evidence<'_>, _: &ErrorContext<'_>) -> classify::Verdict {
            panic!("no verdict")
        }
    }

    #[test]
    fn the_classifier_judges_what_the_handler_left_open_and_nothing_else() {
        let full = || Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(judge(full(), &classify::StandardClassifier).category, Category::System);
        assert_eq!(judge(full(), &Panics).category, Category::System, "one that panics is not heard");
        let open = judge(full(), &Always);
        assert_eq!(
            (open.category, open.code.as_deref(), open.retry_after_ms),
            (Category::Data, Some("always"), Some(2_000))
        );
        let named = judge(Failure::permanent("no").code("own").retry_after(Duration::from_secs(9)), &Always);
        assert_eq!(
            (named.category, named.code.as_deref(), named.retry_after_ms),
            (Category::Permanent, Some("own"), Some(9_000))
        );
        let limited = judge(Failure::of_status(429, "slow down"), &classify::StandardClassifier);
        assert_eq!((limited.category, limited.retry_after_ms), (Category::RateLimited, Some(30_000)));
        let killed = judge(Failure::of_exit(Exit::Signal(9), "killed"), &classify::StandardClassifier);
        assert_eq!(killed.category, Category::System);
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
