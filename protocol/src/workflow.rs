//! The stored form of a workflow: what a run carries with it and what crosses Redis. Pure data.
//!
//! Unknown fields are tolerated here, because a newer version may have written them; the checker at the door is strict instead.
//! Whatever is not written stays `None`, so that policies of the handler and the fleet can still fill it in; [`Workflow::resolved`]
//! applies the order step, then workflow, then built-in.
//!
//! The doc comments of the fields become the descriptions of the published JSON Schema.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::Millis, failure::Category, name::Name};

/// Tries of a step, the first included, when nobody says otherwise.
pub const MAX_ATTEMPTS: u32 = 3;
/// Wait before the second try, before jitter, when nobody says otherwise.
pub const BACKOFF_BASE: Millis = Millis::from_secs(1);
/// Factor from one wait to the next, when nobody says otherwise.
pub const BACKOFF_FACTOR: f64 = 2.0;
/// Longest wait between two tries, when nobody says otherwise.
pub const BACKOFF_CAP: Millis = Millis::from_secs(60);
/// Time-out of one attempt, when nobody says otherwise.
pub const STEP_TIMEOUT: Millis = Millis::from_secs(300);
/// Time-out of a whole run, when nobody says otherwise.
pub const RUN_TIMEOUT: Millis = Millis::from_secs(3_600);
/// Queue of a step, when nobody says otherwise.
pub const QUEUE: &str = "default";
/// Priority of a step, when nobody says otherwise.
pub const PRIORITY: u8 = 5;
/// The most urgent priority; 0 is the least.
pub const PRIORITY_MAX: u8 = 9;

/// The steps of a workflow in the order they were written. The position of a step is its index in the state of a run.
pub type Steps = IndexMap<Name, Step>;

/// A named plan: a graph of steps without cycles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Workflow {
    /// The name under which the workflow is registered and its runs are listed.
    pub workflow: Name,
    /// What the workflow is for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What holds for every step that does not say otherwise.
    #[serde(default, skip_serializing_if = "Defaults::is_empty")]
    pub defaults: Defaults,
    /// How long a whole run may take; 0 for no limit.
    #[serde(default = "run_timeout")]
    pub timeout: Millis,
    /// How a run ends when a step gave up.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// A JSON Schema (draft 2020-12 unless it names another) that the input of a run must satisfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "json_schema_schema")]
    pub input: Option<serde_json::Value>,
    /// The steps by name.
    #[schemars(extend("minProperties" = 1))]
    pub steps: Steps,
}

/// How a run ends when a step gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run fails once the independent branches are done.
    #[default]
    Fail,
    /// The run is suspended and waits for an operator.
    Suspend,
    /// The completed steps that say how are undone, the last first; then the run fails.
    Compensate,
}

/// What becomes of the rest of a run when one step of it gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepOnFailure {
    /// The step has a dead letter, its dependants wait, and the run ends as the workflow's `on_failure` says.
    #[default]
    Fail,
    /// Its dependants go on without its output, and the run does not fail for it.
    Continue,
    /// Its dependants, and theirs, are skipped, and the run does not fail for it.
    SkipDependents,
}

/// Who does a step while the circuit breaker before it is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Fallback {
    /// The named code on a worker that stands in. It gets the step's input.
    pub handler: Name,
    /// The queue of its jobs; the step's if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
}

/// How a completed step is undone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Compensate {
    /// The named code on a worker that undoes the step.
    pub handler: Name,
    /// The queue of its jobs; the step's if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// How long one attempt may take; 0 for no limit; the step's if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Millis>,
    /// When and how often it is tried again; as the workflow's defaults say if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The input of the handler: any value, in which `${{ }}` may name the input of the run, the step's own output and those
    /// of the steps it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<serde_json::Value>,
}

/// What holds for every step of a workflow that does not say otherwise.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Defaults {
    /// The queue that jobs go to; `default` if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// How long one attempt may take; 300s if nobody says otherwise, 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Millis>,
    /// When and how often a failed step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Order among waiting steps of a queue: 0 to 9, 9 is the most urgent; 5 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    pub priority: Option<u8>,
}

impl Defaults {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One node of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Step {
    /// The named code on a worker that does the step.
    pub handler: Name,
    /// The steps that must have completed first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("uniqueItems" = true))]
    pub needs: Vec<Name>,
    /// The queue that the jobs of the step go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// How long one attempt may take; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Millis>,
    /// When and how often the step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Order among waiting steps of a queue: 0 to 9, 9 is the most urgent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    pub priority: Option<u8>,
    /// The step is given up as `expired` if it has not started this long after it became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_within: Option<Millis>,
    /// The input of the handler: any value, in which `${{ }}` holds an expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<serde_json::Value>,
    /// The dependency that the step speaks to: text, in which `${{ }}` may hold expressions, such as a host. All steps that
    /// name the same one share a circuit breaker. The handler's own breaker holds if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// Who does the step while its circuit breaker is open, instead of waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// How the step is undone after it completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<Compensate>,
    /// What becomes of the rest of the run when the step gave up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<StepOnFailure>,
}

impl Step {
    /// A step that says nothing but its handler.
    pub fn new(handler: Name) -> Self {
        Self {
            handler,
            needs: Vec::new(),
            queue: None,
            timeout: None,
            retry: None,
            priority: None,
            start_within: None,
            with: None,
            breaker: None,
            fallback: None,
            compensate: None,
            on_failure: None,
        }
    }
}

/// When and how often a failed step is tried again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Retry {
    /// All tries, the first included: 1 to 1000; 3 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// How long to wait between two tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// The failure that makes the step an escalation, counted from 1: subscribers are told once. Never if nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub escalate_after: Option<u32>,
    /// Whether giving up is an escalation too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<bool>,
    /// What holds for failures of one category instead.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub categories: BTreeMap<Category, CategoryRetry>,
}

