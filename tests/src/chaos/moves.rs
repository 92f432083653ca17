//! The checker of single runs: only legal moves, nothing committed twice, nothing done that nobody dispatched.
//!
//! The table of moves is written here once more on purpose: a checker that asks the product what is legal finds
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::chaos::effects::{Effect, Phase};

/// Where each state may lead.
const TABLE: [(&str, &str); 10] = [
    ("created", "queued failed cancelled skipped"),
    ("queued", "processing suspended cancelled"),
    ("processing", "completed failed waiting suspended cancelled queued"),
    ("waiting", "processing failed suspended cancelled"),
    ("failed", "retrying suspended cancelled"),
    ("retrying", "queued suspended cancelled"),
    ("suspended", "queued failed completed cancelled"),
    ("completed", ""),
    ("cancelled", ""),
    ("skipped", ""),
];
/// From where a step may begin once more, as a new generation.
const FINISHED: [&str; 4] = ["completed", "failed", "cancelled", "skipped"];

/// What the history and the effects of one run show. Lists hold sentences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// The state of the run at the end of its history.
    pub state: String,
    /// Moves that the table does not have, and gaps.
    pub illegal: Vec<String>,
    /// Steps that completed twice in one generation.
    pub doubled: Vec<String>,
    /// Effects of more jobs than were dispatched, and completed steps without an effect.
    pub unaccounted: Vec<String>,
    /// Effects of a step beyond the first and beyond those that follow a failure: at-least-once delivery.
    pub again: usize,
}

/// What is known of a step, or of the run.
struct Place<'a> {
    state: &'a str,
    generation: usize,
    completed: usize,
    dispatched: usize,
}

/// Judges a run by its history, as the API tells it, and by what handlers wrote.
#[must_use]
pub fn judge(history: &[Value], effects: &[&Effect]) -> Account {
    let mut account = Account::default();
    let mut places: BTreeMap<&str, Place> = BTreeMap::new();
    for entry in history {
        let word = |field: &str| entry[field].as_str().unwrap_or_default();
        let (name, from, to) = (word("step"), word("from"), word("to"));
        let fresh = Place { state: "created", generation: 1, completed: 0, dispatched: 0 };
        let place = places.entry(name).or_insert(fresh);
        if place.state != from {
            account.illegal.push(format!("`{name}` was {} and then {from} -> {to}", place.state));
        }
        let reopened = to == "created" && FINISHED.contains(&from) && !name.is_empty();
        if reopened {
            (place.generation, place.completed) = (place.generation + 1, 0);
        } else if from != to && !is_legal(from, to) {
            account.illegal.push(format!("`{name}` {from} -> {to} ({})", word("reason")));
        }
        if to == "completed" && from != to {
            place.completed += 1;
            if place.completed > 1 {
                account.doubled.push(format!("`{name}` completed {} times", place.completed));
            }
        }
        // Each wait for a worker is one dispatch at most.
        place.dispatched += usize::from(to == "queued" && (from != to || word("reason") != "begun"));
        place.state = to;
    }
    if let Some(run) = places.remove("") {
        run.state.clone_into(&mut account.state);
    }
    compare(&places, effects, &mut account);
    account
}

/// Holds a run against its workflow: a step is queued for the first time when all that it needs is completed, a run that
/// completed has completed every step, and nobody suspends anything here.
pub fn against(needs: &[(&str, &[&str])], history: &[Value], account: &mut Account) {
    let mut states: BTreeMap<&str, &str> = BTreeMap::new();
    for entry in history {
        let word = |field: &str| entry[field].as_str().unwrap_or_default();
        let (step, to) = (word("step"), word("to"));
        let needed = needs.iter().find(|(name, _)| *name == step).map_or(&[][..], |(_, needed)| *needed);
        let missing = needed.iter().find(|name| states.get(*name) != Some(&"completed"));
        if let (("created", "queued"), Some(missing)) = ((word("from"), to), missing) {
            account.illegal.push(format!("`{step}` was queued before `{missing}` completed"));
        }
        states.insert(step, to);
    }
    let open = needs.iter().find(|(name, _)| states.get(name) != Some(&"completed"));
    if let ("completed", Some((name, _))) = (account.state.as_str(), open) {
        account.illegal.push(format!("it completed without its step `{name}`"));
    }
    if account.state == "suspended" {
        account.illegal.push("it is suspended, and nobody wished so".into());
    }
}

/// Holds what was done against what was dispatched.
fn compare(places: &BTreeMap<&str, Place>, effects: &[&Effect], account: &mut Account) {
    let begun: Vec<&Effect> = effects.iter().copied().filter(|effect| effect.phase == Phase::Begun).collect();
    account.again = again(effects);
    let mut jobs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for effect in &begun {
        jobs.entry(&effect.step).or_default().insert(&effect.job);
    }
    for (name, jobs) in &jobs {
        let dispatched = places.get(name).map_or(0, |place| place.dispatched);
        if jobs.len() > dispatched {
            account.unaccounted.push(format!("`{name}` has effects of {} jobs, dispatched {dispatched}", jobs.len()));
        }
    }
    for (name, place) in places {
        if place.state == "completed" && !jobs.contains_key(name) {
            account.unaccounted.push(format!("`{name}` completed without an effect"));
        }
    }
}

/// How often a step was begun once more though it had not failed.
fn again(effects: &[&Effect]) -> usize {
    let mut counts: BTreeMap<(&str, u32), (usize, usize)> = BTreeMap::new();
    for effect in effects {
        let (begun, failed) = counts.entry((&effect.step, effect.generation)).or_default();
        match effect.phase {
            Phase::Begun => *begun += 1,
            Phase::Failed => *failed += 1,
            Phase::Done => {}
        }
    }
    counts.values().map(|(begun, failed)| begun.saturating_sub(failed + 1)).sum()
}

