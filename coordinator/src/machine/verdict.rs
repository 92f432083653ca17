//! What becomes of a failed attempt: the one place where a failure meets the policies.
//!
//! [`judge`] is asked before anything is written, [`recall`] tells the same of an attempt that was decided long ago, from what
//! is stored of it, whatever the policies say now.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    failure::{Category, Failure},
    id::RunId,
    state::State,
};

use super::{retry, rules::Effective};

/// What is done about a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is tried again, at once or after a wait.
    Retry,
    /// It is of a kind that no retry mends, and there were tries left.
    Permanent,
    /// It was the last try.
    Exhausted,
    /// Nothing: the run is being stopped.
    None,
}

/// How bad a failure is. Beside the category it counts whether it is the first, a later or the last one of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It happens, and mends itself.
    Low,
    /// It does not mend itself at once.
    Medium,
    /// Work stands still.
    High,
    /// More than this work is in danger.
    Critical,
}

impl Severity {
    /// Of the failure number `tries` of a budget, after which the step gave up or not.
    pub const fn of(category: Category, tries: u32, gave_up: bool) -> Self {
        use Severity::{Critical, High, Low, Medium};
        let [first, later, last] = match category {
            Category::Transient | Category::Timeout => [Low, Medium, High],
            Category::RateLimited => [Low, Low, High],
            Category::System => [High, High, Critical],
            Category::WorkerLost => [Low, Medium, Critical],
            Category::Data => [Medium, Medium, Medium],
            Category::Permanent => [High, High, High],
        };
        if gave_up {
            last
        } else if tries > 1 {
            later
        } else {
            first
        }
    }
}

/// A failed attempt, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What is done.
    pub action: Action,
    /// Where the step stands then.
    pub final_state: State,
    /// The wait before the next try, in milliseconds; none if there is no next try.
    #[serde(default)]
    pub backoff_applied_ms: Option<u64>,
    /// When the next try is due, in Unix milliseconds of the server; none if there is no next try.
    #[serde(default)]
    pub next_retry_at_ms: Option<u64>,
    /// Whether a retry could mend it, as the handler or else the policy of its category says.
    pub is_retryable: bool,
    /// Whether it was the last try of the budget.
    pub is_final_attempt: bool,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence: `Retryable error (timeout): no answer in 5s`.
    pub summary: String,
}

/// A failed attempt before its verdict.
#[derive(Debug, Clone, Copy)]
pub struct Tried<'a> {
    /// The run, and the number of the step.
    pub of: (RunId, u32),
    /// Counted tries so far, this one among them.
    pub attempts: u32,
    /// Those of them that belong to earlier budgets.
    pub spent: u32,
    /// When it failed, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// The run is being stopped: nothing is tried again.
    pub stopping: bool,
    /// What went wrong.
    pub failure: &'a Failure,
}

/// Decides a failed attempt that counts. `classified` says whether categories have policies at all (see
/// [`Rules::classifies`](super::rules::Rules::classifies)).
pub fn judge(by: &Effective, classified: bool, tried: &Tried<'_>) -> Verdict {
    let failure = tried.failure;
    // A handler that knows better than its category has the last word.
    let is_retryable = failure.retryable.unwrap_or(by.retry.value);
    let bug = u32::from(crate::mutants::mutant("one_try_too_many"));
    let is_final_attempt = tried.attempts >= tried.spent.saturating_add(by.max_attempts.value) + bug;
    let again = is_retryable && !is_final_attempt;
    let wait_ms = (again && !tried.stopping)
        .then(|| retry::delay_ms(by, tried.of, tried.attempts - tried.spent, failure.retry_after_ms));
    let (action, final_state) = match (tried.stopping, again, is_final_attempt) {
        (true, _, _) => (Action::None, State::Cancelled),
        (false, true, _) => (Action::Retry, State::Retrying),
        (false, false, true) => (Action::Exhausted, State::Failed),
        (false, false, false) => (Action::Permanent, State::Failed),
    };
    Verdict {
        action,
        final_state,
        backoff_applied_ms: wait_ms,
        next_retry_at_ms: wait_ms.map(|ms| tried.at_ms.saturating_add(ms)),
        is_retryable,
        is_final_attempt,
        severity: Severity::of(failure.category, tried.attempts - tried.spent, !again),
        summary: summary(failure, is_retryable, classified),
    }
}

/// What became of an attempt that was decided long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was tried again.
    TriedAgain,
    /// The step gave up.
    GaveUp,
    /// The step was stopped.
    Stopped,
}

/// The verdict on an attempt that was decided long ago, the failure number `tries` of its budget; without the wait, which nobody
/// kept.
pub fn recall(failure: &Failure, tries: u32, fate: Fate) -> Verdict {
    let mends = !matches!(failure.category, Category::Data | Category::Permanent);
    let is_retryable = fate == Fate::TriedAgain || failure.retryable.unwrap_or(mends);
    let (action, final_state) = match fate {
        Fate::TriedAgain => (Action::Retry, State::Retrying),
        Fate::GaveUp if is_retryable => (Action::Exhausted, State::Failed),
        Fate::GaveUp => (Action::Permanent, State::Failed),
        Fate::Stopped => (Action::None, State::Cancelled),
    };
    Verdict {
        action,
        final_state,
        backoff_applied_ms: None,
        next_retry_at_ms: None,
        is_retryable,
        is_final_attempt: action == Action::Exhausted,
        severity: Severity::of(failure.category, tries, fate == Fate::GaveUp),
        summary: summary(failure, is_retryable, true),
    }
}

