//! The fleet's policies, and what holds by them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::machine::rules::{Breaker, Level};

/// One version of the fleet's policies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoliciesView {
    /// The version; 0 if nobody ever wrote one.
    pub version: u64,
    /// When it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Who wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The document; left out in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub policies: Option<serde_json::Value>,
}

/// What a change of the policies did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoliciesApplied {
    /// The version that holds now.
    pub version: u64,
    /// Whether something is different from what held before.
    pub changed: bool,
    /// Nothing was written.
    pub dry_run: bool,
    /// A line for each setting that is different: `+ path: new`, `- path: old`, `~ path: old -> new`.
    pub diff: Vec<String>,
}

/// A setting, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Setting {
    /// What holds.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    /// Where it was written: `step`, `workflow`, `handler`, `fleet`, or `built_in` for nowhere.
    pub level: Level,
    /// It was written for the category.
    pub for_category: bool,
}

/// What holds for failures of one category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CategoryView {
    /// The category.
    #[schema(value_type = String)]
    pub category: stepfleet_protocol::failure::Category,
    /// Whether it is tried again, unless the handler says.
    pub retry: Setting,
    /// Tries in all.
    pub max_attempts: Setting,
    /// The wait after the first failed try.
    pub base_ms: Setting,
    /// What each wait is multiplied with for the next one.
    pub factor: Setting,
    /// The longest wait.
    pub cap_ms: Setting,
    /// How much of a wait is random.
    pub jitter: Setting,
    /// The failure that is an escalation, counted from 1; 0 for none.
    pub escalate_after: Setting,
    /// Whether giving up is an escalation.
    pub notify: Setting,
}

/// What holds when something fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EffectivePolicies {
    /// The version of the fleet's policies.
    pub version: u64,
    /// The handler that was asked about, or that the step has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// Whether categories have policies; if not, the handler's own word decides.
    pub classified: bool,
    /// Every category.
    pub categories: Vec<CategoryView>,
    /// Whose circuit breaker it is: `handler pay`, `target db`, or `others`.
    pub breaker_of: String,
    /// The circuit breaker.
    pub breaker: Breaker,
    /// Jobs of it that may be under way at once in the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Jobs of it that may begin in a time in the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
}
