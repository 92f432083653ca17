//! The health server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    beat::{Beat, Phase},
    codec,
    id::WorkerId,
    keys::{Keys, PartitionKeys},
    message::Outcome,
};
use stepfleet_worker::Attempt;
use tokio::sync::Semaphore;

use crate::{
    owner::{self, Owner, job, keys},
    server::{Server, free_port, until, until_within},
};

/// Half the time of a death is 15 s, and a beat comes every 10 s; a busy machine may need much more.
const LONG: Duration = Duration::from_secs(300);

pub(crate) async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_whether_the_worker_takes_jobs_and_what_it_did() {
    let server = Server::start().await;
    let port = free_port();
    let mut worker = owner::start(owner::worker(&server).health(([127, 0, 0, 1], port).into()));
    until("the worker lives", async || get(port, "/livez").await.is_some_and(|(status, _)| status == 200)).await;
    assert_eq!(get(port, "/readyz").await, Some((503, "no partitions yet\n".to_owned())));

    let mut owner = Owner::new(&server, 1).await;
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    assert_eq!(get(port, "/readyz").await.map(|(status, _)| status), Some(200));
    let (_, metrics) = get(port, "/metrics").await.expect("metrics");
    assert!(metrics.contains("stepfleet_worker_jobs_total{outcome=\"completed\",queue=\"q\"} 1"), "{metrics}");
    assert!(metrics.contains("stepfleet_worker_run_seconds_count{handler=\"noop\"} 1"), "{metrics}");
    owner.outcome(&job("noop", Json::Null)).await;
    let (_, metrics) = get(port, "/metrics").await.expect("metrics");
    assert!(metrics.contains("stepfleet_worker_run_seconds_count{handler=\"noop\"} 2"), "{metrics}");

    owner.dispatch(0, "q", &job("sleep", json!({"duration": "500ms"}))).await;
    until("the slot is used", async || {
        get(port, "/metrics").await.is_some_and(|(_, text)| text.contains("stepfleet_worker_slots_used 1"))
    })
    .await;
    worker.tell_to_drain();
    until("it is not ready", async || get(port, "/readyz").await == Some((503, "draining\n".to_owned()))).await;
    worker.left().await;
}

/// The counter of a worker's beats, and its last account of itself.
async fn beat(owner: &mut Owner, id: &WorkerId) -> (u64, Beat) {
    let (beats, account): (u64, Vec<u8>) = redis::cmd("HMGET")
        .arg(Keys::default().worker(id))
        .arg("n")
        .arg("beat")
        .query_async(&mut owner.connection)
        .await
        .expect("a registered worker has given an account");
    (beats, codec::unpack(&account).expect("an account"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_comes_every_ten_seconds_and_tells_of_a_drain() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let (runs, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begun, held) = (Arc::clone(&runs), Arc::clone(&gate));
    let handler = move |_: Attempt, _: Json| {
        let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
        async move {
            begun.add_permits(1);
            held.acquire().await?.forget();
            Ok(())
        }
    };
    let mut worker = owner::start(owner::worker(&server).handler("gated", handler));
    let id = owner.worker().await;
    let (first, account) = beat(&mut owner, &id).await;
    assert_eq!((account.phase, account.held), (Phase::Running, Vec::new()));
    let begun = Instant::now();
    until("the beat moves", async || beat(&mut owner, &id).await.0 > first).await;
    // Ten seconds and a moment; a beat that was left out would come after twenty.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    owner.dispatch(0, "q", &job("gated", Json::Null)).await;
    until("the job runs", async || runs.available_permits() == 1).await;
    worker.tell_to_drain();
    until("the beat tells of the drain", async || beat(&mut owner, &id).await.1.phase == Phase::Draining).await;
    gate.add_permits(1);
    worker.left().await;
    assert_eq!(owner.workers().await, []);
}

/// The beats of a worker so far.
async fn beats(owner: &mut Owner, worker: &WorkerId) -> i64 {
    let mut get = redis::cmd("HGET");
    get.arg(Keys::default().worker(worker)).arg("n").query_async(&mut owner.connection).await.expect("a number")
}

/// Seconds since the streams were read, as a worker that is not ready tells.
async fn deaf_for(port: u16) -> Option<u64> {
    let (status, text) = get(port, "/readyz").await?;
    let age = text.strip_prefix("job streams were last read ")?.trim_end().strip_suffix("s ago")?.parse().ok()?;
    (status == 503).then_some(age)
}

/// Lesson 6: a worker whose stream had ended went on with its heartbeats; every dashboard was green, and its jobs timed out.
#[tokio::test(flavor = "multi_thread")]
async fn lesson_06_a_worker_that_cannot_read_its_streams_beats_no_more_and_is_not_ready() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let port = free_port();
    let worker = owner::start(owner::worker(&server).health(([127, 0, 0, 1], port).into()));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    let id = owner.worker().await;
    // Redis answers, and takes every write of the worker; only its stream is no stream any more.
    let stream = PartitionKeys::jobs(&keys(0), &owner::name("q"));
    owner.ask(redis::cmd("SET").arg(&stream).arg("a stranger was here")).await;
    until_within(LONG, "the worker knows that it is deaf", async || deaf_for(port).await.is_some()).await;
    let before = beats(&mut owner, &id).await;
    // A beat is due every ten seconds: one that was due since the worker became deaf did not come.
    until_within(LONG, "a beat is due", async || deaf_for(port).await.is_some_and(|age| age >= 26)).await;
    assert_eq!(beats(&mut owner, &id).await, before, "it beats without hearing anything");
    assert_eq!(get(port, "/livez").await.map(|(status, _)| status), Some(200), "a restart would not help");
    owner.ask(redis::cmd("DEL").arg(&stream)).await;
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    until("the worker is ready again", async || get(port, "/readyz").await.is_some_and(|(status, _)| status == 200))
        .await;
    worker.left().await;
}
