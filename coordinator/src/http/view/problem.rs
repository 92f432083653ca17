//! Errors of the API: RFC 9457 problem details with a stable word.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error, as `application/problem+json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` says which problem it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable word for programs: `not_found`, `illegal_state`, `idempotency_mismatch`.
    pub code: String,
    /// One sentence for people: what was found and what is allowed.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// State of the run, when the wish is illegal in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Every single problem of what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<FieldProblem>,
    /// Problems beyond those in `problems`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
    /// The request, as in the header `X-Request-Id` and the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// One thing that is wrong with what was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// Line in the text, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Where: `steps.fetch.timeout`.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed there instead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub allowed: String,
    /// A guess at what was meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
