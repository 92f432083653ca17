//! The built-in subscriber: a log line for whatever a person should look at.

use futures::{FutureExt, future::BoxFuture};
use stepfleet_protocol::audit::AuditEntry;

use super::{FleetEvent, Notice, Refusal, Subscriber};
use crate::machine::decision::Why;

/// Writes a structured log line, at the level `warn`, for each step that escalates, and for each change of a circuit breaker or
/// of a paused queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct EscalationLog;

/// Whether a transition for this reason is something that a person should look at.
pub fn is_escalation(why: Why) -> bool {
    matches!(why, Why::GaveUp | Why::Escalated)
}

impl Subscriber for EscalationLog {
    fn name(&self) -> &str {
        "escalation-log"
    }

    fn wants(&self, why: Why) -> bool {
        is_escalation(why)
    }

    fn deliver<'a>(&'a self, notices: &'a [Notice]) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            notices.iter().for_each(tell);
            Ok(())
        }
        .boxed()
    }

    fn wants_of_fleet(&self, action: &str) -> bool {
        action.starts_with("breaker.") || action.starts_with("queue.")
    }

    fn deliver_of_fleet<'a>(&'a self, event: &'a FleetEvent) -> BoxFuture<'a, Result<(), Refusal>> {
        let AuditEntry { action, target, actor, reason, at_ms, .. } = &event.change;
        let reason = reason.as_deref().unwrap_or_default();
        tracing::warn!(action, target, actor, reason, at_ms, "a gate has changed");
        futures::future::ready(Ok(())).boxed()
    }
}

/// A line for each of its steps; what the run does about it is in its history.
fn tell(notice: &Notice) {
    let workflow = notice.workflow.as_ref().map_or("", |workflow| workflow.workflow.as_str());
    for transition in notice.transitions.iter().filter(|t| is_escalation(t.why)) {
        let Some(index) = transition.step else { continue };
        tracing::warn!(
            run = %notice.run,
            step = notice.step_name(index).unwrap_or_default(),
            step_index = index,
            workflow,
            reason = transition.note.as_deref().unwrap_or_default(),
            why = ?transition.why,
            attempt = transition.attempt,
            at_ms = transition.at_ms,
            "a step needs attention"
        );
    }
}
