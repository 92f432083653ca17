//! The classifier: what kind of trouble a failed attempt had, where its handler did not say.
//!
//! It judges by type, status, exit code and explicit code, never by substrings of text for people. A category that the
//! handler set always wins, whatever the classifier says.

pub(crate) mod tables;

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use stepfleet_protocol::{
    failure::Category,
    id::{JobId, RunId},
};

/// How a program ended that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What is known of a failure. What is not known is none.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Evidence<'a> {
    /// The category that the handler set: it stands. Then the verdict may add a code and a wait only.
    pub category: Option<Category>,
    /// The code that the handler set: it stands.
    pub code: Option<&'a str>,
    /// The status of an HTTP answer.
    pub status: Option<u16>,
    /// How a program ended.
    pub exit: Option<Exit>,
    /// The error; its causes are behind [`Error::source`].
    pub error: Option<&'a (dyn Error + 'static)>,
}

/// Which attempt it was that failed.
#[derive(Debug, Clone, Copy)]
pub struct ErrorContext<'a> {
    /// The run.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: &'a str,
    /// The step's name.
    pub step: &'a str,
    /// The handler that failed.
    pub handler: &'a str,
    /// The job.
    pub job: JobId,
    /// Which try, from 1.
    pub attempt: u32,
    /// How many tries there will be in all.
    pub max_attempts: u32,
    /// How long the attempt ran.
    pub duration: Duration,
}

impl ErrorContext<'_> {
    /// Whether the step's budget of tries ends with this one.
    pub fn is_final_attempt(&self) -> bool {
        self.attempt >= self.max_attempts
    }
}

/// What the classifier makes of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The category, unless the handler set one.
    pub category: Category,
    /// A stable word for the failure, unless the handler set one. At most 128 bytes are kept.
    pub code: Option<String>,
    /// The wait before another try, unless the handler set one. At most 24 hours.
    pub retry_after: Option<Duration>,
}

impl From<Category> for Verdict {
    fn from(category: Category) -> Self {
        Self { category, code: None, retry_after: None }
    }
}

/// Judges failed attempts. One worker has one, set with [`crate::Builder::classifier`]; [`StandardClassifier`] unless set.
///
/// It is asked for every failure that a handler returns, and must be quick. One that panics is not heard: then the standard
/// one judges.
///
/// ```
/// use stepfleet_worker::{Category, Classifier, ErrorContext, Evidence, StandardClassifier, Verdict};
///
/// /// At this provider a 409 means that an earlier request is still at work.
/// struct Ours;
/// impl Classifier for Ours {
///     fn classify(&self, evidence: &Evidence<'_>, context: &ErrorContext<'_>) -> Verdict {
///         match evidence.status {
///             Some(409) => Category::Transient.into(),
///             _ => StandardClassifier.classify(evidence, context),
///         }
///     }
/// }
/// ```
pub trait Classifier: Send + Sync + 'static {
    /// What kind of trouble this is.
    fn classify(&self, evidence: &Evidence<'_>, context: &ErrorContext<'_>) -> Verdict;
}

/// The classifier of a worker that sets none: fixed tables. Of what is known the first of these that its tables know
/// decides: category, code, status, exit, the error and its causes from the outside in. Else it is `transient`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StandardClassifier;

impl Classifier for StandardClassifier {
    fn classify(&self, evidence: &Evidence<'_>, _: &ErrorContext<'_>) -> Verdict {
        standard(evidence)
    }
}

/// The verdict of [`StandardClassifier`], which does not depend on the attempt.
pub(crate) fn standard(evidence: &Evidence<'_>) -> Verdict {
    if let Some(category) = evidence.category {
        return category.into();
    }
    if let Some(category) = evidence.code.and_then(tables::of_code) {
        return category.into();
    }
    if let Some(status) = evidence.status {
        let retry_after = (status == 429).then_some(tables::RATE_LIMIT_WAIT);
        return Verdict { retry_after, ..tables::of_status(status).into() };
    }
    if let Some(exit) = evidence.exit {
        return tables::of_exit(exit).into();
    }
    evidence.error.and_then(tables::of_error).unwrap_or(Category::Transient).into()
}

/// Asks a classifier that may panic.
pub(crate) fn ask(classifier: &dyn Classifier, evidence: &Evidence<'_>, context: &ErrorContext<'_>) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| classifier.classify(evidence, context))).unwrap_or_else(|_| {
        tracing::error!(job = %context.job, "the classifier panicked; the standard one judges");
        standard(evidence)
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_the_handler_said_goes_before_what_was_seen() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let mut evidence = Evidence { error: Some(&error), ..Evidence::default() };
        let mut check = |change: fn(&mut Evidence<'_>), category| {
            change(&mut evidence);
            assert_eq!(standard(&evidence).category, category, "{evidence:?}");
        };
        check(|_| {}, Category::System);
        check(|e| e.exit = Some(Exit::Code(65)), Category::Data);
        check(|e| e.status = Some(404), Category::Permanent);
        check(|e| e.code = Some("a_word_of_its_own"), Category::Permanent);
        check(|e| e.code = Some("ETIMEDOUT"), Category::Timeout);
        check(|e| e.category = Some(Category::RateLimited), Category::RateLimited);
        assert_eq!(standard(&Evidence::default()), Category::Transient.into());
    }
}
