//! Values of runs: inputs, outputs, details.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A value, or why it is not shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ValueView {
    /// Size of the stored value.
    pub bytes: u64,
    /// The value; none if it is not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub value: Option<serde_json::Value>,
    /// Why the value is not shown, and where to get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
