//! Runs: submits, commands, listings, single runs, history.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{id::RunId, state::State};
use utoipa::ToSchema;

use super::{AttemptView, Problem, ValueView};

/// A submit: exactly one of `workflow`, `definition` and `definition_text`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// A registered workflow: `name`, or `name@version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// A definition as an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub definition: Option<serde_json::Value>,
    /// A definition as YAML or JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition_text: Option<String>,
    /// The input; at most 1 MiB as MessagePack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub input: Option<serde_json::Value>,
    /// Answer only when the submit is on disk or on a replica.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub durable: bool,
    /// In a bulk submit what the header `Idempotency-Key` is for a single one. At most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// A run that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    /// The run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// Its state; none while the coordinator has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub state: Option<State>,
    /// Where to look at it.
    pub url: String,
    /// An earlier submit with the same idempotency key made it.
    #[serde(default)]
    pub known: bool,
    /// What a durable submit got: `fsync`, `replica`, `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
}

/// One line of the answer to a bulk submit, in the order of the lines sent. Either `run` or `error` is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BulkAnswer {
    /// The line it answers, from 1.
    pub line: u64,
    /// The run that was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Submitted>,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// A cancel, resume or compensation. The body may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A retry. The body may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The step to go back to; without it the run goes on at its failed steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What became of a step, said by hand: exactly one of `complete` and `fail`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The step.
    pub step: String,
    /// It is done, with this output; `null` for none. At most 1 MiB as MessagePack.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub complete: Option<serde_json::Value>,
    /// It failed for good, for this reason; at most 1,000 bytes, the rest is cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<String>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A value that is there, `null` too.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(from).map(Some)
}

/// A suspend. The body may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendRequest {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Stop running attempts, uncounted, instead of letting them finish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}

/// A command that was decided, or (202) one that still waits for its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandTaken {
    /// The run.
    #[schema(value_type = String)]
    pub id: RunId,
    /// Its state after the command; none while the coordinator has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub state: Option<State>,
    /// The command's id.
    pub command_id: String,
    /// Where to look at the run.
    pub url: String,
}

/// A run in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunSummary {
    /// Its id.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The workflow's name.
    pub workflow: String,
    /// The registered version; none for an inline definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Where it stands.
    #[schema(value_type = String)]
    pub state: State,
    /// When it was submitted.
    pub created_at: String,
    /// When it ended. A failed run that is held (suspended) keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// From submit to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How many steps stand where.
    pub steps: StepCounts,
    /// A step failed for want of good data: a person has to look.
    #[serde(default)]
    pub review: bool,
}

/// How many steps of a run stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepCounts {
    /// All.
    pub total: u32,
    /// Done.
    pub completed: u32,
    /// Given up.
    pub failed: u32,
    /// Given up, among `failed`, with the run going on: `on_failure` of the step says so.
    #[serde(default)]
    pub tolerated: u32,
    /// Not done, as a step they need was given up.
    #[serde(default)]
    pub skipped: u32,
    /// Queued, processing, waiting or retrying.
    pub active: u32,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// What a listing shows of it.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// The partition it lives in.
    pub partition: u16,
    /// Hash of the definition that it follows.
    pub plan: String,
    /// It is being stopped: `cancelled` or `timed_out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<String>,
    /// How far its compensation is: `none`, `running`, `done` or `failed`.
    #[serde(default)]
    pub compensation: String,
    /// A transition too large for one commit is under way.
    #[serde(default)]
    pub in_progress: bool,
    /// W3C trace context of the submitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<ValueView>,
    /// The failed attempts of its steps, latest first, at most 20.
    #[serde(default)]
    pub errors: Vec<AttemptView>,
    /// The first 200 steps.
    pub step_list: Vec<StepView>,
    /// Where the other steps begin, for `/runs/{id}/steps?cursor=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_next: Option<String>,
    /// What is left out of this answer, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Its name; `<name>/undo` for one that undoes the step of that name.
    pub name: String,
    /// Its place in the definition, from 0; those that undo others come behind all steps.
    pub index: u32,
    /// The handler that does it.
    pub handler: String,
    /// The queue of its jobs.
    pub queue: String,
    /// Where it stands.
    #[schema(value_type = String)]
    pub state: State,
    /// Tries so far that count, the present one or the one that completed it included.
    pub attempts: u32,
    /// Tries that it was lost with a worker.
    pub losses: u8,
    /// Which deliberate execution this is, from 1.
    pub generation: u32,
    /// The steps that it needs.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The job it waits for, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The worker that had the last job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When it last became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<String>,
    /// When its last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// When its next attempt is due, while it is retrying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    /// By when it has to be started, while it waits and has such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<String>,
    /// It gave up, and the run goes on without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tolerated: bool,
    /// How long its last attempt took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Whether it left an output, for `/runs/{id}/output?step=`.
    #[serde(default)]
    pub has_output: bool,
    /// Its open dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
}

/// One transition of a run or a step. Equal `from` and `to` are a remark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    /// When.
    pub at: String,
    /// The step; none for the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The state before.
    #[schema(value_type = String)]
    pub from: State,
    /// The state after.
    #[schema(value_type = String)]
    pub to: State,
    /// Why: `submitted`, `needs_met`, `begun`, `done`, `attempt_failed`, …
    pub reason: String,
    /// Which try; none for the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The worker that had the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Anything more: the asker's reason, an error message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The short status of a run, at `/api/v1/workflow/{id}/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LegacyStatus {
    /// The run.
    #[schema(value_type = String)]
    pub workflow_id: RunId,
    /// Where it stands.
    #[schema(value_type = String)]
    pub current_state: State,
    /// The first of its steps that is active or failed.
    pub current_stage: Option<String>,
    /// Tries beyond the first, over the steps shown.
    pub retry_count: u32,
    /// What a listing shows of it.
    pub metadata: RunSummary,
}
