//! BullMQ's Rust crate: bulk adds of 1,000, one worker with a concurrency of 100, as for BullMQ on Node.

use bullmq::options::RedisConnectionOptions;
use bullmq::{
    BulkJob, FlowJob, FlowProducer, FlowProducerOptions, Job, Queue, QueueEvent, QueueEvents, QueueEventsOptions,
    QueueOptions, Worker, WorkerOptions,
};
use peer_drivers::{CHAIN, Call, Kind, WIDTH, call, now_ns, payload, print_latencies, print_submitted, url};
use serde_json::{Value, json};

const CONCURRENCY: usize = 100;
const BULK: usize = 1_000;
const FLOWS: usize = 100;

fn connection() -> anyhow::Result<RedisConnectionOptions> {
    Ok(RedisConnectionOptions::new().url(url()?))
}

async fn flows() -> anyhow::Result<FlowProducer> {
    let options = FlowProducerOptions { connection: connection()?, prefix: None };
    Ok(FlowProducer::with_options(options).await?)
}

async fn queue() -> anyhow::Result<Queue> {
    let options = QueueOptions { connection: connection()?, ..QueueOptions::default() };
    Ok(Queue::with_options("q", options).await?)
}

fn data() -> Value {
    json!({ "p": payload() })
}

/// A flow grows from its last step to its first.
fn chain() -> anyhow::Result<FlowJob> {
    let mut flow = FlowJob::new("step", "q", data())?;
    for _ in 1..CHAIN {
        flow = FlowJob::new("step", "q", data())?.add_child(flow);
    }
    Ok(flow)
}

/// The part of a fan-out that waits for its first step, which adds it: a flow is a tree that ends in one job.
fn fan() -> bullmq::Result<FlowJob> {
    let children = (0..WIDTH).map(|_| FlowJob::new("step", "q", data())).collect::<bullmq::Result<_>>()?;
    Ok(FlowJob::new("step", "q", data())?.children(children))
}

async fn work() -> anyhow::Result<()> {
    let flows = flows().await?;
    let handler = move |job: Job, _token| {
        let flows = flows.clone();
        async move {
            match job.name() {
                "stamp" => return Ok(json!(now_ns().to_string())),
                "first" => drop(flows.add(fan()?).await?),
                _ => {}
            }
            Ok(json!("ok"))
        }
    };
    let options = WorkerOptions { connection: connection()?, concurrency: CONCURRENCY, ..WorkerOptions::default() };
    let worker = Worker::with_options("q", handler, options).await?;
    // Its events pile up if nobody takes them.
    while worker.next_event().await.is_some() {}
    anyhow::bail!("the worker ended")
}

async fn submit(kind: Kind, count: usize) -> anyhow::Result<()> {
    let began = now_ns();
    match kind {
        Kind::Jobs | Kind::Fanouts => {
            let (queue, name) = (queue().await?, if kind == Kind::Jobs { "step" } else { "first" });
            for at in (0..count).step_by(BULK) {
                let jobs = (at..count.min(at + BULK)).map(|_| BulkJob::new(name, data())).collect();
                queue.add_bulk(jobs).await?;
            }
        }
        Kind::Chains => {
            let flows = flows().await?;
            for at in (0..count).step_by(FLOWS) {
                let part = (at..count.min(at + FLOWS)).map(|_| chain()).collect::<anyhow::Result<_>>()?;
                flows.add_bulk(part).await?;
            }
        }
    }
    print_submitted(began);
    Ok(())
}

async fn idle(kind: Kind, count: usize) -> anyhow::Result<()> {
    let (queue, flows) = (queue().await?, flows().await?);
    let options = QueueEventsOptions { connection: connection()?, ..QueueEventsOptions::default() };
    let events = QueueEvents::with_options("q", options).await?;
    // It listens from its first read on.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let began = now_ns();
        let id = match kind {
            Kind::Chains => flows.add(chain()?).await?.job.id().to_owned(),
            Kind::Jobs | Kind::Fanouts => queue.add("stamp", data()).await?.id().to_owned(),
        };
        loop {
            let entry = events.next_event().await.ok_or_else(|| anyhow::anyhow!("no more events"))?;
            let QueueEvent::Completed { job_id, return_value, .. } = entry.event else { continue };
            if job_id == id {
                ends.push((now_ns() - began) as f64 / 1e6);
                let stamp = return_value.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>();
                starts.extend(stamp.ok().map(|stamp| (stamp - began) as f64 / 1e6));
                break;
            }
        }
    }
    print_latencies(&starts, &ends);
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    match call()? {
        Call::Worker => work().await,
        Call::Submit(kind, count) => submit(kind, count).await,
        Call::Idle(kind, count) => idle(kind, count).await,
    }
}
