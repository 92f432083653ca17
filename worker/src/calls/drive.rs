//! How one external call is carried through: what is known of it, asking, sending, and the record of each.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::{
    call::{CallId, CallRecord, CallState},
    codec::VERSION,
    limits::CALL_RESULT_BYTES_MAX,
};

use super::{
    ExternalCall, Sent, Settled, kept,
    ledger::{Clock, Entry, Put},
};
use crate::{failure::Failure, value};

impl ExternalCall {
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
        let own_open = own.as_ref().is_some_and(is_open);
        if !own_open {
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
                keep(&mut entry.record, &value);
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
                entry.record.state = if own_open { CallState::Unknown } else { CallState::Failed };
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
    #[expect(clippy::too_many_arguments, reason = "one fact about all of them, told at three places")]
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
                keep(&mut entry.record, value);
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
            unknown = unknown.retry_after(Duration::from_millis(ms));
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

/// Keeps a result with its record, if it can be written and is small enough. The call took effect in any case.
fn keep<T: Serialize>(record: &mut CallRecord, value: &T) {
    let bytes: Bytes = value::write(value).unwrap_or_else(|error| {
        tracing::warn!(%error, kind = record.kind, "the result of an external call cannot be written");
        Bytes::new()
    });
    record.result_bytes = bytes.len() as u64;
    record.result = (1..=CALL_RESULT_BYTES_MAX).contains(&bytes.len()).then_some(bytes);
}
