//! External calls of handlers: what a worker records before, during and after a call whose effect is not its own.
//!
//! A call is found again by its own id: step, generation, attempt and its number within the attempt. Its record is a field
//! of the run's hash of calls, and goes with the run. The hash also counts the records of each step and generation, in
//! fields that are no ids of calls.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{id::JobId, name::Name};

/// Id of a call within its run, and the field of its record: `<step index>.<generation>.<attempt>.<n>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The step's number in its workflow.
    pub index: u32,
    /// Which deliberate execution of the step, from 1.
    pub generation: u32,
    /// Which try, from 1.
    pub attempt: u32,
    /// Which call of that try, from 1.
    pub n: u32,
}

impl CallId {
    /// The field that counts the records of the step and generation: `<step index>.<generation>`.
    pub fn counter(&self) -> String {
        format!("{}.{}", self.index, self.generation)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.index, self.generation, self.attempt, self.n)
    }
}

/// A field that is no id of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no id of a call: allowed is `index.generation.attempt.n`")]
pub struct NoCallId;

impl FromStr for CallId {
    type Err = NoCallId;
    fn from_str(text: &str) -> Result<Self, NoCallId> {
        let mut parts = text.split('.').map(|part| part.parse::<u32>().map_err(|_| NoCallId));
        let mut next = || parts.next().unwrap_or(Err(NoCallId));
        let id = Self { index: next()?, generation: next()?, attempt: next()?, n: next()? };
        if parts.next().is_none() { Ok(id) } else { Err(NoCallId) }
    }
}

/// How far a call is known to have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// It is meant; nothing was sent.
    Intended,
    /// It is being sent. If its attempt is gone, nobody knows whether it took effect.
    Started,
    /// It took effect.
    Completed,
    /// It was refused: no effect.
    Failed,
    /// It was sent, and nobody knows whether it took effect.
    Unknown,
}

impl CallState {
    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for CallState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The record of one call. Times are Unix milliseconds of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRecord {
    /// Version of the record.
    pub v: u8,
    /// The step's name.
    pub step: Name,
    /// The job that makes the call.
    pub job: JobId,
    /// What kind of call it is: `http`, or the word of the handler.
    pub kind: String,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// How: `POST`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The idempotency key that goes with it.
    pub key: String,
    /// How far it is known to have come.
    pub state: CallState,
    /// When its intent was recorded.
    pub intended_ms: u64,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When its outcome was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The HTTP status of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its result in MessagePack, if it is small enough to be kept: [`crate::limits::CALL_RESULT_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Bytes>,
    /// Size of its result, kept or not.
    #[serde(default)]
    pub result_bytes: u64,
    /// The later attempt that found out what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<u32>,
    /// Why it failed, or is unknown. At most [`crate::limits::CALL_NOTE_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn an_id_reads_back_and_the_counter_is_none() {
        let id = CallId { index: 7, generation: 1, attempt: 3, n: 2 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [&id.counter(), "", "1.2.3", "1.2.3.4.5", "a.2.3.4"] {
            assert_eq!(text.parse::<CallId>(), Err(NoCallId), "{text}");
        }
    }

    #[test]
    fn a_record_is_a_named_map_that_tolerates_what_it_does_not_know() {
        let json = serde_json::json!({"v": 1, "step": "pay", "job": "1-0000000000000007.1.1", "kind": "http",
            "key": "k", "state": "started", "intended_ms": 5, "later": true});
        let record: CallRecord = codec::unpack(&codec::pack(&json)).expect("a record");
        assert_eq!((record.state, record.started_ms, record.endpoint.as_str()), (CallState::Started, None, ""));
        assert_eq!(codec::unpack(&codec::pack(&record)), Ok(record));
    }

    #[test]
    fn a_record_keeps_its_bytes() {
        let record = CallRecord {
            v: 1,
            step: Name::new("pay").expect("a legal name"),
            job: "1-0000000000000007.2.3".parse().expect("a job id"),
            kind: "http".into(),
            endpoint: "https://pay.example/charges".into(),
            method: "POST".into(),
            key: "run/pay/1".into(),
            state: CallState::Completed,
            intended_ms: 1_795_132_800_000,
            started_ms: Some(1_795_132_800_001),
            ended_ms: Some(1_795_132_800_250),
            status: Some(200),
            result: Some(Bytes::from_static(b"\xa2ok")),
            result_bytes: 3,
            settled_by: Some(2),
            note: Some("settled".into()),
        };
        let hex: String = codec::pack(&record).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/v1/call.hex").split_whitespace().collect::<String>());
    }
}
