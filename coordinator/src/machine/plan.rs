//! A workflow, compiled: steps by number, edges in both directions, every default filled in.

use std::sync::Arc;

use stepfleet_protocol::{
    name::Name,
    workflow::{Fallback, OnFailure, Retry, StepOnFailure, Workflow},
};

/// What runs follow. Made once per workflow version and shared.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// Key of the plan: a hash of the workflow.
    pub hash: Arc<str>,
    /// The workflow's name.
    pub workflow: Name,
    /// The steps in the order they were written; a step's place is its number.
    pub steps: Vec<PlanStep>,
    /// The steps that need nothing.
    pub roots: Vec<u32>,
    /// Limit of a run in milliseconds; 0 for none.
    pub timeout_ms: u64,
    /// How a run ends when a step gave up.
    pub on_failure: OnFailure,
    /// What the workflow says about retries.
    pub retry: Option<Retry>,
}

/// A step of a plan.
#[derive(Debug, PartialEq)]
pub struct PlanStep {
    /// The step's name.
    pub name: Name,
    /// The code that does it.
    pub handler: Name,
    /// The queue its jobs go to.
    pub queue: Name,
    /// How many steps it needs.
    pub needs: u32,
    /// The steps that need it.
    pub dependants: Box<[u32]>,
    /// Limit of one attempt in milliseconds; 0 for none.
    pub timeout_ms: u64,
    /// What the step says about retries.
    pub retry: Option<Box<Retry>>,
    /// 0 to 9, 9 is the most urgent.
    pub priority: u8,
    /// How long it may wait for its start, in milliseconds; 0 for ever.
    pub start_within_ms: u64,
    /// Who stands in while its circuit breaker is open.
    pub fallback: Option<Box<Fallback>>,
    /// What becomes of the rest of the run when it gave up.
    pub on_failure: StepOnFailure,
}

impl Plan {
    /// Compiles a workflow that the door has checked.
    ///
    /// # Panics
    /// When a step needs an unknown one: the checker refuses such a workflow.
    pub fn compile(hash: Arc<str>, workflow: &Workflow) -> Self {
        let mut dependants: Vec<Vec<u32>> = vec![Vec::new(); workflow.steps.len()];
        for (index, step) in workflow.steps.values().enumerate() {
            for need in &step.needs {
                let of = workflow.steps.get_index_of(need).expect("the door refuses unknown needs");
                dependants[of].push(index as u32);
            }
        }
        let mut steps = Vec::with_capacity(workflow.steps.len());
        for ((name, step), dependants) in workflow.steps.iter().zip(dependants) {
            let resolved = workflow.resolved(step);
            steps.push(PlanStep {
                name: name.clone(),
                handler: step.handler.clone(),
                queue: resolved.queue,
                needs: step.needs.len() as u32,
                dependants: dependants.into(),
                timeout_ms: resolved.timeout.0,
                retry: step.retry.clone().map(Box::new),
                priority: resolved.priority,
                start_within_ms: resolved.start_within.map_or(0, |d| d.0),
                fallback: step.fallback.clone().map(Box::new),
                on_failure: step.on_failure.unwrap_or_default(),
            });
        }
        let roots = (0u32..).zip(&steps).filter(|(_, s)| s.needs == 0).map(|(i, _)| i).collect();
        Self {
            hash,
            workflow: workflow.workflow.clone(),
            steps,
            roots,
            timeout_ms: workflow.timeout.0,
            on_failure: workflow.on_failure,
            retry: workflow.defaults.retry.clone(),
        }
    }
}
