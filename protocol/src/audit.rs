//! The audit store: one entry for each thing that an operator or an operator's program asked for, done or refused.
//!
//! Entries are only ever appended; retention alone takes them away. One about a run is written in the commit that decides the
//! command, to the stream of the run's partition; one that belongs to no partition goes to the fleet's own stream.

use serde::{Deserialize, Serialize};

use crate::{codec::VERSION, failure::cut};

/// Longest detail in bytes; a longer one is left out.
pub const DETAIL_BYTES_MAX: usize = 8 << 10;
/// Longest target in bytes; the rest is cut.
const TARGET_BYTES_MAX: usize = 400;
/// Longest text of a refusal in bytes; the rest is cut.
const REFUSAL_BYTES_MAX: usize = 1_000;

/// Words for what was asked. They are stable, and a reader accepts others: a newer program may have more.
pub mod action {
    /// Stop a run for good.
    pub const RUN_CANCEL: &str = "run.cancel";
    /// Hold a run.
    pub const RUN_SUSPEND: &str = "run.suspend";
    /// Let a suspended run go on.
    pub const RUN_RESUME: &str = "run.resume";
    /// Reopen a failed run.
    pub const RUN_RETRY: &str = "run.retry";
    /// Say what became of a step.
    pub const RUN_RESOLVE: &str = "run.resolve";
    /// Undo the completed steps of a failed run.
    pub const RUN_COMPENSATE: &str = "run.compensate";
    /// Close a dead letter for good.
    pub const LETTER_DISCARD: &str = "letter.discard";
    /// Begin a campaign over dead letters.
    pub const CAMPAIGN_BEGIN: &str = "campaign.begin";
    /// Hold a campaign.
    pub const CAMPAIGN_PAUSE: &str = "campaign.pause";
    /// Let a campaign go on.
    pub const CAMPAIGN_RESUME: &str = "campaign.resume";
    /// End a campaign.
    pub const CAMPAIGN_CANCEL: &str = "campaign.cancel";
    /// Put right what a check found.
    pub const DOCTOR_FIX: &str = "doctor.fix";
    /// Replay a dead letter.
    pub const LETTER_REPLAY: &str = "letter.replay";
    /// Add partitions.
    pub const PARTITIONS_ADD: &str = "partitions.add";
    /// Take an entry out of quarantine for good.
    pub const QUARANTINE_DISCARD: &str = "quarantine.discard";
    /// Register a version of a workflow.
    pub const WORKFLOW_REGISTER: &str = "workflow.register";
    /// Have a worker finish and leave.
    pub const WORKER_DRAIN: &str = "worker.drain";
}

/// What became of what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was done, or its intent is recorded.
    Done,
    /// It was refused, and changed nothing: why.
    Refused(String),
}

/// One entry of the audit store. Its id in the stream is its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Version of the message.
    pub v: u8,
    /// Who asked.
    pub actor: String,
    /// What was asked: a word of [`action`].
    pub action: String,
    /// What it is about, as kind and id: `run:<id>`, `letter:<id>`, `worker:<id>`.
    pub target: String,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What became of it.
    pub outcome: Verdict,
    /// More about it: JSON of at most [`DETAIL_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When, in Unix milliseconds, by the clock of whoever decided; only for showing.
    #[serde(default)]
    pub at_ms: u64,
}

impl AuditEntry {
    /// An entry about something that was done. The reason is within the limits already.
    pub fn new(actor: impl Into<String>, action: &str, target: String, at_ms: u64) -> Self {
        Self {
            v: VERSION,
            actor: actor.into(),
            action: action.to_owned(),
            target: cut(target, TARGET_BYTES_MAX),
            reason: None,
            outcome: Verdict::Done,
            detail: None,
            at_ms,
        }
    }

    /// With the asker's reason, if there is one.
    #[must_use]
    pub fn because(mut self, reason: Option<String>) -> Self {
        self.reason = reason;
        self
    }

    /// It was refused, if there is a text that says why.
    #[must_use]
    pub fn refused(mut self, why: Option<String>) -> Self {
        self.outcome = why.map_or(Verdict::Done, |why| Verdict::Refused(cut(why, REFUSAL_BYTES_MAX)));
        self
    }

    /// With more about it, which is JSON. One beyond [`DETAIL_BYTES_MAX`] is left out: half of it would be no JSON.
    #[must_use]
    pub fn with_detail(mut self, detail: String) -> Self {
        self.detail = Some(detail).filter(|detail| detail.len() <= DETAIL_BYTES_MAX);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn an_entry_of_a_newer_program_is_read_and_limits_hold() {
        let entry = AuditEntry::new("me", "gate.something_new", "x".repeat(1_000), 7)
            .refused(Some("y".repeat(5_000)))
            .with_detail(format!("\"{}\"", "z".repeat(DETAIL_BYTES_MAX)));
        let read: AuditEntry = codec::unpack(&codec::pack(&entry)).expect("it is ours");
        assert_eq!(read, entry);
        assert!(read.target.len() <= TARGET_BYTES_MAX && read.detail.is_none());
        assert!(matches!(read.outcome, Verdict::Refused(why) if why.len() <= REFUSAL_BYTES_MAX));
    }
}
