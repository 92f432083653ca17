//! Throughput, wide graphs and memory.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use stepfleet_coordinator::store::{
    client::Client,
    policies::Change,
    submit::{How, Wanted},
    workflows::Stored,
};
use stepfleet_protocol::{
    keys::Keys,
    limits::CONCURRENCY_MAX,
    policy::{LimitPolicy, Policies},
    workflow::Workflow,
};
use tokio::time::Instant;

use super::graphs::{chain, fan_out, wide_graph};
use super::lab::{Lab, Size, Usage};
use super::probe::{connect, resident_bytes};
use super::report::Report;

/// Runs that one bulk submit carries.
const BULK: usize = 2_000;
/// Runs before those that count: everybody has seen the plan then, and opened what it needs.
const WARM_UP: usize = 10;

pub(super) fn how() -> How {
    How { actor: "bench".into(), now_ms: crate::time::now_ms(), durable: false }
}

pub(super) async fn client(url: &str) -> anyhow::Result<Client> {
    let client = Client::new(connect(url).await?, Keys::default());
    let hearing = client.clone();
    tokio::spawn(async move { hearing.hear().await });
    Ok(client)
}

/// A run of a workflow, with an input or without.
pub(super) fn wanted(workflow: &Arc<Stored>, input: Option<Bytes>) -> Wanted {
    Wanted { workflow: workflow.clone(), input, traceparent: None, idempotency: None }
}

/// Submits `runs` runs in bulk, a few requests at a time; every answer is awaited.
pub(super) async fn submit(client: &Client, workflow: &Workflow, runs: usize) -> anyhow::Result<()> {
    let stored = Arc::new(Stored::new(workflow));
    let how = how();
    let parts = (0..runs).step_by(BULK).map(|at| BULK.min(runs - at));
    let mut answers = stream::iter(parts)
        .map(|count| client.submit_many(vec![wanted(&stored, None); count], &how))
        .buffer_unordered(2);
    while let Some(part) = answers.next().await {
        for taken in part {
            ensure!(taken?.answer.is_some(), "a submit was not answered in time");
        }
    }
    Ok(())
}

/// Many runs of one workflow, through a fleet.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Runs.
    pub(super) runs: usize,
    /// What they follow.
    pub(super) workflow: Workflow,
    /// Jobs that a limit of the fleet lets be under way; none for no limit.
    pub(super) limit: Option<u32>,
    /// Wait until what is done with is off the streams, before memory is looked at.
    pub(super) settle: bool,
}

/// Owners trim their streams every second.
const SETTLES: Duration = Duration::from_millis(2_500);

/// What a load took.
#[derive(Debug)]
pub(super) struct Outcome {
    runs: usize,
    steps: usize,
    took_s: f64,
    submit_s: f64,
    before: Usage,
    after: Usage,
    /// What the server holds in the end.
    bytes: f64,
}

impl Load {
    /// So many runs of a chain of no-op steps.
    pub(super) fn chains(runs: usize, steps: usize) -> anyhow::Result<Self> {
        Ok(Self { runs, workflow: chain(steps, "noop")?, limit: None, settle: false })
    }

    /// Runs it through a new fleet that reaches the server at `url`.
    ///
    /// # Errors
    /// The fleet does not come up, or does not finish.
    pub(super) async fn through(&self, lab: &mut Lab<'_>, url: &str, size: Size) -> anyhow::Result<Outcome> {
        let steps = self.workflow.steps.len();
        lab.probe.flush().await?;
        let client = client(url).await?;
        // The limit is there before the coordinator is.
        if let Some(concurrency) = self.limit {
            limit(&client, concurrency).await?;
        }
        let fleet = lab.start(url, size).await?;
        submit(&client, &self.workflow, WARM_UP).await?;
        lab.all_completed(size.partitions, WARM_UP, steps).await?;
        let before = lab.usage(&fleet).await?;
        let began = Instant::now();
        let (workflow, runs) = (self.workflow.clone(), self.runs);
        let submitted = tokio::spawn(async move {
            submit(&client, &workflow, runs).await?;
            anyhow::Ok(began.elapsed())
        });
        lab.all_completed(size.partitions, runs + WARM_UP, steps).await?;
        let took_s = began.elapsed().as_secs_f64();
        let after = lab.usage(&fleet).await?;
        let submit_s = submitted.await??.as_secs_f64();
        if self.settle {
            tokio::time::sleep(SETTLES).await;
        }
        let bytes = lab.probe.server().await?.memory_bytes;
        Ok(Outcome { runs, steps: runs * steps, took_s, submit_s, before, after, bytes })
    }
}

impl Outcome {
    pub(super) fn steps_per_s(&self) -> f64 {
        self.steps as f64 / self.took_s
    }

