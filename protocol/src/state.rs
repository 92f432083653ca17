//! The states of runs and steps, and which moves between them are legal.

use serde::{Deserialize, Serialize};

/// Where a run or a step stands. One table for both; the number is the packed form and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum State {
    /// Known, with needs that are not met yet.
    Created = 0,
    /// Ready: in the ready set, at a gate or on a job stream.
    Queued = 1,
    /// At work on a worker (a step), or with a step begun (a run).
    Processing = 2,
    /// Waits for something outside.
    Waiting = 3,
    /// Done. Final.
    Completed = 4,
    /// Gave up. Finished, but can be reopened by retry or replay, or held by suspend.
    Failed = 5,
    /// Waits for its next attempt.
    Retrying = 6,
    /// Held for a person.
    Suspended = 7,
    /// Stopped for good. Final.
    Cancelled = 8,
    /// Will not be done, as a step it needs failed. Final, steps only.
    Skipped = 9,
}

impl State {
    /// Every state, in the order of the packed form.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Queued,
        Self::Processing,
        Self::Waiting,
        Self::Completed,
        Self::Failed,
        Self::Retrying,
        Self::Suspended,
        Self::Cancelled,
        Self::Skipped,
    ];

    /// From the packed form.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// The name, as in JSON, keys and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Retrying => "retrying",
            Self::Suspended => "suspended",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }

    /// No move leads out.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Skipped)
    }

    /// Nothing more happens by itself: final, or failed.
    pub const fn is_finished(self) -> bool {
        self.is_final() || matches!(self, Self::Failed)
    }

    /// Whether the move from `self` to `to` is legal.
    pub const fn may_become(self, to: Self) -> bool {
        use State::{Cancelled, Completed, Created, Failed, Processing, Queued, Retrying, Skipped, Suspended, Waiting};
        match self {
            Created => matches!(to, Queued | Failed | Cancelled | Skipped),
            Queued => matches!(to, Processing | Suspended | Cancelled),
            Processing => matches!(to, Completed | Failed | Waiting | Suspended | Cancelled | Queued),
            Waiting => matches!(to, Processing | Failed | Suspended | Cancelled),
            Failed => matches!(to, Retrying | Suspended | Cancelled),
            Retrying => matches!(to, Queued | Suspended | Cancelled),
            Suspended => matches!(to, Queued | Failed | Completed | Cancelled),
            Completed | Cancelled | Skipped => false,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown state `{0}`: allowed are created, queued, processing, waiting, completed, failed, retrying, suspended, cancelled, skipped"
)]
pub struct UnknownState(pub String);

impl std::str::FromStr for State {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| UnknownState(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the design, word for word.
    const TABLE: &str = "
        created    -> queued | failed | cancelled | skipped
        queued     -> processing | suspended | cancelled
        processing -> completed | failed | waiting | suspended | cancelled | queued
        waiting    -> processing | failed | suspended | cancelled
        failed     -> retrying | suspended | cancelled
        retrying   -> queued | suspended | cancelled
        suspended  -> queued | failed | completed | cancelled
        completed  ->
        cancelled  ->
        skipped    ->";

    #[test]
    fn the_legal_moves_are_the_table_of_the_design_and_no_others() {
        let mut rows = 0;
        for line in TABLE.lines().filter(|l| !l.trim().is_empty()) {
            let (from, to) = line.split_once("->").expect("a row");
            let from: State = from.trim().parse().expect("a state");
            let to: Vec<State> =
                to.split('|').filter(|w| !w.trim().is_empty()).map(|w| w.trim().parse().expect("a state")).collect();
            let legal: Vec<State> = to.iter().copied().filter(|to| from.may_become(*to)).collect();
            assert_eq!(legal, to, "from {from}");
            assert_eq!(State::ALL.into_iter().filter(|to| from.may_become(*to)).count(), to.len(), "from {from}");
            assert_eq!(from.is_final(), to.is_empty(), "final is what has no way out: {from}");
            rows += 1;
        }
        assert_eq!(rows, State::ALL.len(), "every state has its row");
    }

    #[test]
    fn a_state_keeps_its_number_and_its_name() {
        for (number, state) in (0u8..).zip(State::ALL) {
            assert_eq!((state as u8, State::from_u8(number)), (number, Some(state)));
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).expect("a word"), state.as_str());
        }
        assert_eq!(State::from_u8(10), None);
        assert!("Queued".parse::<State>().is_err());
    }
}
