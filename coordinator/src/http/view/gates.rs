//! Circuit breakers, limits and paused queues.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::machine::rules::Breaker;

/// A circuit breaker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BreakerView {
    /// Its name: `handler:<name>` or `target:<text>`.
    pub name: String,
    /// `closed`, `open`, `half_open` or `recovering`.
    pub state: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it is tried again; none if somebody has to close it, or it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Why it stands as it does.
    #[serde(default)]
    pub reason: String,
    /// Who did it: a person, or `breaker`.
    #[serde(default)]
    pub actor: String,
    /// Steps that are parked behind it.
    pub parked: u64,
    /// Successful calls in the window.
    pub ok: u64,
    /// Failed calls in the window; one of category `system` counts double.
    pub failed: u64,
    /// Failures in a row.
    pub row: u64,
    /// How often it opened without having recovered in between.
    pub trips: u64,
    /// Jobs that try now.
    pub trying: u64,
    /// When it opens, and how it closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Breaker>,
}

/// Opens a circuit breaker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how long, such as `10m`; until somebody closes it if it is left out.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
}

/// A limit of the fleet's policies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// What it is about: `handler:<name>` or `target:<text>`.
    pub name: String,
    /// Jobs that may be under way at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    /// Places in use of these, or at hand of a partition that has a job for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// Jobs that may begin in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Jobs that may begin at once after a quiet time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Steps that wait.
    pub parked: u64,
}

/// A paused queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PauseView {
    /// Since when.
    pub since: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who did it.
    #[serde(default)]
    pub actor: String,
}

/// What became of a pause or resume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueueTaken {
    /// The queue.
    pub queue: String,
    /// Whether it is paused now.
    pub paused: bool,
    /// Whether that is new.
    pub changed: bool,
}
