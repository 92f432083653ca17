//! Registered workflows.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::FieldProblem;

/// A definition that was registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// The workflow's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Hash of the definition.
    pub plan: String,
    /// Whether the version is new; false if the latest one is the same.
    pub created: bool,
    /// Where to look at it.
    pub url: String,
}

/// What the checker says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checked {
    /// Whether it may be registered and run.
    pub valid: bool,
    /// The workflow's name, if it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many steps it has, if it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Hash of the definition, if it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Every problem, with its place.
    #[serde(default)]
    pub problems: Vec<FieldProblem>,
    /// How many more there were.
    #[serde(default)]
    pub omitted: u64,
}

/// A workflow in the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkflowSummary {
    /// Its name.
    pub name: String,
    /// Its latest version.
    pub latest: u32,
    /// When the latest version was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<String>,
}

/// One version of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkflowDetail {
    /// Its name.
    pub name: String,
    /// The version shown.
    pub version: u32,
    /// Hash of the definition.
    pub plan: String,
    /// When it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<String>,
    /// The definition as it is stored.
    #[schema(value_type = Object)]
    pub definition: serde_json::Value,
    /// The latest versions, newest first, at most 100.
    pub versions: Vec<VersionView>,
}

/// A version in the list of one workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// The version.
    pub version: u32,
    /// When it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<String>,
}
