//! `fail`: fails, to try out retries and dead letters.

use serde::Deserialize;
use stepfleet_protocol::failure::Category;

use crate::{attempt::Attempt, failure::Failure};

/// Input of `fail`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fail {
    /// The category; `transient` unless set.
    category: Option<Category>,
    /// The code.
    code: Option<String>,
    /// The message.
    message: Option<String>,
    /// How many attempts fail before one succeeds; all of them unless set.
    times: Option<u32>,
}

/// Fails the first `times` attempts; the output of a later one is `null`.
pub(super) async fn fail(attempt: Attempt, input: Option<Fail>) -> Result<(), Failure> {
    let input = input.unwrap_or_default();
    if input.times.is_some_and(|times| attempt.attempt() > times) {
        return Ok(());
    }
    let message = input.message.unwrap_or_else(|| format!("attempt {} fails as asked", attempt.attempt()));
    let failure = Failure::new(input.category.unwrap_or(Category::Transient), message);
    Err(match input.code {
        Some(code) => failure.code(code),
        None => failure,
    })
}
