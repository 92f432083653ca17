//! Two-phase external calls: the intent is recorded before a call, the outcome after it, so that an attempt that follows a
//! crash knows what is to be known.
//!
//! * A call that completed is not made again: its recorded result is given.
//! * A call that was begun, and whose outcome nobody recorded, is settled: by asking, where the handler can, else by making
//!   it again with the same idempotency key.
//! * What cannot be settled stays on record as unknown, and the attempt fails with the code `call_unknown`.
//!
//! A call is found again by its step, generation and number, never by where it goes.

mod ledger;

use std::future::Future;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::{
    call::{CallId, CallRecord, CallState},
    codec::VERSION,
    failure::{Category, cut},
    limits::{CALL_NOTE_BYTES_MAX, CALL_RESULT_BYTES_MAX},
};

pub(crate) use self::ledger::Ledger;
use self::ledger::{Clock, Entry, Put};
use crate::{attempt::Attempt, failure::Failure, value};

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

    /// The whole of a call: what is known of it, asking, sending, and the record of each.
    pub(crate) async fn drive<T, A, Asked, F, Fut>(self, ask: Option<A>, send: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        A: FnOnce() -> Asked,
        Asked: Future<Output = Settled<T>>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Sent<T>>,
    {
        let job = self.attempt.message();
        let id = CallId { index: job.index, generation: job.generation, attempt: job.attempt, n: self.n };
        let (mut earlier, clock) = self.attempt.ledger().find(job.run, id).await?;
        if let Some(other) = earlier.iter().find(|entry| entry.record.kind != self.kind) {
            let message = format!(
                "call {} of this step is `{}`, and was `{}` in attempt {}; hint: every attempt must make its calls in \
                 the same order",
                self.n, self.kind, other.record.kind, other.id.attempt
            );
            return Err(Failure::permanent(message).code("call_mismatch"));
        }
        let mut not_kept = None;
        for entry in earlier.iter().rev().filter(|entry| entry.record.state == CallState::Completed) {
            if let Some(result) = &entry.record.result {
                self.count("recorded");
                return value::read(result).map_err(|error| {
                    Failure::data(format!("the recorded result of call {} cannot be read: {error}", entry.id))
                        .code("call_result_unreadable")
                });
            }
            not_kept = not_kept.or(Some(entry.record.result_bytes));
        }
        let is_open = earlier.iter().any(is_open);
        if is_open || not_kept.is_some() {
            self.attempt.call_opened();
            match (ask, not_kept) {
                (Some(ask), _) => match ask().await {
                    Settled::Done { value, status } => {
                        self.close(&mut earlier, clock, CallState::Completed, status, Some(&value)).await?;
                        self.attempt.call_closed();
                        self.count("settled");
                        return Ok(value);
                    }
                    Settled::Absent if not_kept.is_none() => {
                        self.close::<T>(&mut earlier, clock, CallState::Failed, None, None).await?;
                        self.attempt.call_closed();
                    }
                    Settled::Absent => return Err(self.lost(not_kept)),
                    Settled::Unknown(failure) => return Err(self.unsettled(&mut earlier, clock, failure).await?),
                },
                (None, Some(_)) => return Err(self.lost(not_kept)),
                (None, None) => {}
            }
        }
        self.make(id, earlier, clock, send).await
    }

    /// Records the intent, makes the call, records its outcome.
    async fn make<T, F, Fut>(&self, id: CallId, mut earlier: Vec<Entry>, clock: Clock, send: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Sent<T>>,
    {
        let was_open = earlier.iter().any(is_open);
        let mut entry = Entry::new(id, self.record(clock.now_ms()));
        let own = earlier.iter().position(|found| found.id == id).map(|at| earlier.remove(at));
        if let Some(found) = &own {
            entry = entry.over(found);
        }
        // RACE: an earlier job of this very attempt may have sent it. Its place never reads as if nothing had been sent.
        if !own.as_ref().is_some_and(is_open) {
            self.put(&mut entry).await?;
        }
        entry.record.state = CallState::Started;
        entry.record.started_ms = Some(clock.now_ms());
        self.put(&mut entry).await?;
        self.attempt.call_opened();
        let sent = send().await;
        entry.record.ended_ms = Some(clock.now_ms());
        match sent {
            Sent::Done { value, status } => {
                entry.record.state = CallState::Completed;
                entry.record.status = status;
                keep(&mut entry.record, &value)?;
                self.put(&mut entry).await?;
                self.close::<T>(&mut earlier, clock, CallState::Completed, None, None).await?;
                self.attempt.call_closed();
                if was_open {
                    self.attempt.call_closed();
                }
                self.count("completed");
                Ok(value)
            }
            Sent::Refused { failure, status } => {
                entry.record.state = CallState::Failed;
                entry.record.status = status;
                entry.record.note = Some(kept(&failure.wire().message));
                self.put(&mut entry).await?;
                self.attempt.call_closed();
                self.count("failed");
                // This one had no effect; what became of an earlier one is as unknown as before.
                Err(if was_open { failure.unknown_call(&self.kind) } else { failure })
            }
            Sent::Unknown { failure, status } => {
                entry.record.state = CallState::Unknown;
                entry.record.status = status;
                entry.record.note = Some(kept(&failure.wire().message));
                self.put(&mut entry).await?;
                self.count("unknown");
                Err(failure.unknown_call(&self.kind))
            }
        }
    }

    fn record(&self, now_ms: u64) -> CallRecord {
        CallRecord {
            v: VERSION,
            step: self.attempt.message().step.clone(),
            job: self.attempt.job(),
            kind: self.kind.clone(),
            endpoint: self.endpoint.clone(),
            method: self.method.clone(),
            key: self.key.clone(),
            state: CallState::Intended,
            intended_ms: now_ms,
            started_ms: None,
            ended_ms: None,
            status: None,
            result: None,
            result_bytes: 0,
            settled_by: None,
            note: None,
        }
    }

    async fn put(&self, entry: &mut Entry) -> Result<(), Failure> {
        match self.attempt.ledger().put(self.attempt.run(), entry).await? {
            Put::Written => Ok(()),
            Put::Taken => {
                let message = format!("another attempt has taken the call {} over", entry.id);
                Err(Failure::transient(message).code("call_taken_over"))
            }
        }
    }

    /// Notes what became of earlier tries whose outcome was unknown. The value is kept with the latest of them.
    async fn close<T: Serialize>(
        &self,
        earlier: &mut [Entry],
        clock: Clock,
        state: CallState,
        status: Option<u16>,
        value: Option<&T>,
    ) -> Result<(), Failure> {
        let mut value = value;
        for entry in earlier.iter_mut().rev().filter(|entry| is_open(entry)) {
            entry.record.state = state;
            entry.record.status = status;
            entry.record.ended_ms = Some(clock.now_ms());
            entry.record.settled_by = Some(self.attempt.attempt());
            entry.record.note = (state == CallState::Failed).then(|| "it never arrived".to_owned());
            if let Some(value) = value.take() {
                keep(&mut entry.record, value)?;
            }
            // RACE: the earlier attempt may live after all and have recorded the outcome itself; then that stands.
            let _taken = self.attempt.ledger().put(self.attempt.run(), entry).await?;
        }
        Ok(())
    }

    /// Notes that asking did not help.
    async fn unsettled(&self, earlier: &mut [Entry], clock: Clock, failure: Failure) -> Result<Failure, Failure> {
        let why = failure.wire().message.clone();
        for entry in earlier.iter_mut().filter(|entry| is_open(entry)) {
            entry.record.state = CallState::Unknown;
            entry.record.ended_ms = Some(clock.now_ms());
            entry.record.note = Some(kept(&why));
            let _taken = self.attempt.ledger().put(self.attempt.run(), entry).await?;
        }
        self.count("unknown");
        let mut unknown = Failure::transient(why).unknown_call(&self.kind);
        if let Some(ms) = failure.wire().retry_after_ms {
            unknown = unknown.retry_after(std::time::Duration::from_millis(ms));
        }
        Ok(unknown)
    }

    /// The call took effect, and its result is not to be had.
    fn lost(&self, bytes: Option<u64>) -> Failure {
        let message = format!(
            "call {} (`{}`) took effect in an earlier attempt; its result of {} bytes was not kept, allowed are \
             {CALL_RESULT_BYTES_MAX}",
            self.n,
            self.kind,
            bytes.unwrap_or_default()
        );
        Failure::data(message).code("call_result_not_kept")
    }

    fn count(&self, outcome: &str) {
        self.attempt.ledger().counts.ended(outcome);
    }
}

/// Whether nobody knows what became of it.
fn is_open(entry: &Entry) -> bool {
    matches!(entry.record.state, CallState::Started | CallState::Unknown)
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

fn keep<T: Serialize>(record: &mut CallRecord, value: &T) -> Result<(), Failure> {
    let bytes: Bytes = value::write(value).map_err(|error| {
        Failure::permanent(format!("the result of a call cannot be written: {error}")).code("bad_output")
    })?;
    record.result_bytes = bytes.len() as u64;
    record.result = (bytes.len() <= CALL_RESULT_BYTES_MAX).then_some(bytes);
    Ok(())
}

fn kept(text: &str) -> String {
    cut(text.to_owned(), CALL_NOTE_BYTES_MAX)
}
