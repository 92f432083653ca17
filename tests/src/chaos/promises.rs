//! The checker of what clients were promised beside the submit itself: a cancel, a retry or a replay that was answered
//! with success is in the history, and a run fails only if something told it to.

use serde_json::Value;

use crate::chaos::work::Wish;

/// Workers that may die with one step: the one after it is a dead letter, `poison`. It is written here once more on
/// purpose.
const LOSSES: usize = 3;

/// A wish and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wished {
    /// Of which run.
    pub run: String,
    /// What.
    pub wish: Wish,
    /// The status of the answer, which is one that says what became of it: 200, 404 or 409.
    pub status: u16,
}

/// Why a run may have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its input told a step to.
    Told,
    /// So many workers died with one step that it is poison.
    Losses,
}

impl Cause {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Told => "as the input told a step to",
            Self::Losses => "as three workers died with one step",
        }
    }
}

/// Holds an answered wish against the history of its run; what was promised and is not there.
#[must_use]
pub fn broken(wished: &Wished, history: &[Value]) -> Option<String> {
    let wish = wished.wish;
    if wished.status == 404 {
        return Some(format!("{wish:?}: the API did not know it, and it is there"));
    }
    if wished.status != 200 {
        return None;
    }
    let is_kept = match wish {
        Wish::None => true,
        // One that had completed is answered with a conflict, and a failed one is cancelled all the same.
        Wish::Cancel { .. } => state(history) == "cancelled",
        Wish::Retry | Wish::Replay | Wish::RetryFrom => {
            history.iter().any(|entry| matches!(entry["reason"].as_str(), Some("retried" | "replayed")))
        }
    };
    (!is_kept).then(|| format!("{wish:?} was acknowledged and is lost: the run is {}", state(history)))
}

/// By which rules a run has failed, once for each time that it did; the sentence tells of a failure for which there is
/// none. `told`: its input tells a step to fail for good, which the step does once.
///
/// # Errors
/// It failed, and nothing told it to.
pub fn causes(history: &[Value], told: bool) -> Result<Vec<Cause>, String> {
    let failures = history.iter().filter(|e| e["step"].is_null() && e["to"] == "failed" && e["from"] != "failed");
    let mut causes = Vec::new();
    for failure in failures {
        if told && causes.is_empty() {
            causes.push(Cause::Told);
        } else if most_losses(history) >= LOSSES {
            causes.push(Cause::Losses);
        } else {
            let gave_up = history.iter().rfind(|entry| !entry["step"].is_null() && entry["to"] == "failed");
            return Err(format!("it failed and nothing told it to: {failure}, {}", gave_up.unwrap_or(&Value::Null)));
        }
    }
    Ok(causes)
}

/// The most workers that died with one step.
fn most_losses(history: &[Value]) -> usize {
    let is_loss = |entry: &&Value| entry["reason"] == "worker_lost";
    let steps = history.iter().filter(is_loss).map(|entry| &entry["step"]);
    steps.map(|step| history.iter().filter(is_loss).filter(|entry| entry["step"] == *step).count()).max().unwrap_or(0)
}

fn state(history: &[Value]) -> &str {
    history.iter().rev().find(|entry| entry["step"].is_null()).and_then(|entry| entry["to"].as_str()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `b processing failed attempt_failed`, one a line; `run` for the run itself.
    fn history(text: &str) -> Vec<Value> {
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mut entry = json!({ "from": words[1], "to": words[2], "reason": words[3] });
            if words[0] != "run" {
                entry["step"] = json!(words[0]);
            }
            entry
        };
        text.lines().filter(|l| !l.trim().is_empty()).map(line).collect()
    }

    fn wished(wish: Wish, status: u16) -> Wished {
        Wished { run: "r".into(), wish, status }
    }

    const CANCEL: Wish = Wish::Cancel { after_ms: 1 };
    const WENT: &str = "run created queued submitted\nrun queued processing begun\n";
    const LOST: &str = "b processing queued worker_lost\n";
    const FAILED: &str = "b processing failed gave_up\nrun processing failed gave_up\n";

    #[test]
    fn a_cancel_that_was_acknowledged_ends_the_run_as_cancelled_whatever_it_was() {
        let cancelled = history(&format!("{WENT}run processing cancelled cancelled\n"));
        let completed = history(&format!("{WENT}run processing completed done\n"));
        assert_eq!(broken(&wished(CANCEL, 200), &cancelled), None);
        assert!(broken(&wished(CANCEL, 200), &completed).is_some(), "it was cancelled and went on");
        assert!(broken(&wished(CANCEL, 200), &history(WENT)).is_some(), "it is still at work");
        assert!(broken(&wished(CANCEL, 200), &history(&format!("{WENT}{FAILED}"))).is_some(), "it stays failed");
        assert_eq!(broken(&wished(CANCEL, 409), &completed), None, "it was told that it is not");
        assert!(broken(&wished(CANCEL, 404), &completed).is_some(), "it is there");
    }

    #[test]
    fn a_retry_or_a_replay_that_was_acknowledged_is_in_the_history() {
        let failed = history(&format!("{WENT}{FAILED}"));
        for (wish, reason) in [(Wish::Retry, "retried"), (Wish::Replay, "replayed"), (Wish::RetryFrom, "retried")] {
            assert!(broken(&wished(wish, 200), &failed).is_some(), "{wish:?} is lost");
            let again = history(&format!("{WENT}{FAILED}b failed retrying {reason}\n"));
            assert_eq!(broken(&wished(wish, 200), &again), None);
            assert_eq!(broken(&wished(wish, 409), &failed), None);
        }
    }

    #[test]
    fn a_run_that_fails_was_told_to_or_lost_three_workers() {
        let of = |text: &str, told| causes(&history(text), told);
        assert_eq!(of(WENT, false), Ok(vec![]), "it did not fail");
        assert_eq!(of(&format!("{WENT}{FAILED}"), true), Ok(vec![Cause::Told]));
        assert!(of(&format!("{WENT}{FAILED}"), false).is_err(), "nothing told it to");
        let losses = |count: usize| format!("{WENT}{}{FAILED}", LOST.repeat(count));
        assert!(of(&losses(2), false).is_err(), "two losses are none too many");
        assert_eq!(of(&losses(3), false), Ok(vec![Cause::Losses]));
        let elsewhere = format!("{WENT}{LOST}{LOST}a processing queued worker_lost\n{FAILED}");
        assert!(of(&elsewhere, false).is_err(), "losses of two steps are not added up");
        let again = format!("{WENT}{FAILED}run failed retrying retried\nrun retrying queued due\n{FAILED}");
        assert!(of(&again, true).is_err(), "a step that was told to fail does so once");
    }
}
