//! The audit entry of a command: it is staged with the answer, so that both are in the commit that decides the command.
//!
//! Submits have none: who submitted a run is in its history, and the hot path does not pay.

use stepfleet_protocol::{
    audit::{AuditEntry, action},
    codec,
    message::{Answer, Command, Resolution, Verb},
};

/// What somebody asked for, before it is decided.
#[derive(Debug)]
pub(super) struct Asked(AuditEntry);

impl Asked {
    /// By this command. Inputs are left out: they are the run's business, and may be large.
    pub(super) fn of(command: &Command) -> Self {
        let run = format!("run:{}", command.run);
        let (word, target, detail) = match &command.verb {
            Verb::Cancel => (action::RUN_CANCEL, run, None),
            Verb::Suspend { now } => {
                (action::RUN_SUSPEND, run, now.then(|| serde_json::json!({ "now": true }).to_string()))
            }
            Verb::Resume => (action::RUN_RESUME, run, None),
            Verb::Retry => (action::RUN_RETRY, run, None),
            Verb::RetryFrom { index } => {
                (action::RUN_RETRY, run, Some(serde_json::json!({ "from_step": index }).to_string()))
            }
            Verb::Resolve { index, resolution } => {
                let how = match resolution {
                    Resolution::Completed(_) => "completed",
                    Resolution::Failed(_) => "failed",
                };
                (action::RUN_RESOLVE, run, Some(serde_json::json!({ "step": index, "as": how }).to_string()))
            }
            Verb::Compensate => (action::RUN_COMPENSATE, run, None),
            Verb::Discard { index, letter } => {
                let detail = serde_json::json!({ "run": command.run, "step": index });
                (
                    action::LETTER_DISCARD,
                    format!("letter:{}-{letter}", command.run.partition()),
                    Some(detail.to_string()),
                )
            }
            Verb::Replay { index, letter, input } => {
                let detail = serde_json::json!({ "run": command.run, "step": index, "new_input": input.is_some() });
                let target = format!("letter:{}-{letter}", command.run.partition());
                (action::LETTER_REPLAY, target, Some(detail.to_string()))
            }
        };
        let entry = AuditEntry::new(command.actor.clone(), word, target, 0).because(command.reason.clone());
        Self(match detail {
            Some(detail) => entry.with_detail(detail),
            None => entry,
        })
    }

    /// The packed entry, with what became of it.
    pub(super) fn answered(self, answer: &Answer, now_ms: u64) -> Vec<u8> {
        let why = match answer {
            Answer::Done { .. } | Answer::Known { .. } => None,
            Answer::Conflict { message, .. } | Answer::Refused { message, .. } => Some(message.clone()),
            Answer::NotFound => Some("there is no such run".to_owned()),
            Answer::NoPlan => Some("the plan is not there".to_owned()),
        };
        codec::pack(&AuditEntry { at_ms: now_ms, ..self.0.refused(why) })
    }
}
