//! apalis-redis and apalis-workflow: batches of 100, each task spawned, polled every 5 ms.

use std::time::Duration;

use apalis::prelude::*;
use apalis_core::backend::ext::BackendExt;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::ext::parallelize::ParallelizeExt;
use apalis_redis::{Config, ConnectionManager, RedisStorage};
use apalis_workflow::*;
use peer_drivers::{CONCURRENCY, Call, Kind, WIDTH, call, count_done, done, now_ns, payload, tell_done, url};
use serde::{Deserialize, Serialize};

/// Without an interval tasks were seen to wait for the heartbeat of 30 s.
const POLL: Duration = Duration::from_millis(5);
const BATCH: usize = 100;
/// Between two looks for a result.
const LOOK: Duration = Duration::from_micros(300);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    payload: String,
}

async fn stamp(_job: Job) -> Result<u64, BoxDynError> {
    Ok(now_ns())
}

async fn step(number: u32) -> Result<u32, BoxDynError> {
    Ok(number)
}

async fn last(number: u32) -> Result<u32, BoxDynError> {
    count_done();
    Ok(number)
}

async fn collect(numbers: Vec<u32>) -> Result<u32, BoxDynError> {
    count_done();
    Ok(numbers.len() as u32)
}

async fn storage<T>(queue: &str) -> anyhow::Result<RedisStorage<T, ConnectionManager>> {
    let connection = apalis_redis::connect(url()?).await?;
    Ok(RedisStorage::new(connection).with_config(Config::default().queue(queue).batch_size(BATCH)))
}

async fn work() -> anyhow::Result<()> {
    let jobs = WorkerBuilder::new("jobs")
        .backend(storage::<Job>("jobs").await?.poll_with_interval(POLL))
        .concurrency(CONCURRENCY)
        .parallelize(tokio::spawn)
        .build(stamp);
    let chain = SteppedFlow::new("chains")
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(step)
        .and_then(last);
    let chains =
        WorkerBuilder::new("chains").backend(storage::<u32>("chains").await?.poll_with_interval(POLL)).build(chain);
    let graph = GraphFlow::new("fanouts");
    let first = graph.add_node("first", task_fn(step));
    let middle: Vec<_> =
        (0..WIDTH).map(|at| graph.add_node(&format!("m{at}"), task_fn(step)).depends_on(&first)).collect();
    let _last = graph.add_node("last", task_fn(collect)).depends_on(middle.iter().collect::<Vec<_>>());
    let fanouts = WorkerBuilder::new("fanouts")
        .backend(storage::<Vec<u8>>("fanouts").await?.poll_with_interval(POLL))
        .build(graph);
    let ended = tokio::join!(jobs.run(), chains.run(), fanouts.run(), tell_done());
    anyhow::bail!("a worker ended: {ended:?}")
}

async fn submit(kind: Kind, count: usize) -> anyhow::Result<()> {
    let began = now_ns();
    if kind == Kind::Jobs {
        let mut jobs = storage::<Job>("jobs").await?;
        for at in (0..count).step_by(500) {
            let part = (at..count.min(at + 500)).map(|_| Job { payload: payload() }).collect();
            jobs.push_bulk(part).await?;
        }
    } else {
        let queue = if kind == Kind::Chains { "chains" } else { "fanouts" };
        let mut senders = tokio::task::JoinSet::new();
        for share in 0..16 {
            let mut runs = storage::<u32>(queue).await?;
            senders.spawn(async move {
                for _ in (share..count).step_by(16) {
                    runs.push_start(0u32).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(sent) = senders.join_next().await {
            sent??;
        }
    }
    peer_drivers::print_submitted(began);
    Ok(())
}

async fn idle_jobs(count: usize) -> anyhow::Result<()> {
    let mut jobs = storage::<Job>("jobs").await?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let id = TaskId::from_ulid(ulid::Ulid::generate());
        let began = now_ns();
        jobs.push_task(TaskBuilder::new(Job { payload: payload() }).task_id(id.clone()).build()).await?;
        let stamped = loop {
            let found: Vec<TaskResult<u64>> = jobs.check_status([id.clone()]).await?;
            if let Some(result) = found.into_iter().next() {
                break *result.result().as_ref().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            }
            tokio::time::sleep(LOOK).await;
        };
        starts.push((stamped - began) as f64 / 1e6);
        ends.push((now_ns() - began) as f64 / 1e6);
    }
    peer_drivers::print_latencies(&starts, &ends);
    Ok(())
}

async fn idle_chains(count: usize) -> anyhow::Result<()> {
    let mut runs = storage::<u32>("chains").await?;
    let mut connection = redis::Client::open(url()?)?.get_multiplexed_async_connection().await?;
    let before = done(&mut connection).await?;
    let mut ends = Vec::new();
    for at in 0..count as u64 {
        let began = now_ns();
        runs.push_start(0u32).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        while done(&mut connection).await? <= before + at {
            tokio::time::sleep(LOOK).await;
        }
        ends.push((now_ns() - began) as f64 / 1e6);
    }
    peer_drivers::print_latencies(&[], &ends);
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    match call()? {
        Call::Worker => work().await,
        Call::Submit(kind, count) => submit(kind, count).await,
        Call::Idle(Kind::Jobs, count) => idle_jobs(count).await,
        Call::Idle(_, count) => idle_chains(count).await,
    }
}
