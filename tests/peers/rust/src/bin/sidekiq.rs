//! rusty-sidekiq: 64 workers on a pool that has a connection for each. It keeps no results and knows no workflows.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use peer_drivers::{Call, Kind, call, count_done, now_ns, payload, print_latencies, print_submitted, tell_done, url};
use serde::{Deserialize, Serialize};
use sidekiq::{Processor, ProcessorConfig, RedisConnectionManager, RedisPool, Result, Worker, WorkerOpts};
use tokio::sync::Notify;

const WORKERS: usize = 64;
/// Tasks that enqueue at the same time: there is no bulk call.
const SENDERS: usize = 32;

static STAMP: AtomicU64 = AtomicU64::new(0);
static STAMPED: Notify = Notify::const_new();

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    payload: String,
    stamp: bool,
}

#[derive(Clone)]
struct Noop;

#[async_trait]
impl Worker<Job> for Noop {
    fn opts() -> WorkerOpts<Job, Self> {
        WorkerOpts::new().queue("q")
    }

    async fn perform(&self, job: Job) -> Result<()> {
        if job.stamp {
            STAMP.store(now_ns(), Ordering::SeqCst);
            STAMPED.notify_one();
        }
        count_done();
        Ok(())
    }
}

fn processor(pool: RedisPool) -> Processor {
    let mut processor =
        Processor::new(pool, vec!["q".into()]).with_config(ProcessorConfig::default().num_workers(WORKERS));
    processor.register(Noop);
    processor
}

async fn submit(pool: RedisPool, count: usize) -> anyhow::Result<()> {
    let began = now_ns();
    let mut senders = tokio::task::JoinSet::new();
    for share in 0..SENDERS {
        let pool = pool.clone();
        senders.spawn(async move {
            for _ in (share..count).step_by(SENDERS) {
                Noop::perform_async(&pool, Job { payload: payload(), stamp: false }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    print_submitted(began);
    Ok(())
}

/// Worker and client are one process here, as no result tells the client when its job began.
async fn idle(pool: RedisPool, count: usize) -> anyhow::Result<()> {
    tokio::spawn(processor(pool.clone()).run());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let began = now_ns();
        Noop::perform_async(&pool, Job { payload: payload(), stamp: true }).await?;
        STAMPED.notified().await;
        starts.push((STAMP.load(Ordering::SeqCst) - began) as f64 / 1e6);
        ends.push((now_ns() - began) as f64 / 1e6);
    }
    print_latencies(&starts, &ends);
    std::process::exit(0)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let manager = RedisConnectionManager::new(url()?)?;
    let pool = bb8::Pool::builder().max_size(WORKERS as u32 + 8).build(manager).await?;
    match call()? {
        Call::Worker => {
            tokio::spawn(tell_done());
            processor(pool).run().await;
            Ok(())
        }
        Call::Submit(Kind::Jobs, count) => submit(pool, count).await,
        Call::Idle(Kind::Jobs, count) => idle(pool, count).await,
        Call::Submit(..) | Call::Idle(..) => anyhow::bail!("rusty-sidekiq has no workflows"),
    }
}
