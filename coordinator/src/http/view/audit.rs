//! The audit store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that somebody asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// `<partition>-<milliseconds>-<sequence>`, or `fleet-<milliseconds>-<sequence>` where it belongs to no partition.
    pub id: String,
    /// When it was decided, by the server's clock.
    pub at: String,
    /// Who asked.
    pub actor: String,
    /// What was asked, as `run.cancel`.
    pub action: String,
    /// What it is about, as `run:<id>`.
    pub target: String,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `done` or `refused`.
    pub outcome: String,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub detail: Option<serde_json::Value>,
}