fn summary(failure: &Failure, is_retryable: bool, classified: bool) -> String {
    let (category, message) = (failure.category, &failure.message);
    match (is_retryable, classified) {
        (true, true) => format!("Retryable error ({category}): {message}"),
        (true, false) => format!("Retryable error with legacy backoff ({category}): {message}"),
        (false, _) => format!("Permanent error ({category}): {message}"),
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::{id::PartitionId, name::Name};

    use super::*;
    use crate::machine::rules::Rules;

    fn verdict(failure: &Failure, attempts: u32, stopping: bool) -> Verdict {
        let handler = Name::new("h").expect("a legal name");
        let by = Rules::default().resolve((None, None), Some(&handler), failure.category);
        let of = (RunId::new(PartitionId(0), 1, 1), 0);
        judge(&by, true, &Tried { of, attempts, spent: 0, at_ms: 1_000, stopping, failure })
    }

    #[test]
    fn a_permanent_failure_is_exhausted_only_in_the_last_try() {
        let permanent = Failure::new(Category::Permanent, "no such card");
        let [first, last] = [1, 3].map(|attempts| verdict(&permanent, attempts, false));
        assert_eq!((first.action, first.is_final_attempt), (Action::Permanent, false));
        assert_eq!((last.action, last.is_final_attempt), (Action::Exhausted, true));
        for verdict in [first, last] {
            assert_eq!((verdict.backoff_applied_ms, verdict.next_retry_at_ms), (None, None));
            assert_eq!((verdict.final_state, verdict.is_retryable), (State::Failed, false));
            assert_eq!(verdict.summary, "Permanent error (permanent): no such card");
        }
    }

    #[test]
    fn a_retry_has_a_wait_and_a_time_and_the_last_try_has_none() {
        let limited = Failure { retry_after_ms: Some(7_000_000), ..Failure::new(Category::RateLimited, "slow down") };
        let again = verdict(&limited, 1, false);
        assert_eq!((again.action, again.final_state), (Action::Retry, State::Retrying));
        assert_eq!((again.backoff_applied_ms, again.next_retry_at_ms), (Some(7_000_000), Some(7_001_000)));
        assert_eq!(again.summary, "Retryable error (rate_limited): slow down");
        let last = verdict(&limited, 3, false);
        assert_eq!((last.action, last.backoff_applied_ms, last.is_retryable), (Action::Exhausted, None, true));
        let stopped = verdict(&limited, 1, true);
        assert_eq!((stopped.action, stopped.final_state), (Action::None, State::Cancelled));
        assert_eq!(stopped.next_retry_at_ms, None, "what is stopped is not tried again");
    }

    #[test]
    fn severity_follows_category_and_try() {
        let row = |c| [Severity::of(c, 1, false), Severity::of(c, 2, false), Severity::of(c, 3, true)];
        let told: Vec<String> = Category::ALL.map(|c| format!("{c} {:?}", row(c))).into();
        assert_eq!(
            told,
            [
                "transient [Low, Medium, High]",
                "rate_limited [Low, Low, High]",
                "timeout [Low, Medium, High]",
                "system [High, High, Critical]",
                "worker_lost [Low, Medium, Critical]",
                "data [Medium, Medium, Medium]",
                "permanent [High, High, High]",
            ]
        );
    }

    #[test]
    fn verdicts_go_through_json_unchanged() {
        for category in Category::ALL {
            for (attempts, stopping) in [(1, false), (3, false), (1, true)] {
                let before = verdict(&Failure::new(category, "no luck"), attempts, stopping);
                let text = serde_json::to_string(&before).expect("serializable");
                assert_eq!(serde_json::from_str::<Verdict>(&text).expect("its own text"), before);
            }
        }
        let words = [Action::Retry, Action::Permanent, Action::Exhausted, Action::None];
        let words = serde_json::to_string(&words).expect("serializable");
        assert_eq!(words, r#"["retry","permanent","exhausted","none"]"#);
    }

    #[test]
    fn what_is_recalled_agrees_with_what_was_judged() {
        for category in Category::ALL.into_iter().filter(|c| *c != Category::WorkerLost) {
            for attempts in 1..=3 {
                let failure = Failure::new(category, "no luck");
                let judged = verdict(&failure, attempts, false);
                let fate = if judged.action == Action::Retry { Fate::TriedAgain } else { Fate::GaveUp };
                let recalled = recall(&failure, attempts, fate);
                assert_eq!(recalled.severity, judged.severity, "{category} {attempts}");
                assert_eq!(recalled.summary, judged.summary, "{category} {attempts}");
                assert_eq!(recalled.final_state, judged.final_state, "{category} {attempts}");
            }
        }
    }
}