    /// CPU microseconds a step: of Redis, of the coordinator, of all workers.
    pub(super) fn us_per_step(&self) -> [(&'static str, f64); 3] {
        let us = |before: f64, after: f64| (after - before) * 1e6 / self.steps as f64;
        [
            ("redis_us_per_step", us(self.before.server.cpu_s, self.after.server.cpu_s)),
            ("coordinator_us_per_step", us(self.before.coordinator_s, self.after.coordinator_s)),
            ("worker_us_per_step", us(self.before.workers_s, self.after.workers_s)),
        ]
    }

    fn put(&self, report: &mut Report, name: &str) {
        let (steps, floor) = (self.steps as f64, report.get("floor.jobs_per_s"));
        report.put(&format!("{name}.steps_per_s"), self.steps_per_s());
        if floor.is_finite() {
            report.put(&format!("{name}.floor_ratio"), self.steps_per_s() / floor);
        }
        for (what, us) in self.us_per_step() {
            report.put(&format!("{name}.{what}"), us);
        }
        let (before, after) = (&self.before.server, &self.after.server);
        report.put(&format!("{name}.redis_commands_per_step"), (after.commands - before.commands) / steps);
        // Which commands they are, and what each kind costs inside Redis: only those that matter.
        for (command, (calls, us)) in &after.by_command {
            let (calls_before, us_before) = before.by_command.get(command).copied().unwrap_or_default();
            let (calls, us) = ((calls - calls_before) / steps, (us - us_before) / steps);
            if us >= 0.1 {
                report.put(&format!("{name}.commands.{command}.calls_per_step"), calls);
                report.put(&format!("{name}.commands.{command}.us_per_step"), us);
            }
        }
    }
}

async fn limit(client: &Client, concurrency: u32) -> anyhow::Result<()> {
    let limit = LimitPolicy { concurrency: Some(concurrency), ..LimitPolicy::default() };
    let policies = Policies { limits: [("handler:noop".to_owned(), limit)].into(), ..Policies::default() };
    let at_ms = how().now_ms;
    let change = Change { expected: 0, policies, diff: String::new(), at_ms, actor: "bench".into(), reason: None };
    client.apply_policies(&change).await?;
    Ok(())
}

async fn plain(lab: &mut Lab<'_>, load: Load) -> anyhow::Result<Outcome> {
    let (url, size) = (lab.url.clone(), lab.size());
    load.through(lab, &url, size).await
}

/// One-step runs, submit included.
pub(super) async fn one_step(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let outcome = plain(lab, Load::chains(lab.args.runs, 1)?).await?;
    outcome.put(&mut lab.report, "one_step");
    lab.report.put("submit.runs_per_s", outcome.runs as f64 / outcome.submit_s);
    Ok(())
}

/// Ten-step chains.
pub(super) async fn chains(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let load = Load { settle: true, ..Load::chains(lab.args.chains, 10)? };
    let outcome = plain(lab, load).await?;
    outcome.put(&mut lab.report, "chain10");
    let bytes = outcome.bytes - outcome.before.server.memory_bytes;
    lab.report.put("memory.redis_bytes_per_finished_chain10", bytes / outcome.runs as f64);
    Ok(())
}

/// The same under a limit that is just not reached.
pub(super) async fn limited(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let most = u32::try_from(2 * lab.args.slots).unwrap_or(u32::MAX).min(CONCURRENCY_MAX);
    let load = Load { limit: Some(most), ..Load::chains(lab.args.chains, 10)? };
    let outcome = plain(lab, load).await?;
    outcome.put(&mut lab.report, "limited");
    let unlimited = lab.report.get("chain10.steps_per_s");
    if unlimited.is_finite() {
        lab.report.put("limited.unlimited_ratio", outcome.steps_per_s() / unlimited);
    }
    Ok(())
}

/// One step, fifty behind it, one behind these.
pub(super) async fn fan_outs(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let load = Load { runs: lab.args.fan_outs, workflow: fan_out()?, limit: None, settle: false };
    let outcome = plain(lab, load).await?;
    outcome.put(&mut lab.report, "fan_out");
    Ok(())
}

/// Microseconds a step of one run of many.
///
/// # Errors
/// It does not finish.
pub(super) async fn one_wide_run(lab: &mut Lab<'_>, steps: usize) -> anyhow::Result<f64> {
    let (url, size) = (lab.url.clone(), lab.size());
    let _fleet = lab.fleet(&url, size).await?;
    let client = client(&url).await?;
    submit(&client, &chain(1, "noop")?, 1).await?;
    lab.all_completed(size.partitions, 1, 1).await?;
    let workflow = wide_graph(steps)?;
    let began = Instant::now();
    submit(&client, &workflow, 1).await?;
    lab.all_completed(size.partitions, 2, steps).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6 / steps as f64)
}

/// One graph of many steps, and a tenth of it: the cost of a step must not grow with the graph.
pub(super) async fn wide(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    for (name, steps) in [("wide.us_per_step_tenth", lab.args.wide / 10), ("wide.us_per_step", lab.args.wide)] {
        let us = one_wide_run(lab, steps).await?;
        lab.report.put(name, us);
    }
    Ok(())
}

/// What queued steps cost, with no worker there: in Redis, and in the coordinator that has them open.
pub(super) async fn memory(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let (url, runs, chain) = (lab.url.clone(), lab.args.runs, chain(1, "noop")?);
    let fleet = lab.fleet(&url, Size { workers: 0, ..lab.size() }).await?;
    let client = client(&url).await?;
    submit(&client, &chain, WARM_UP).await?;
    let before = lab.probe.server().await?.memory_bytes;
    submit(&client, &chain, runs).await?;
    let after = lab.probe.server().await?.memory_bytes;
    lab.report.put("memory.redis_bytes_per_queued_step", (after - before) / runs as f64);
    lab.report.put("memory.coordinator_rss_bytes", resident_bytes(fleet.coordinator.pid)?);
    lab.report.put("memory.open_runs", runs as f64);
    Ok(())
}
