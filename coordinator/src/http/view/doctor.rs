//! How the fleet is, as a list of findings.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// Something does not work, or soon will not.
    Error,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorFinding {
    /// The check, such as `memory`.
    pub check: String,
    /// How bad it is.
    pub severity: FindingLevel,
    /// What was found.
    pub sentence: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Every check with what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorView {
    /// The worst of them.
    pub severity: FindingLevel,
    /// One for each check at least, in the order of the checks.
    pub findings: Vec<DoctorFinding>,
}

/// What `fix` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorFixed {
    /// Each act in a sentence; empty if there was nothing to put right.
    pub done: Vec<String>,
}

/// How far the auditors' walks are that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SweepView {
    /// Whether every partition is done: everything was looked at, and twice what was nowhere in the first look.
    pub done: bool,
    /// Partitions in all.
    pub partitions: usize,
    /// Partitions that are not done. One that nobody owns never is.
    pub open: Vec<u16>,
    /// Open runs that the last walks looked at.
    pub runs: u64,
    /// Repairs so far, since the fleet began.
    pub repairs: u64,
}
