//! The built-in subscriber: a log line for whatever a person should look at.

use futures::{FutureExt, future::BoxFuture};

use super::{Notice, Refusal, Subscriber};
use crate::machine::decision::Why;

/// Writes a structured log line, at the level `warn`, for each step that escalates.
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
