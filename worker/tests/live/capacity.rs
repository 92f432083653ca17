//! How many jobs a worker takes, and from where.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    codec,
    message::{Outcome, Returned},
    value::Payload,
};
use stepfleet_worker::Attempt;
use tokio::sync::Semaphore;

use crate::{
    owner::{self, Owner, job, keys, name},
    server::{Server, until},
};

/// Trap 20. COUNT of XREADGROUP is for each stream: 24 streams with COUNT 4 would bring 96 jobs.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_never_takes_more_than_it_has_slots_from_many_streams() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 8).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let (counted, highest, held) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
    let handler = move |_: Attempt, _: Json| {
        let (counted, highest, held) = (Arc::clone(&counted), Arc::clone(&highest), Arc::clone(&held));
        async move {
            highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            held.acquire().await?.forget();
            counted.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    };
    for partition in 0..8 {
        for queue in ["a", "b", "c"] {
            for _ in 0..4 {
                owner.dispatch(partition, queue, &job("gated", Json::Null)).await;
            }
        }
    }
    let builder = stepfleet_worker::Worker::builder().redis(&server.url()).name("w").queues(["a", "b", "c"]);
    let worker = owner::start(builder.concurrency(4).handler("gated", handler));
    until("all slots are used", async || running.load(Ordering::SeqCst) == 4).await;
    let mut pending = 0;
    for partition in 0..8 {
        for queue in ["a", "b", "c"] {
            let stream = keys(partition).jobs(&name(queue));
            let (count, ..): (usize, redis::Value, redis::Value, redis::Value) = redis::cmd("XPENDING")
                .arg(stream)
                .arg("workers")
                .query_async(&mut owner.connection)
                .await
                .expect("the group is there");
            assert!(count == 0 || queue == "a", "the most urgent queue goes first");
            pending += count;
        }
    }
    assert_eq!(pending, 4, "jobs taken");
    gate.add_permits(96);
    let results = owner.wait_for(96).await;
    assert!(results.iter().all(|result| result.outcome == Outcome::Completed(None)), "nothing was handed back");
    assert_eq!((results.len(), most.load(Ordering::SeqCst)), (96, 4));
    worker.left().await;
}

/// On how many of these streams the worker was seen to read within the last four seconds.
async fn read_lately(owner: &mut Owner, partitions: u16, queues: &[&str]) -> usize {
    let mut count = 0;
    for stream in (0..partitions).flat_map(|p| queues.iter().map(move |queue| keys(p).jobs(&name(queue)))) {
        let mut info = redis::cmd("XINFO");
        let info = info.arg("CONSUMERS").arg(stream).arg("workers").query_async(&mut owner.connection).await;
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> = info.expect("the group is there");
        let idle =
            consumers.iter().filter_map(|consumer| redis::from_redis_value::<u64>(consumer["idle"].clone()).ok());
        count += usize::from(idle.min().is_some_and(|ms| ms < 4_000));
    }
    count
}

/// Not every coordinator looks at the first stream, and each misses who reads none of those it looks at.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_is_seen_to_read_on_each_of_its_streams() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 4).await;
    owner.dispatch(3, "b", &job("sleep", json!({"duration": "1h"}))).await;
    let builder = stepfleet_worker::Worker::builder().redis(&server.url()).name("w").queues(["a", "b"]);
    let _worker = owner::start(builder.concurrency(1).stock_handlers().drain_timeout(std::time::Duration::ZERO));
    until("the slot is used", async || {
        let mut pending = redis::cmd("XPENDING");
        let pending = pending.arg(keys(3).jobs(&name("b"))).arg("workers").query_async(&mut owner.connection).await;
        matches!(pending, Ok(redis::Value::Array(parts)) if parts.first() == Some(&redis::Value::Int(1)))
    })
    .await;
    // What it read before it was full counts no more.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    until("it reads on all of them", async || read_lately(&mut owner, 4, &["a", "b"]).await == 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_come_at_once_to_an_idle_worker_are_run_or_handed_back() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 8).await;
    let worker = owner::start(owner::worker(&server).concurrency(1));
    owner.worker().await;
    let jobs: Vec<_> = (0..8).map(|_| job("sleep", json!({"duration": "20ms"}))).collect();
    for (partition, job) in jobs.iter().enumerate() {
        owner.dispatch(partition as u16, "q", job).await;
    }
    let results = owner.wait_for(8).await;
    let legal = [Outcome::Completed(None), Outcome::Returned(Returned::Surplus)];
    assert!(results.iter().all(|result| legal.contains(&result.outcome)), "{results:?}");
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_queues_that_come_later_are_read() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    // Somebody deletes the stream with its group: one missing group fails a read of many.
    owner.ask(redis::cmd("DEL").arg(keys(0).jobs(&name("q")))).await;
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    let queues: Vec<String> =
        redis::cmd("SMEMBERS").arg(keys(0).queues()).query_async(&mut owner.connection).await.expect("a set");
    assert_eq!(queues, ["q"]);
    let mut owner = Owner::new(&server, 3).await;
    let late = job("noop", Json::Null);
    owner.dispatch(2, "q", &late).await;
    assert_eq!(owner.result(&late).await.outcome, Outcome::Completed(None));
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_jobs_are_each_done_once_in_few_writes() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 2).await;
    let wires: Vec<_> = (0..4_000).map(|n| (n % 2, codec::encode(&job("echo", json!(n))))).collect();
    for chunk in wires.chunks(500) {
        let mut pipeline = redis::Pipeline::new();
        for (partition, wire) in chunk {
            let stream = keys(*partition).jobs(&name("q"));
            pipeline.cmd("XADD").arg(stream).arg("*").arg(wire.field).arg(&wire.bytes);
        }
        pipeline.query_async::<redis::Value>(&mut owner.connection).await.expect("jobs are taken");
    }
    let begun = std::time::Instant::now();
    let worker = owner::start(owner::worker(&server).handler("echo", |_: Attempt, n: u32| async move { Ok(n) }));
    let mut entries = 0;
    until("all are done", async || {
        let mut lengths = [0, 0];
        for partition in 0..2 {
            let length = owner.ask(redis::cmd("XLEN").arg(keys(partition).log())).await;
            lengths[usize::from(partition)] = if let redis::Value::Int(length) = length { length } else { 0 };
        }
        entries = lengths.iter().sum();
        // Reading whole logs costs more than the work: look once entries can hold all results.
        entries * 128 >= 4_000 && owner.results().await.len() >= 4_000
    })
    .await;
    println!("4000 jobs in {:?}, {entries} log entries", begun.elapsed());
    let mut seen: Vec<u32> = owner
        .results()
        .await
        .into_iter()
        .map(|result| match result.outcome {
            Outcome::Completed(Some(Payload::Inline(bytes))) => codec::unpack(&bytes).expect("a number"),
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..4_000).collect::<Vec<u32>>());
    worker.left().await;
}
