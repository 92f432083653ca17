//! Cancels, drains and outages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    beat::Control,
    codec::pack,
    keys::Keys,
    message::{Outcome, Returned},
};
use stepfleet_worker::Attempt;

use crate::{
    owner::{self, Owner, job, keys},
    server::{Server, until},
};

/// Waits until the worker has taken the job from its stream.
async fn taken(owner: &mut Owner, count: i64) {
    until("the jobs are taken", async || {
        let stream = keys(0).jobs(&owner::name("q"));
        let mut pending = redis::cmd("XPENDING");
        // No answer as long as there is no group.
        match pending.arg(stream).arg("workers").query_async(&mut owner.connection).await {
            Ok(redis::Value::Array(parts)) => parts.first() == Some(&redis::Value::Int(count)),
            Ok(_) | Err(_) => false,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_hands_back_at_once_and_lets_running_jobs_finish() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let mut worker = owner::start(owner::worker(&server));
    let (running, waiting) = (job("sleep", json!({"duration": "700ms"})), job("unknown", Json::Null));
    owner.dispatch(0, "q", &running).await;
    owner.dispatch(0, "q", &waiting).await;
    taken(&mut owner, 2).await;
    let begun = Instant::now();
    worker.tell_to_drain();
    assert_eq!(owner.result(&waiting).await.outcome, Outcome::Returned(Returned::Drain));
    // Five times the promise.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(owner.result(&running).await.outcome, Outcome::Completed(None));
    worker.left().await;
    assert_eq!(owner.workers().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_leaves_at_once() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    let begun = Instant::now();
    worker.left().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_in_the_drain_time_is_handed_back() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let builder = owner::worker(&server).drain_timeout(Duration::from_millis(100));
    let worker = owner::start(builder.handler("stuck", |_: Attempt, _: Json| async move {
        std::future::pending::<()>().await;
        Ok(())
    }));
    let (polite, stuck) = (job("sleep", json!({"duration": "1h"})), job("stuck", Json::Null));
    owner.dispatch(0, "q", &polite).await;
    owner.dispatch(0, "q", &stuck).await;
    taken(&mut owner, 2).await;
    worker.left().await;
    for job in [polite, stuck] {
        assert_eq!(owner.result(&job).await.outcome, Outcome::Returned(Returned::Drain));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_running_job_over_the_channel_and_an_awaited_one_when_it_comes() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let (running, later) = (job("sleep", json!({"duration": "1h"})), job("noop", Json::Null));
    owner.dispatch(0, "q", &running).await;
    taken(&mut owner, 1).await;
    let message = pack(&Control::Cancel(vec![running.id, later.id]));
    until("the worker listens", async || {
        owner.ask(redis::cmd("SPUBLISH").arg(keys(0).control()).arg(&message)).await != redis::Value::Int(0)
    })
    .await;
    assert_eq!(owner.result(&running).await.outcome, Outcome::Cancelled);
    assert_eq!(owner.outcome(&later).await, Outcome::Cancelled);
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_can_drain_a_worker() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let id = owner.worker().await;
    let channel = Keys::default().worker_control(&id);
    until("the worker listens", async || {
        owner.ask(redis::cmd("SPUBLISH").arg(&channel).arg(pack(&Control::Drain))).await != redis::Value::Int(0)
    })
    .await;
    until("the worker has left", async || worker.has_left()).await;
}

/// A message on a channel may be lost: the set is read with each beat, and a beat comes with every reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_no_message_told_of_is_found_with_a_beat() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let running = job("sleep", json!({"duration": "1h"}));
    owner.ask(redis::cmd("SADD").arg(keys(0).cancels()).arg(running.id.to_string())).await;
    owner.dispatch(0, "q", &running).await;
    assert_eq!(owner.result(&running).await.outcome, Outcome::Cancelled);
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_outlives_its_server_and_works_on_at_once() {
    let mut server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let running = job("sleep", json!({"duration": "500ms"}));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    owner.dispatch(0, "q", &running).await;
    taken(&mut owner, 1 + 1).await;
    server.down();
    server.up().await;
    let back = Instant::now();
    let mut owner = Owner::new(&server, 1).await;
    let after = job("noop", Json::Null);
    assert_eq!(owner.outcome(&after).await, Outcome::Completed(None));
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    assert_eq!(owner.result(&running).await.outcome, Outcome::Completed(None));
    let times = owner.results().await.iter().filter(|result| result.of.job == running.id).count();
    assert_eq!(times, 1, "it ran on while the server was away");
    worker.left().await;
}

/// The server comes back without its last writes: what was written in the last minute is written again.
#[tokio::test(flavor = "multi_thread")]
async fn results_that_a_server_has_lost_are_written_again() {
    let mut server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let done = job("noop", Json::Null);
    assert_eq!(owner.outcome(&done).await, Outcome::Completed(None));
    owner.ask(redis::cmd("DEL").arg(keys(0).log())).await;
    server.down();
    server.up().await;
    let mut owner = Owner::new(&server, 1).await;
    assert_eq!(owner.result(&done).await.outcome, Outcome::Completed(None));
    worker.left().await;
}

/// The reply of a read was lost: the job is pending at this worker, which never saw it.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_reconnect_a_worker_takes_up_what_was_delivered_and_never_arrived() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server).concurrency(1));
    let id = owner.worker().await;
    let (first, lost) = (job("sleep", json!({"duration": "300ms"})), job("noop", Json::Null));
    owner.dispatch(0, "q", &first).await;
    taken(&mut owner, 1).await;
    owner.dispatch(0, "q", &lost).await;
    let stream = keys(0).jobs(&owner::name("q"));
    let mut steal = redis::cmd("XREADGROUP");
    steal.arg("GROUP").arg("workers").arg(id.as_str()).arg("STREAMS").arg(&stream).arg(">");
    owner.ask(&steal).await;
    owner.ask(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).await;
    let legal = [Outcome::Completed(None), Outcome::Returned(Returned::Surplus)];
    assert!(legal.contains(&owner.result(&lost).await.outcome));
    assert_eq!(owner.result(&first).await.outcome, Outcome::Completed(None));
    worker.left().await;
}

/// The owner lags, and the worker has written more than it keeps to write again: what it has done it still knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_result_was_written_is_not_done_again_however_much_was_written_since() {
    const VALUE_BYTES: usize = 1_000_000;
    const JOBS: usize = stepfleet_worker::limits::RECENT_BYTES_MAX / VALUE_BYTES + 15;
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let worker = owner::start(owner::worker(&server).concurrency(8).handler("large", move |_: Attempt, _: Json| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok("x".repeat(VALUE_BYTES)) }
    }));
    for _ in 0..JOBS {
        owner.dispatch(0, "q", &job("large", Json::Null)).await;
    }
    // Values go by reference, so the log is small.
    owner.wait_for(JOBS).await;
    owner.ask(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).await;
    // A reader that comes back looks at what is pending before it reads on.
    let after = job("noop", Json::Null);
    assert_eq!(owner.outcome(&after).await, Outcome::Completed(None));
    worker.left().await;
    assert_eq!(done.load(Ordering::SeqCst), JOBS);
    assert_eq!(owner.results().await.len(), JOBS + 1, "nothing was handed back either");
}

/// Lesson 13: a worker reconnected after a reset, looked well, and never consumed again.
#[tokio::test(flavor = "multi_thread")]
async fn lesson_13_after_a_hundred_resets_in_a_row_jobs_are_consumed_again_within_seconds() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 2).await;
    let worker = owner::start(owner::worker(&server).concurrency(2));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    let mut killed = 0;
    until("a hundred connections are reset", async || {
        for kind in ["normal", "pubsub"] {
            let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes").to_owned();
            match owner.ask(&kill).await {
                redis::Value::Int(count) => killed += count,
                other => panic!("CLIENT KILL answered {other:?}"),
            }
        }
        killed >= 100
    })
    .await;
    let begun = Instant::now();
    let jobs = [job("noop", Json::Null), job("sleep", json!({"duration": "10ms"})), job("noop", Json::Null)];
    for (partition, job) in [0, 1, 0].into_iter().zip(&jobs) {
        owner.dispatch(partition, "q", job).await;
    }
    let results = owner.wait_for(1 + jobs.len()).await;
    // Five times the promise.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(results.iter().all(|result| result.outcome == Outcome::Completed(None)), "{results:?}");
    worker.left().await;
}
