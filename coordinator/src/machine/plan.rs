//! A workflow, compiled: steps by number, edges in both directions, every default filled in.
//!
//! Behind the steps that were written come those that undo them, in the same order: each is a step of its own, with tries,
//! timers and letters like any other, but nothing needs it and it needs nothing.

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
    /// The steps in the order they were written, then those that undo them; a step's place is its number.
    pub steps: Vec<PlanStep>,
    /// How many steps were written: a number from here on is of one that undoes another.
    pub regular: u32,
    /// The steps that undo others, in the order in which they do so: what was needed last is undone first.
    pub undo_order: Vec<u32>,
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
    /// The steps it needs.
    pub needs: Box<[u32]>,
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
    /// What it undoes; none for a step that was written.
    pub undoes: Option<Undo>,
}

/// What a step undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undo {
    /// The number of the step that is undone.
    pub of: u32,
    /// Its place in the order of undoing.
    pub place: u32,
}

impl Plan {
    /// Compiles a workflow that the door has checked.
    ///
    /// # Panics
    /// When a step needs an unknown one: the checker refuses such a workflow.
    pub fn compile(hash: Arc<str>, workflow: &Workflow) -> Self {
        let mut dependants: Vec<Vec<u32>> = vec![Vec::new(); workflow.steps.len()];
        let mut needs: Vec<Box<[u32]>> = Vec::with_capacity(workflow.steps.len());
        for (index, step) in workflow.steps.values().enumerate() {
            let of = |need| workflow.steps.get_index_of(need).expect("the door refuses unknown needs") as u32;
            needs.push(step.needs.iter().map(of).collect());
            needs[index].iter().for_each(|need| dependants[*need as usize].push(index as u32));
        }
        let mut steps = Vec::with_capacity(workflow.steps.len());
        for (((name, step), dependants), needs) in workflow.steps.iter().zip(dependants).zip(needs) {
            let resolved = workflow.resolved(step);
            steps.push(PlanStep {
                name: name.clone(),
                handler: step.handler.clone(),
                queue: resolved.queue,
                needs,
                dependants: dependants.into(),
                timeout_ms: resolved.timeout.0,
                retry: step.retry.clone().map(Box::new),
                priority: resolved.priority,
                start_within_ms: resolved.start_within.map_or(0, |d| d.0),
                fallback: step.fallback.clone().map(Box::new),
                on_failure: step.on_failure.unwrap_or_default(),
                undoes: None,
            });
        }
        let roots = (0u32..).zip(&steps).filter(|(_, s)| s.needs.is_empty()).map(|(i, _)| i).collect();
        let regular = steps.len() as u32;
        let undo_order = append_undo(&mut steps, workflow);
        Self {
            hash,
            workflow: workflow.workflow.clone(),
            steps,
            regular,
            undo_order,
            roots,
            timeout_ms: workflow.timeout.0,
            on_failure: workflow.on_failure,
            retry: workflow.defaults.retry.clone(),
        }
    }
}

/// Appends the steps that undo others, and returns them in the order in which they do so.
fn append_undo(steps: &mut Vec<PlanStep>, workflow: &Workflow) -> Vec<u32> {
    let mut undo_of = vec![None; steps.len()];
    for (of, (name, step)) in workflow.steps.iter().enumerate() {
        let Some(undo) = &step.compensate else { continue };
        undo_of[of] = Some(steps.len() as u32);
        let regular = &steps[of];
        steps.push(PlanStep {
            name: name.clone(),
            handler: undo.handler.clone(),
            queue: undo.queue.clone().unwrap_or_else(|| regular.queue.clone()),
            needs: Box::default(),
            dependants: Box::default(),
            timeout_ms: undo.timeout.map_or(regular.timeout_ms, |limit| limit.0),
            retry: undo.retry.clone().map(Box::new),
            priority: regular.priority,
            start_within_ms: 0,
            fallback: None,
            on_failure: StepOnFailure::Fail,
            undoes: Some(Undo { of: of as u32, place: 0 }),
        });
    }
    if undo_of.iter().all(Option::is_none) {
        return Vec::new();
    }
    let sorted = sorted(&steps[..undo_of.len()]);
    let order: Vec<u32> = sorted.into_iter().rev().filter_map(|of| undo_of[of as usize]).collect();
    for (place, index) in (0..).zip(&order) {
        if let Some(undoes) = &mut steps[*index as usize].undoes {
            undoes.place = place;
        }
    }
    order
}

/// The numbers of the steps, each behind those it needs.
fn sorted(steps: &[PlanStep]) -> Vec<u32> {
    let mut left: Vec<usize> = steps.iter().map(|s| s.needs.len()).collect();
    let mut order: Vec<u32> = (0..steps.len() as u32).filter(|i| left[*i as usize] == 0).collect();
    let mut at = 0;
    while let Some(index) = order.get(at).copied() {
        at += 1;
        for dependant in &steps[index as usize].dependants {
            left[*dependant as usize] -= 1;
            if left[*dependant as usize] == 0 {
                order.push(*dependant);
            }
        }
    }
    order
}
