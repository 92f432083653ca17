//! Values: inputs, outputs and error details. The JSON data model, encoded as MessagePack.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A value inside a message, or a reference to one in a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The MessagePack bytes of the value; at most [`crate::limits::INLINE_BYTES_MAX`].
    Inline(Bytes),
    /// A value key of the same partition, written in the same transaction as the message that names it.
    Ref(ValueRef),
}

/// Names a value key of the same partition: `{p}:value:<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueRef {
    /// The id of the key: a job id for an output, a run id for the input of a run.
    pub id: String,
    /// Size of the stored bytes.
    pub bytes: u64,
}

/// The input of a job. A worker resolves what is referenced before it calls the handler.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// No input: the handler gets `null`.
    #[default]
    None,
    /// The whole input.
    Whole(Payload),
}

impl Payload {
    /// Size of the value in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Ref(value) => value.bytes,
        }
    }

    /// Whether the value has no bytes; no MessagePack value has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
