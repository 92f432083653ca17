//! Throughput, wide graphs and memory.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use futures::stream::{self, StreamExt};
use stepfleet_coordinator::store::{
    client::Client,
    policies::Change,
    submit::{How, Wanted},
    workflows::Stored,
};
use stepfleet_protocol::{
    keys::Keys,
    policy::{LimitPolicy, Policies},
    workflow::Workflow,
};
use tokio::time::Instant;

use super::BenchArgs;
use super::probe::{Probe, connect, coordinator, cpu_s, ready, resident_bytes, worker};
use super::report::Report;

/// Nothing here may take longer.
const DEADLINE: Duration = Duration::from_secs(240);
/// Runs that one bulk submit carries.
const BULK: usize = 2_000;

/// A chain of no-op steps.
pub(super) fn chain(steps: usize, handler: &str) -> anyhow::Result<Workflow> {
    let steps: serde_json::Map<String, serde_json::Value> = (0..steps)
        .map(|i| {
            let needs: Vec<String> = i.checked_sub(1).map(|i| format!("s{i}")).into_iter().collect();
            (format!("s{i}"), serde_json::json!({ "handler": handler, "needs": needs }))
        })
        .collect();
    Ok(serde_json::from_value(serde_json::json!({ "workflow": "bench", "steps": steps }))?)
}

/// One step, then a wide level, then a fan-in of all of it, then a short tail.
fn wide_graph(steps: usize) -> anyhow::Result<Workflow> {
    let width = steps * 8 / 10;
    let mut all = serde_json::Map::new();
    all.insert("first".into(), serde_json::json!({ "handler": "noop" }));
    let level: Vec<String> = (0..width).map(|i| format!("w{i}")).collect();
    for name in &level {
        all.insert(name.clone(), serde_json::json!({ "handler": "noop", "needs": ["first"] }));
    }
    all.insert("join".into(), serde_json::json!({ "handler": "noop", "needs": level }));
    for i in 0..steps.saturating_sub(width + 2) {
        all.insert(format!("t{i}"), serde_json::json!({ "handler": "noop", "needs": ["join"] }));
    }
    Ok(serde_json::from_value(serde_json::json!({ "workflow": "wide", "steps": all }))?)
}

pub(super) fn how() -> How {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    How { actor: "bench".into(), now_ms: now.as_millis() as u64, durable: false }
}

pub(super) async fn client(url: &str) -> anyhow::Result<Client> {
    let client = Client::new(connect(url).await?, Keys::default());
    let hearing = client.clone();
    tokio::spawn(async move { hearing.hear().await });
    Ok(client)
}

/// Submits `runs` runs in bulk, a few requests at a time; every answer is awaited.
async fn submit(client: &Client, workflow: &Workflow, runs: usize) -> anyhow::Result<()> {
    let stored = Arc::new(Stored::new(workflow));
    let how = how();
    let parts = (0..runs).step_by(BULK).map(|at| BULK.min(runs - at));
    let mut answers = stream::iter(parts)
        .map(|count| {
            let one = Wanted { workflow: stored.clone(), input: None, traceparent: None, idempotency: None };
            client.submit_many(vec![one; count], &how)
        })
        .buffer_unordered(2);
    while let Some(part) = answers.next().await {
        for taken in part {
            ensure!(taken?.answer.is_some(), "a submit was not answered in time");
        }
    }
    Ok(())
}

