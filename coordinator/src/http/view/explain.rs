//! Why a run or a step stands where it stands.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{id::RunId, state::State};
use utoipa::ToSchema;

/// Why a run stands where it stands, and what would move it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunExplanation {
    /// The run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The run as a whole.
    #[serde(flatten)]
    pub run: Explanation,
    /// The steps that explain it, or the one that was asked for.
    pub steps: Vec<StepExplanation>,
    /// Unfinished steps that are not explained, because there are many.
    #[serde(default)]
    pub steps_left_out: u32,
}

/// Why a step stands where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepExplanation {
    /// The step.
    pub step: String,
    /// Why.
    #[serde(flatten)]
    pub why: Explanation,
}

/// One sentence, the same as a word, and what is behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The state.
    #[schema(value_type = String)]
    pub state: State,
    /// Why, for people.
    pub sentence: String,
    /// Why, for programs, such as `needs_unmet`.
    pub reason: String,
    /// The facts by name. Times are RFC 3339; spans end in `_ms`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// What would make it go on, the likeliest first. Commands stand between backticks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
}
