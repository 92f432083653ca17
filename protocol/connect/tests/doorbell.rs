//! Waking idle workers on a Cluster: XREADGROUP cannot span slots, so a doorbell rings in the MULTI that adds the job.
//!
//! The order that misses nothing: subscribe, then read, then wait for the bell.

mod common;

use std::time::{Duration, Instant};

use common::Cluster;
use redis::Value;
use stepfleet_connect::{Event, Events, Plain, Redis, slot_of};

const TAGS: [&str; 3] = ["{a}", "{b}", "{c}"];
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 300;

fn jobs(tag: &str) -> String {
    format!("sf:{tag}:jobs:default")
}

fn bell(tag: &str) -> String {
    format!("sf:{tag}:bell:default")
}

async fn plain(redis: &Redis, tag: &str) -> Plain {
    redis.plain(slot_of(tag.as_bytes()), PATIENCE).await.expect("the slot is served")
}

async fn group(redis: &Redis) {
    for tag in TAGS {
        let mut connection = plain(redis, tag).await;
        let create =
            redis::cmd("XGROUP").arg("CREATE").arg(jobs(tag)).arg("workers").arg("$").arg("MKSTREAM").to_owned();
        assert_eq!(connection.one(&create).await, Ok(Value::Okay));
    }
}

fn read(tags: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg("workers").arg("w1").arg("COUNT").arg(10).arg("STREAMS");
    command.arg(tags.iter().map(|tag| jobs(tag)).collect::<Vec<_>>());
    command.arg(vec![">"; tags.len()]);
    command
}

/// The number of jobs that one non-blocking read of one stream delivers.
async fn take(reader: &mut Plain, tag: &str) -> usize {
    match reader.one(&read(&[tag])).await.expect("the read is answered") {
        Value::Nil => 0,
        Value::Array(streams) => {
            let Value::Array(stream) = &streams[0] else { panic!("a stream, not {:?}", streams[0]) };
            let Value::Array(entries) = &stream[1] else { panic!("entries, not {:?}", stream[1]) };
            entries.len()
        }
        other => panic!("XREADGROUP gave {other:?}"),
    }
}

/// What a commit does: the job and the bell, at once.
async fn add(owner: &mut Plain, tag: &str) {
    let mut commit = redis::pipe();
    commit.cmd("MULTI");
    commit.cmd("XADD").arg(jobs(tag)).arg("*").arg("j").arg("1");
    commit.cmd("SPUBLISH").arg(bell(tag)).arg("");
    commit.cmd("EXEC");
    let replies = owner.trip(&commit).await.expect("the trip succeeds");
    assert!(
        matches!(&replies[3], Value::Array(inside) if !inside.iter().any(|reply| matches!(reply, Value::ServerError(_)))),
        "{replies:?}"
    );
}

async fn rung(events: &mut Events) -> Vec<u8> {
    loop {
        match events.recv().await.expect("the subscriber is alive") {
            Event::Message { channel, .. } => return channel,
            Event::Live { .. } | Event::Lost { .. } | Event::Overflow => {}
        }
    }
}

#[tokio::test]
async fn a_read_over_streams_of_several_slots_is_refused() {
    let cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    group(&redis).await;
    let mut reader = plain(&redis, "{a}").await;
    let Ok(Value::ServerError(error)) = reader.one(&read(&["{a}", "{b}"])).await else { panic!("it must be refused") };
    assert_eq!(error.code(), "CROSSSLOT");
    assert_eq!(take(&mut reader, "{a}").await, 0, "one slot is allowed, and the connection lives");
}

#[tokio::test]
async fn the_bell_wakes_a_reader_within_a_millisecond_or_so() {
    let cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    group(&redis).await;
    let (subscriber, mut events) = redis.subscribe();
    let mut owners = Vec::new();
    let mut readers = Vec::new();
    for tag in TAGS {
        subscriber.ssubscribe(slot_of(tag.as_bytes()), bell(tag).as_bytes()).await.expect("confirmed");
        owners.push(plain(&redis, tag).await);
        readers.push(plain(&redis, tag).await);
    }
    let mut latencies = Vec::new();
    for round in 0..ROUNDS {
        let at = round % TAGS.len();
        let begin = Instant::now();
        let worker = async {
            assert_eq!(rung(&mut events).await, bell(TAGS[at]).into_bytes());
            assert_eq!(take(&mut readers[at], TAGS[at]).await, 1, "the job is there when the bell rings");
            begin.elapsed()
        };
        let ((), latency) = tokio::join!(add(&mut owners[at], TAGS[at]), worker);
        latencies.push(latency);
    }
    latencies.sort();
    let (p50, p99) = (latencies[ROUNDS / 2], latencies[ROUNDS * 99 / 100]);
    println!("commit sent to job in hand over a doorbell, 3-node cluster: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < Duration::from_millis(50), "p50 is {p50:?}; a bell that is slower than a poll is no bell");
}

#[tokio::test]
async fn a_job_between_the_empty_read_and_the_wait_is_not_missed() {
    let cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    group(&redis).await;
    let (subscriber, mut events) = redis.subscribe();
    let tag = "{b}";
    subscriber.ssubscribe(slot_of(tag.as_bytes()), bell(tag).as_bytes()).await.expect("confirmed");
    let (mut owner, mut reader) = (plain(&redis, tag).await, plain(&redis, tag).await);
    for _ in 0..50 {
        assert_eq!(take(&mut reader, tag).await, 0, "the worker finds nothing");
        add(&mut owner, tag).await;
        // Only now does the worker begin to wait: the bell has rung already, and is heard all the same.
        tokio::time::timeout(PATIENCE, rung(&mut events)).await.expect("the bell is not missed");
        assert_eq!(take(&mut reader, tag).await, 1);
    }
}

#[tokio::test]
async fn a_job_added_while_the_worker_was_deaf_is_found_by_the_read_at_its_return() {
    let mut cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    group(&redis).await;
    let (subscriber, mut events) = redis.subscribe();
    let (tag, slot) = ("{b}", slot_of(b"{b}"));
    subscriber.ssubscribe(slot, bell(tag).as_bytes()).await.expect("confirmed");
    let (mut owner, mut reader) = (plain(&redis, tag).await, plain(&redis, tag).await);
    assert_eq!(events.recv().await, Some(Event::Live { channel: bell(tag).into() }));

    let port = redis.node_of(slot).expect("served").port();
    let mut other = cluster.node(port).connection().await;
    let mut kill_and_add = redis::pipe();
    // In one MULTI, so that no subscription can come back between the kill and the bell.
    kill_and_add.atomic().cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub");
    kill_and_add.cmd("XADD").arg(jobs(tag)).arg("*").arg("j").arg("1").cmd("SPUBLISH").arg(bell(tag)).arg("");
    let (_, _, heard): (u64, String, u64) = kill_and_add.query_async(&mut other).await.expect("the MULTI");
    assert_eq!(heard, 0, "nobody heard the bell");

    assert_eq!(events.recv().await, Some(Event::Lost { channel: bell(tag).into() }));
    assert_eq!(events.recv().await, Some(Event::Live { channel: bell(tag).into() }), "which means: read now");
    assert_eq!(take(&mut reader, tag).await, 1);
    add(&mut owner, tag).await;
    assert_eq!(rung(&mut events).await, bell(tag).into_bytes());
}
