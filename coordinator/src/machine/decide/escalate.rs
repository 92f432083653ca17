//! Failures that somebody has to know of: a remark in history and outbox, from which subscribers are told. No state changes.
//!
//! A step escalates once in a budget when it has failed as often as `escalate_after` says, and when it gives up if `notify`
//! says so. Losses do not count, as they are no tries; giving up because of them does.

use std::sync::Arc;

use stepfleet_protocol::failure::Category;

use super::{
    super::{
        decision::{Transition, Why},
        rules::Effective,
        run::AttemptError,
    },
    Deciding,
};

impl Deciding<'_> {
    /// After the failure of a try was kept: whether it is the one that escalates.
    pub(super) fn escalate_after(&mut self, index: u32, by: &Effective) {
        let threshold = by.escalate_after.value;
        let step = self.run.step(index);
        let failures = step.attempts - step.spent;
        if threshold == 0 || failures < threshold || self.run.ending.is_some() || self.has_escalated(index) {
            return;
        }
        self.escalated(index, format!("failure {failures} of this budget, escalated from {threshold} on"));
    }

    /// After a step gave up: whether somebody is told.
    pub(super) fn escalate_end(&mut self, index: u32, category: Category) {
        let plan = self.run.plan.clone();
        if self.rules.effective(&plan, &plan.steps[index as usize], category).notify.value {
            self.escalated(index, "the step gave up".into());
        }
    }

    /// Whether an earlier failure of the budget escalated, by the present rules.
    fn has_escalated(&self, index: u32) -> bool {
        let (step, plan) = (self.run.step(index), &self.run.plan);
        let earlier = |e: &&AttemptError| {
            let counts = e.failure.category != Category::WorkerLost;
            counts && e.index == index && e.attempt > step.spent && e.attempt < step.attempts
        };
        self.run.errors.iter().filter(earlier).any(|e| {
            let by = self.rules.effective(plan, &plan.steps[index as usize], e.failure.category);
            (1..=e.attempt - step.spent).contains(&by.escalate_after.value)
        })
    }

    fn escalated(&mut self, index: u32, what: String) {
        let last = self.run.errors.iter().rev().find(|e| e.index == index);
        let (worker, attempt) = last.map_or((None, 0), |e| (e.worker.clone(), e.attempt));
        let error = last.map(|e| format!(": {}", super::outcome::short(&e.failure))).unwrap_or_default();
        let note: Arc<str> = format!("{what}{error}").into();
        let (state, at_ms) = (self.run.step(index).state, self.now_ms);
        self.out.transitions.push(Transition {
            step: Some(index),
            from: state,
            to: state,
            at_ms,
            attempt,
            why: Why::Escalated,
            worker,
            actor: None,
            note: Some(note),
        });
    }
}
