//! Two-phase external calls: the intent is recorded before a call, the outcome after it, so that an attempt that follows a
//! crash knows what is to be known.
//!
//! * A call that completed is not made again: its recorded result is given.
//! * A call that was begun, and whose outcome nobody recorded, is settled: by asking, where the handler can, else by making
//!   it again with the same idempotency key.
//! * What cannot be settled stays on record as unknown, and the attempt fails with the code `call_unknown`.
//!
//! A call is found again by its step, generation and number, never by where it goes.

mod drive;
mod ledger;

use std::future::Future;

use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::{
    failure::{Category, cut},
    limits::CALL_NOTE_BYTES_MAX,
};

pub(crate) use self::ledger::Ledger;
use crate::{attempt::Attempt, failure::Failure};

/// An external call of a handler, made by [`Attempt::call`].
///
/// ```
/// use stepfleet_worker::{Attempt, Failure};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Receipt { id: String }
/// # struct Provider;
/// # impl Provider {
/// #     async fn charge(&self, key: &str, cents: u32) -> Result<Receipt, Failure> { Ok(Receipt { id: key.into() }) }
/// #     async fn find(&self, key: &str) -> Result<Option<Receipt>, Failure> { Ok(None) }
/// # }
///
/// async fn pay(attempt: Attempt, provider: &Provider, cents: u32) -> Result<Receipt, Failure> {
///     attempt
///         .call("charge")
///         .endpoint("https://pay.example/charges")
///         .method("POST")
///         .settle_or_run(
///             // After a crash: was it done? `None`: it never arrived.
///             |key| async move { provider.find(&key).await },
///             |key| async move { provider.charge(&key, cents).await },
///         )
///         .await
/// }
/// ```
#[derive(Debug)]
#[must_use]
pub struct ExternalCall {
    attempt: Attempt,
    n: u32,
    kind: String,
    endpoint: String,
    method: String,
    key: String,
}

/// What came of sending.
pub(crate) enum Sent<T> {
    /// It took effect.
    Done { value: T, status: Option<u16> },
    /// It had no effect.
    Refused { failure: Failure, status: Option<u16> },
    /// Nobody knows.
    Unknown { failure: Failure, status: Option<u16> },
}

/// What came of asking about a call that was begun earlier.
pub(crate) enum Settled<T> {
    /// It took effect.
    Done { value: T, status: Option<u16> },
    /// It never arrived.
    Absent,
    /// Still nobody knows.
    Unknown(Failure),
}

impl ExternalCall {
    /// The next call of an attempt.
    pub(crate) fn new(attempt: Attempt, kind: &str) -> Self {
        let n = attempt.next_call();
        let key = attempt.idempotency_key();
        let key = if n == 1 { key } else { format!("{key}/{n}") };
        Self { attempt, n, kind: kept(kind), endpoint: String::new(), method: String::new(), key }
    }

    /// Where the call goes, for the record. At most 1 KiB is kept. It should hold no secrets.
    pub fn endpoint(mut self, endpoint: &str) -> Self {
        self.endpoint = kept(endpoint);
        self
    }

    /// How the call is made, for the record: `POST`. At most 1 KiB is kept.
    pub fn method(mut self, method: &str) -> Self {
        self.method = kept(method);
        self
    }

    /// The key that goes with it, the same for every attempt: that of the step for its first call, with `/n` behind it for
    /// the n-th.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Makes the call, or gives the result that an earlier attempt recorded. A call whose outcome is unknown is made again
    /// with the same key, so the other side must know calls by their keys.
    ///
    /// A failure of category `permanent`, `data` or `rate_limited` says that the call had no effect; any other one leaves its
    /// outcome unknown, and gets the code `call_unknown`. A result above 8 KiB is not kept: an attempt that would need it
    /// fails with the code `call_result_not_kept`. Return a reference to what is large.
    ///
    /// # Errors
    /// That of `send`; `call_mismatch` if an earlier attempt made another call in this place; `too_many_calls` beyond 1,000
    /// recorded calls of a step.
    pub async fn run<T, F, Fut>(self, send: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce(String) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let nobody = None::<fn() -> std::future::Ready<Settled<T>>>;
        let key = self.key.clone();
        self.drive(nobody, async move || sent(send(key).await)).await
    }

    /// As [`ExternalCall::run`]. A call whose outcome is unknown is asked about first: `ask` gives the result if the call
    /// took effect, and none if it never arrived; then it is made, with the same key. An error of `ask` leaves the outcome
    /// unknown: the attempt fails with the category `transient` and the code `call_unknown`.
    ///
    /// # Errors
    /// As [`ExternalCall::run`].
    pub async fn settle_or_run<T, A, Asked, F, Fut>(self, ask: A, send: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        A: FnOnce(String) -> Asked,
        Asked: Future<Output = Result<Option<T>, Failure>>,
        F: FnOnce(String) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let (asked_key, key) = (self.key.clone(), self.key.clone());
        let ask = move || {
            let asked = ask(asked_key);
            async move {
                match asked.await {
                    Ok(Some(value)) => Settled::Done { value, status: None },
                    Ok(None) => Settled::Absent,
                    Err(failure) => Settled::Unknown(failure),
                }
            }
        };
        self.drive(Some(ask), async move || sent(send(key).await)).await
    }
}

/// A failure that names a refusal says that there was no effect.
fn sent<T>(result: Result<T, Failure>) -> Sent<T> {
    match result {
        Ok(value) => Sent::Done { value, status: None },
        Err(failure) => match failure.category() {
            Category::Permanent | Category::Data | Category::RateLimited => Sent::Refused { failure, status: None },
            Category::Transient | Category::Timeout | Category::System | Category::WorkerLost => {
                Sent::Unknown { failure, status: None }
            }
        },
    }
}

fn kept(text: &str) -> String {
    cut(text.to_owned(), CALL_NOTE_BYTES_MAX)
}
