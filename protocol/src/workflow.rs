//! The stored form of a workflow: what a run carries with it and what crosses Redis. Pure data.
//!
//! Unknown fields are tolerated here, because a newer version may have written them; the checker at the door is strict instead.
//! Whatever is not written stays `None`, so that policies of the handler and the fleet can still fill it in; [`Workflow::resolved`]
//! applies the order step, then workflow, then built-in.
//!
//! The doc comments of the fields become the descriptions of the published JSON Schema.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::Millis, name::Name};

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

/// What holds for one step after the order step, then workflow, then built-in.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The queue that jobs go to.
    pub queue: Name,
    /// How long one attempt may take; 0 for no limit.
    pub timeout: Millis,
    /// What was written about retries; the rest is for the policies below and, last, the built-in numbers.
    pub retry: RetryPolicy,
    /// 0 to 9, 9 is the most urgent.
    pub priority: u8,
    /// How long the step may wait for its start.
    pub start_within: Option<Millis>,
}

/// The numbers of a retry that the step or its workflow wrote down. `None` means that nobody did, so the default of the
/// error's category holds, and below it the built-in constants of this module.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RetryPolicy {
    /// All tries, the first included.
    pub max_attempts: Option<u32>,
    /// The wait after the first failed try, in milliseconds.
    pub base_ms: Option<u64>,
    /// What each wait is multiplied with for the next one.
    pub factor: Option<f64>,
    /// The longest wait, in milliseconds.
    pub cap_ms: Option<u64>,
    /// How much of a wait is random.
    pub jitter: Option<Jitter>,
}

impl RetryPolicy {
    fn new(step: Option<&Retry>, defaults: Option<&Retry>) -> Self {
        let backoff = |retry: Option<&Retry>| retry.and_then(|r| r.backoff.clone()).unwrap_or_default();
        let (upper, lower) = (backoff(step), backoff(defaults));
        Self {
            max_attempts: step.and_then(|r| r.max_attempts).or(defaults.and_then(|r| r.max_attempts)),
            base_ms: upper.base.or(lower.base).map(|d| d.0),
            factor: upper.factor.or(lower.factor),
            cap_ms: upper.cap.or(lower.cap).map(|d| d.0),
            jitter: upper.jitter.or(lower.jitter),
        }
    }
}

impl Workflow {
    /// What holds for `step`: each setting, and each number of the retry, from the step, else from the workflow's defaults,
    /// else built-in (the numbers of the retry stay open instead).
    pub fn resolved(&self, step: &Step) -> Resolved {
        let defaults = &self.defaults;
        Resolved {
            queue: step
                .queue
                .clone()
                .or_else(|| defaults.queue.clone())
                .unwrap_or_else(|| Name::new(QUEUE).expect("the built-in queue name is legal")),
            timeout: step.timeout.or(defaults.timeout).unwrap_or(STEP_TIMEOUT),
            retry: RetryPolicy::new(step.retry.as_ref(), defaults.retry.as_ref()),
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
        let written =
            RetryPolicy { max_attempts: Some(7), base_ms: Some(2_000), factor: Some(3.0), ..Default::default() };
        assert_eq!(a.retry, written);
        let b = w.resolved(&w.steps["b"]);
        assert_eq!((b.queue.as_str(), b.timeout, b.priority), ("gpu", Millis::from_secs(60), 9));
        assert_eq!(b.retry, RetryPolicy { base_ms: Some(9_000), jitter: Some(Jitter::None), ..written });
        let bare = workflow(json!({ "workflow": "w", "steps": { "a": { "handler": "h" } } }));
        assert_eq!(bare.resolved(&bare.steps["a"]).queue.as_str(), QUEUE);
        assert_eq!(bare.resolved(&bare.steps["a"]).retry, RetryPolicy::default());
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
