//! Many small runs whose every effect is noted, to see what becomes of them while something breaks.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{Api, Effects, audit},
    wait,
};

/// How long all runs may take, what breaks included.
pub(crate) const ALL: Duration = Duration::from_secs(90);

/// A chain of five marked steps.
pub(crate) fn chain() -> Value {
    let step = |needs: &[&str]| json!({ "handler": "mark", "needs": needs, "with": { "ms": 5 } });
    json!({ "workflow": "chain5", "steps":
        { "a": step(&[]), "b": step(&["a"]), "c": step(&["b"]), "d": step(&["c"]), "e": step(&["d"]) } })
}

/// Submits `count` chains at once; their ids.
pub(crate) async fn submit(api: &Api, count: usize) -> anyhow::Result<Vec<String>> {
    api.register(&chain()).await?;
    let runs = api.submit_many("chain5", count).await?;
    ensure!(runs.len() == count, "{} of {count} taken", runs.len());
    Ok(runs)
}

/// Waits until so many steps began.
pub(crate) async fn until_begun(effects: &Effects, steps: usize) -> anyhow::Result<()> {
    wait::until(ALL, "the load to be under way", async || {
        ensure!(effects.steps() >= steps, "{} steps began", effects.steps());
        Ok(())
    })
    .await
}

/// Waits until every run completed, and audits each.
pub(crate) async fn until_done(api: &Api, runs: &[String], effects: &Effects) -> anyhow::Result<()> {
    api.until_all(runs, "completed", ALL).await?;
    for run in runs {
        audit(api, run, effects).await?;
    }
    Ok(())
}