fn is_legal(from: &str, to: &str) -> bool {
    TABLE.iter().any(|(state, next)| *state == from && next.split(' ').any(|state| state == to))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `a created queued needs_met`, one a line; `run` for the run itself.
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

    fn effect(attempt: u32, job: &str) -> Effect {
        let (run, step, worker) = ("r".into(), "a".into(), "w".into());
        Effect { at_ns: 1, phase: Phase::Begun, run, step, generation: 1, attempt, job: job.into(), worker }
    }

    fn of(text: &str, effects: &[Effect]) -> Account {
        judge(&history(text), &effects.iter().collect::<Vec<_>>())
    }

    const BEGUN: &str = "run created queued submitted\na created queued needs_met\nrun queued processing begun\n\
        a queued processing begun\n";
    const ENDED: &str = "a processing completed done\nrun processing completed done\n";

    #[test]
    fn a_run_that_went_straight_to_its_end_is_well() {
        let good = Account { state: "completed".into(), ..Account::default() };
        assert_eq!(of(&format!("{BEGUN}{ENDED}"), &[effect(1, "j1")]), good);
    }

    #[test]
    fn a_move_that_is_not_in_the_table_is_illegal() {
        let account = of(&format!("{BEGUN}{ENDED}run completed processing begun\n"), &[effect(1, "j1")]);
        assert_eq!(account.illegal.len(), 1, "{account:?}");
        let account = of("run created completed done\n", &[]);
        assert_eq!(account.illegal.len(), 1, "{account:?}");
        let account = of(&format!("{BEGUN}{ENDED}run completed created again\n"), &[effect(1, "j1")]);
        assert_eq!(account.illegal.len(), 1, "a run has no generations: {account:?}");
    }

    #[test]
    fn a_run_that_does_not_follow_its_workflow_is_illegal() {
        let judged = |text: &str, needs: &[(&str, &[&str])]| {
            let mut account = of(text, &[effect(1, "j1")]);
            against(needs, &history(text), &mut account);
            account.illegal.len()
        };
        let whole = format!("{BEGUN}{ENDED}");
        assert_eq!(judged(&whole, &[("a", &[])]), 0);
        assert_eq!(judged(&whole, &[("a", &[]), ("b", &["a"])]), 1, "`b` was forgotten");
        assert_eq!(
            judged(&format!("{BEGUN}b created queued needs_met\n"), &[("a", &[]), ("b", &["a"])]),
            1,
            "too early"
        );
        assert_eq!(judged(&format!("{BEGUN}run processing suspended quarantined\n"), &[("a", &[])]), 1);
    }

    #[test]
    fn a_gap_is_illegal() {
        let account = of(&format!("{BEGUN}a retrying queued due\n"), &[]);
        assert_eq!(account.illegal.len(), 1, "{account:?}");
        assert_eq!(of("run queued processing begun\n", &[]).illegal.len(), 1, "it begins in the middle");
    }

    #[test]
    fn a_step_that_completes_twice_is_doubled_unless_it_began_once_more() {
        let account = of(&format!("{BEGUN}{ENDED}a completed completed late\n"), &[effect(1, "j1")]);
        assert_eq!((account.doubled.len(), account.illegal.len()), (0, 0), "a remark: {account:?}");
        let twice = format!("{BEGUN}a processing completed done\na processing completed done\n");
        assert_eq!(of(&twice, &[effect(1, "j1")]).doubled.len(), 1);
        let once_more = "a completed created retried_from\na created queued needs_met\na queued processing begun\n\
            a processing completed done\n";
        let account = of(&format!("{BEGUN}{ENDED}{once_more}"), &[effect(1, "j1"), effect(1, "j2")]);
        assert_eq!((account.doubled.len(), account.illegal.len()), (0, 0), "{account:?}");
    }

    #[test]
    fn an_effect_that_nobody_dispatched_is_unaccounted_for() {
        let account = of(&format!("{BEGUN}{ENDED}"), &[effect(1, "j1"), effect(1, "j2")]);
        assert_eq!((account.unaccounted.len(), account.again), (1, 1), "{account:?}");
        assert_eq!(of(&format!("{BEGUN}{ENDED}"), &[]).unaccounted.len(), 1, "completed without an effect");
        assert_eq!(of("run created queued submitted\n", &[effect(1, "j1")]).unaccounted.len(), 1, "never dispatched");
    }

    #[test]
    fn a_job_that_was_lost_and_dispatched_again_is_executed_again_and_that_is_legal() {
        let lost = format!("{BEGUN}a processing queued worker_lost\na queued processing begun\n{ENDED}");
        let account = of(&lost, &[effect(1, "j1"), effect(1, "j2")]);
        let good = Account { state: "completed".into(), again: 1, ..Account::default() };
        assert_eq!(account, good);
        let failed = Effect { phase: Phase::Failed, ..effect(1, "j1") };
        let retried = "a processing failed attempt_failed\na failed retrying backoff\na retrying queued due\n";
        let retried = format!("{BEGUN}{retried}a queued processing begun\n{ENDED}");
        let account = of(&retried, &[effect(1, "j1"), failed, effect(2, "j2")]);
        assert_eq!(account, Account { again: 0, ..good }, "another try after a failure");
        let account = of(&format!("{BEGUN}{ENDED}"), &[effect(1, "j1"), effect(1, "j1")]);
        assert_eq!((account.unaccounted.len(), account.again), (0, 1), "one job, delivered twice: {account:?}");
    }
}