/// When and how often a step is tried again that failed with a certain category.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CategoryRetry {
    /// Whether it is tried again at all, unless the handler itself says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<bool>,
    /// All tries, the first included: 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// How long to wait between two tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// The failure that makes the step an escalation, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub escalate_after: Option<u32>,
    /// Whether giving up is an escalation too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<bool>,
}

/// How long to wait between two tries: `min(cap, base * factor^(tries - 1))`, then jitter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Backoff {
    /// The wait after the first failed try, before jitter; 1s if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Millis>,
    /// What each wait is multiplied with for the next one: 1 to 100; 2 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub factor: Option<f64>,
    /// The longest wait; 60s if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<Millis>,
    /// How much of the wait is random; `full` if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
}

/// How much of a wait is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// All of it: from nothing to the whole wait.
    #[default]
    Full,
    /// The second half of it.
    Equal,
    /// Nothing: the wait is exact.
    None,
}

/// What holds for one step after the order step, then workflow, then built-in. Retries have more levels: see the rules of the
/// machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The queue that jobs go to.
    pub queue: Name,
    /// How long one attempt may take; 0 for no limit.
    pub timeout: Millis,
    /// 0 to 9, 9 is the most urgent.
    pub priority: u8,
    /// How long the step may wait for its start.
    pub start_within: Option<Millis>,
}

impl Workflow {
    /// What holds for `step`: each setting from the step, else from the workflow's defaults, else built-in.
    pub fn resolved(&self, step: &Step) -> Resolved {
        let defaults = &self.defaults;
        Resolved {
            queue: step
                .queue
                .clone()
                .or_else(|| defaults.queue.clone())
                .unwrap_or_else(|| Name::new(QUEUE).expect("the built-in queue name is legal")),
            timeout: step.timeout.or(defaults.timeout).unwrap_or(STEP_TIMEOUT),
            priority: step.priority.or(defaults.priority).unwrap_or(PRIORITY),
            start_within: step.start_within,
        }
    }
}

fn run_timeout() -> Millis {
    RUN_TIMEOUT
}

fn json_schema_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["object", "boolean"] })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workflow(value: serde_json::Value) -> Workflow {
        serde_json::from_value(value).expect("a legal stored form")
    }

    #[test]
    fn the_order_is_step_then_workflow_then_built_in() {
        let w = workflow(json!({
            "workflow": "w",
            "defaults": { "queue": "cpu", "retry": { "max_attempts": 7, "backoff": { "base": "2s", "factor": 3.0 } } },
            "steps": {
                "a": { "handler": "h" },
                "b": { "handler": "h", "queue": "gpu", "timeout": "1m", "priority": 9, "start_within": "5s",
                       "retry": { "backoff": { "base": "9s", "jitter": "none" } } },
            }
        }));
        let a = w.resolved(&w.steps["a"]);
        assert_eq!((a.queue.as_str(), a.timeout, a.priority, a.start_within), ("cpu", STEP_TIMEOUT, PRIORITY, None));
        let b = w.resolved(&w.steps["b"]);
        assert_eq!((b.queue.as_str(), b.timeout, b.priority), ("gpu", Millis::from_secs(60), 9));
        let bare = workflow(json!({ "workflow": "w", "steps": { "a": { "handler": "h" } } }));
        assert_eq!(bare.resolved(&bare.steps["a"]).queue.as_str(), QUEUE);
        assert_eq!((bare.timeout, bare.on_failure), (RUN_TIMEOUT, OnFailure::Fail));
    }

    #[test]
    fn the_stored_form_keeps_the_order_of_steps_and_tolerates_unknown_fields() {
        let w = workflow(json!({
            "workflow": "w", "from_the_future": 1,
            "steps": { "z": { "handler": "h", "colour": "red" }, "a": { "handler": "h", "needs": ["z"] } }
        }));
        assert_eq!(w.steps.keys().map(Name::as_str).collect::<Vec<_>>(), ["z", "a"]);
        let json = serde_json::to_string(&w).expect("serializable");
        assert_eq!(
            json,
            r#"{"workflow":"w","timeout":"1h","on_failure":"fail","steps":{"z":{"handler":"h"},"a":{"handler":"h","needs":["z"]}}}"#
        );
        let packed = rmp_serde::to_vec_named(&w).expect("serializable");
        assert_eq!(rmp_serde::from_slice::<Workflow>(&packed).expect("its own bytes"), w);
    }
}
