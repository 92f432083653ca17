//! Whether the history of a finished run keeps the rules.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::lab::{Api, Effects};

/// Holds a completed run against what must never happen: a gap between two transitions, a transition out of a final state, a
/// step that completed twice or never, an effect that no attempt of the history accounts for, none at all.
///
/// # Errors
/// What is wrong, with the history.
pub async fn audit(api: &Api, run: &str, effects: &Effects) -> anyhow::Result<()> {
    let history = api.history(run).await?;
    check(run, &history, effects).with_context(|| format!("{:#}", Value::Array(history.clone())))
}

fn check(run: &str, history: &[Value], effects: &Effects) -> anyhow::Result<()> {
    let mut places: HashMap<&str, (&str, usize, usize)> = HashMap::new();
    for entry in history {
        let (from, to) = (word(entry, "from")?, word(entry, "to")?);
        let (state, completed, dispatched) = places.entry(entry["step"].as_str().unwrap_or("")).or_insert((from, 0, 0));
        ensure!(*state == from, "a gap: {state} and then {entry}");
        if from != to {
            ensure!(!matches!(from, "completed" | "cancelled" | "skipped"), "out of a final state: {entry}");
            *completed += usize::from(to == "completed");
        }
        // Each wait for a worker is one dispatch at most; only what the history shows may have had an effect.
        *dispatched += usize::from(to == "queued" && (from != to || entry["reason"] != "begun"));
        *state = to;
    }
    let mut steps = 0;
    for (step, (state, completed, dispatched)) in places {
        ensure!(state == "completed" && completed == 1, "`{step}` is {state}, completed {completed} times");
        if step.is_empty() {
            continue;
        }
        steps += 1;
        let found = effects.of(run, step);
        let mut jobs: Vec<&str> = found.iter().map(|effect| effect.job.as_str()).collect();
        jobs.sort_unstable();
        jobs.dedup();
        ensure!(!found.is_empty(), "`{step}` completed without an effect");
        ensure!(jobs.len() == found.len(), "a job of `{step}` was done twice: {found:?}");
        ensure!(found.len() <= dispatched, "`{step}`: {found:?} but only {dispatched} dispatches");
    }
    ensure!(steps > 0, "no step in the history");
    Ok(())
}

fn word<'a>(entry: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    match entry[field].as_str() {
        Some(word) => Ok(word),
        None => bail!("no `{field}` in {entry}"),
    }
}
