//! Many small runs whose every effect is noted, to see what becomes of them while something breaks.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{Api, Effects, audit},
    wait,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

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

/// Runs that are submitted one handful after the other, so that load is there whenever something changes.
pub(crate) struct Flow {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<Vec<String>>>,
    /// Where they are submitted.
    pub(crate) to: watch::Sender<Api>,
}

/// Runs of one handful.
const HANDFUL: usize = 10;
/// How often the load looks whether more of it is wanted.
const LOOK: Duration = Duration::from_millis(10);
/// Steps that wait or run, at most, when the next handful comes.
const BACKLOG: usize = 100;

impl Flow {
    /// Submits runs of `workflow`, which has `steps` steps, to `api`; `begun` counts the steps that have begun.
    pub(crate) async fn start(
        api: &Api,
        workflow: &Value,
        begun: impl Fn() -> usize + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        api.register(workflow).await?;
        let name = workflow["workflow"].as_str().context("a workflow has a name")?.to_owned();
        let steps = workflow["steps"].as_object().context("a workflow has steps")?.len();
        let (to, stop) = (watch::Sender::new(api.clone()), CancellationToken::new());
        let (target, stopped) = (to.subscribe(), stop.clone());
        let task = tokio::spawn(async move {
            let (mut runs, mut looks) = (Vec::<String>::new(), tokio::time::interval(LOOK));
            while !stopped.is_cancelled() {
                let api = target.borrow().clone();
                runs.extend(api.submit_many(&name, HANDFUL).await?);
                // The load waits here for the fleet, which is what it is there for.
                let begun_by = Instant::now() + ALL;
                while (runs.len() * steps).saturating_sub(begun()) > BACKLOG && !stopped.is_cancelled() {
                    ensure!(Instant::now() < begun_by, "{} of {} steps have begun", begun(), runs.len() * steps);
                    looks.tick().await;
                }
            }
            Ok(runs)
        });
        Ok(Self { stop, task, to })
    }

    /// Ends the load; the runs that were submitted.
    pub(crate) async fn end(self) -> anyhow::Result<Vec<String>> {
        ensure!(!self.task.is_finished(), "the load has ended by itself: {:?}", self.task.await?);
        self.stop.cancel();
        self.task.await?
    }
}
