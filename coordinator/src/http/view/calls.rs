//! External calls of handlers.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::call::CallState;
use utoipa::ToSchema;

use super::ValueView;

/// A recorded external call of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CallView {
    /// Its id within the run: `<step index>.<generation>.<attempt>.<n>`.
    pub id: String,
    /// The step.
    pub step: String,
    /// Which deliberate execution of the step.
    pub generation: u32,
    /// Which try.
    pub attempt: u32,
    /// Which call of that try, from 1.
    pub n: u32,
    /// The job that makes it.
    pub job: String,
    /// `http`, or the handler's word for it.
    pub kind: String,
    /// How it is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Where it goes, without what may be secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The idempotency key that goes with it.
    pub key: String,
    /// `intended`, `started`, `completed`, `failed`, or `unknown`: it was begun, nobody is at it, and nobody knows whether it
    /// took effect.
    #[schema(value_type = String)]
    pub state: CallState,
    /// When its intent was recorded.
    pub intended_at: String,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When its outcome was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The HTTP status of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its result; the value is there if it was small enough to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ValueView>,
    /// The later attempt that found out what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<u32>,
    /// Why it failed, or is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