async fn all_completed(probe: &mut Probe, partitions: u16, runs: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let done = probe.completed(partitions).await?;
        if done >= runs {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "only {done} of {runs} runs were completed within four minutes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Many runs of the same chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// What its figures are called.
    pub(super) name: &'static str,
    /// Runs.
    pub(super) runs: usize,
    /// Steps of each.
    pub(super) steps: usize,
    /// Jobs that a limit of the fleet lets be under way; none for no limit.
    pub(super) limit: Option<u32>,
}

async fn limit(client: &Client, concurrency: u32) -> anyhow::Result<()> {
    let limit = LimitPolicy { concurrency: Some(concurrency), ..LimitPolicy::default() };
    let policies = Policies { limits: [("handler:noop".to_owned(), limit)].into(), ..Policies::default() };
    let at_ms = how().now_ms;
    let change = Change { expected: 0, policies, diff: String::new(), at_ms, actor: "bench".into(), reason: None };
    client.apply_policies(&change).await?;
    Ok(())
}

/// A load through one coordinator and one worker.
pub(super) async fn throughput(
    args: &BenchArgs,
    url: &str,
    probe: &mut Probe,
    load: Load,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Load { name, runs, steps, .. } = load;
    probe.flush().await?;
    if let Some(concurrency) = load.limit {
        limit(&client(url).await?, concurrency).await?;
    }
    let (coordinator, worker) = (coordinator(url, args.partitions)?, worker(url, args.slots)?);
    ready(probe, args.partitions, true).await?;
    let client = client(url).await?;
    let workflow = chain(steps, "noop")?;
    // Everybody has seen the plan and opened what it needs.
    submit(&client, &workflow, 10).await?;
    all_completed(probe, args.partitions, 10).await?;
    let before = (probe.server().await?, cpu_s(coordinator.pid)?, cpu_s(worker.pid)?);
    let began = Instant::now();
    let submitted = {
        let workflow = workflow.clone();
        tokio::spawn(async move {
            submit(&client, &workflow, runs).await?;
            anyhow::Ok(began.elapsed())
        })
    };
    all_completed(probe, args.partitions, runs + 10).await?;
    let took = began.elapsed().as_secs_f64();
    let after = (probe.server().await?, cpu_s(coordinator.pid)?, cpu_s(worker.pid)?);
    let submit_s = submitted.await??.as_secs_f64();
    let count = (runs * steps) as f64;
    let per_step = |s: f64| s * 1e6 / count;
    let floor = report.get("floor.jobs_per_s");
    let mut put = |what: &str, value: f64| report.put(&format!("{name}.{what}"), value);
    put("steps_per_s", count / took);
    put("floor_ratio", count / took / floor);
    put("redis_us_per_step", per_step(after.0.cpu_s - before.0.cpu_s));
    put("redis_commands_per_step", (after.0.commands - before.0.commands) / count);
    put("coordinator_us_per_step", per_step(after.1 - before.1));
    put("worker_us_per_step", per_step(after.2 - before.2));
    // Which commands they are, and what each kind costs inside Redis: only those that matter.
    for (command, (calls, us)) in &after.0.by_command {
        let (calls_before, us_before) = before.0.by_command.get(command).copied().unwrap_or_default();
        let (calls, us) = ((calls - calls_before) / count, (us - us_before) / count);
        if us >= 0.1 {
            put(&format!("commands.{command}.calls_per_step"), calls);
            put(&format!("commands.{command}.us_per_step"), us);
        }
    }
    if load.limit.is_some() {
        let ratio = report.get("limited.steps_per_s") / report.get("chain10.steps_per_s");
        report.put("limited.unlimited_ratio", ratio);
    } else if steps == 1 {
        report.put("submit.runs_per_s", runs as f64 / submit_s);
    } else {
        let bytes = (after.0.memory_bytes - before.0.memory_bytes) / runs as f64;
        report.put("memory.redis_bytes_per_finished_chain10", bytes);
    }
    Ok(())
}

/// One graph of many steps, and a tenth of it: the cost of a step must not grow with the graph.
pub(super) async fn wide(args: &BenchArgs, url: &str, probe: &mut Probe, report: &mut Report) -> anyhow::Result<()> {
    for (name, steps) in [("wide.us_per_step_tenth", args.wide / 10), ("wide.us_per_step", args.wide)] {
        probe.flush().await?;
        let (_coordinator, _worker) = (coordinator(url, args.partitions)?, worker(url, args.slots)?);
        ready(probe, args.partitions, true).await?;
        let client = client(url).await?;
        submit(&client, &chain(1, "noop")?, 1).await?;
        all_completed(probe, args.partitions, 1).await?;
        let began = Instant::now();
        submit(&client, &wide_graph(steps)?, 1).await?;
        all_completed(probe, args.partitions, 2).await?;
        report.put(name, began.elapsed().as_secs_f64() * 1e6 / steps as f64);
    }
    Ok(())
}

/// What queued steps cost, with no worker there: in Redis, and in the coordinator that has them open.
pub(super) async fn memory(args: &BenchArgs, url: &str, probe: &mut Probe, report: &mut Report) -> anyhow::Result<()> {
    probe.flush().await?;
    let coordinator = coordinator(url, args.partitions)?;
    ready(probe, args.partitions, false).await?;
    let client = client(url).await?;
    submit(&client, &chain(1, "noop")?, 10).await?;
    let before = probe.server().await?.memory_bytes;
    submit(&client, &chain(1, "noop")?, args.runs).await?;
    let after = probe.server().await?.memory_bytes;
    report.put("memory.redis_bytes_per_queued_step", (after - before) / args.runs as f64);
    report.put("memory.coordinator_rss_bytes", resident_bytes(coordinator.pid)?);
    report.put("memory.open_runs", args.runs as f64);
    Ok(())
}
