//! Dead letters and their replay.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{failure::Category, id::RunId, state::State};
use utoipa::ToSchema;

use super::ValueView;
use crate::machine::{
    decision::Cause,
    verdict::{Action, Severity},
};

/// One failed attempt of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// The step.
    pub step: String,
    /// Which try.
    pub attempt: u32,
    /// The job.
    pub job: String,
    /// Who tried; none when it failed before any worker had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Version of the program that tried; none from workers that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_version: Option<String>,
    /// Host of the worker that tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When it failed.
    pub at: String,
    /// How long it ran.
    pub run_ms: u64,
    /// What kind of trouble it was.
    #[schema(value_type = String)]
    pub category: Category,
    /// The handler's word for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One sentence.
    pub message: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The wait that the other side asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Anything more that the handler kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<ValueView>,
    /// What was done about it; none if that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// How bad it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// The failure in one sentence, with what it was taken for: `Retryable error (timeout): no answer in 5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// A step that gave up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LetterView {
    /// `<partition>-<milliseconds>-<sequence>`.
    pub id: String,
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// The workflow's name.
    pub workflow: String,
    /// Its registered version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The step.
    pub step: String,
    /// Which deliberate execution of the step.
    pub generation: u32,
    /// The handler.
    pub handler: String,
    /// The queue.
    pub queue: String,
    /// Why it gave up.
    pub cause: Cause,
    /// Category of the last failure.
    #[schema(value_type = String)]
    pub category: Category,
    /// How bad that is, as the category says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// When.
    pub at: String,
    /// Message of the last failure.
    pub message: String,
    /// Its group: letters that failed in the same way have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Earlier letters of the same step: how often it came back.
    #[serde(default)]
    pub returns: u32,
    /// Failed attempts of the budget.
    pub attempts_count: u32,
    /// Every failed attempt, oldest first; only where one letter is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
    /// The input of the last job; only where one letter is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<ValueView>,
}

/// Dead letters that failed in the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// What they have in common: 16 hex digits.
    pub fingerprint: String,
    /// How many are open.
    pub count: u64,
    /// When the first open one came.
    pub first_seen: String,
    /// When the last one came.
    pub last_seen: String,
    /// The handler.
    pub handler: String,
    /// Category of the last failure.
    #[schema(value_type = String)]
    pub category: Category,
    /// The handler's word for the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The message without numbers, ids, quoted texts, paths and addresses.
    pub message: String,
    /// Workflows of the sampled letters.
    pub workflows: Vec<String>,
    /// Workers of the sampled letters' attempts.
    pub workers: Vec<String>,
    /// Versions of the programs that tried, as those attempts say.
    pub worker_versions: Vec<String>,
    /// Letters that `workflows`, `workers` and `worker_versions` were read from: the newest, at most 200.
    pub sampled: u64,
    /// The newest letter.
    pub example: LetterView,
}

/// A page of groups, the largest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupPage {
    /// What was found.
    pub items: Vec<GroupView>,
    /// Where the next page begins; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// There are more groups or letters than one answer looks at: the newest were taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Replays one letter. The body may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// The input to use instead of the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub input: Option<serde_json::Value>,
    /// JSON merge patch (RFC 7386) of the input of the last attempt; not together with `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub patch: Option<serde_json::Value>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replayed {
    /// Letters that were found.
    pub matched: u64,
    /// Letters whose steps are retried.
    pub replayed: u64,
    /// Letters still without an answer of the coordinator.
    pub pending: u64,
    /// The run's state; none if the coordinator has not answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub state: Option<State>,
}

/// Closes one letter for good.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// Why, for the history: what is discarded is gone for good.
    pub reason: String,
}

/// A letter that was discarded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LetterDiscarded {
    /// The letter.
    pub id: String,
    /// The run's state; none if the coordinator has not answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub state: Option<State>,
}
