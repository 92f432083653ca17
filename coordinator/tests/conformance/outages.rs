//! After an outage: what was due meanwhile waits for the results that workers have in hand.

use std::time::Duration;

use stepfleet_coordinator::{
    machine::decision::Why,
    shell::owner::Owner,
    store::{
        link::Dial,
        memory::{MemoryDial, MemoryServer},
    },
};
use stepfleet_protocol::{
    id::RunId,
    message::{Body, Job, JobRef, Outcome, Started},
    state::State,
    workflow::Workflow,
};
use tokio::time::Instant;

use crate::{
    fleet::Worker,
    world::{World, on_twin},
};

type Twin = World<MemoryDial>;
type Owned = Owner<<MemoryDial as Dial>::Link>;

/// One step with a limit of five seconds; its attempt is given up 30 s later.
fn five_seconds() -> Workflow {
    let steps = serde_json::json!({"s": {"handler": "noop", "timeout": "5s"}});
    serde_json::from_value(serde_json::json!({"workflow": "w", "steps": steps})).expect("a legal workflow")
}

/// A worker says that it is at its job; then the server is away for 45 s, and a new owner takes over.
async fn an_outage(
    server: &MemoryServer,
    w: &mut Twin,
    worker: &mut Worker<MemoryDial>,
) -> (RunId, JobRef, Job, Owned) {
    let run = w.submit(&five_seconds()).await;
    let mut owner = w.own().await;
    let (of, job) = w.jobs(&mut owner, worker).await.swap_remove(0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let body = Body::Started(Started { worker: worker.id.clone(), jobs: vec![(of.clone(), 1_000)] });
    worker.client.append(body).await.expect("up");
    w.turns(&mut owner, 2).await;
    (run, of, job, away(server, w, worker).await)
}

/// The server is away for 45 s; then a new owner takes over.
async fn away(server: &MemoryServer, w: &mut Twin, worker: &mut Worker<MemoryDial>) -> Owned {
    server.down();
    tokio::time::sleep(Duration::from_secs(45)).await;
    server.up();
    // The connections of before are gone, as each of them finds out once.
    let mut ping = redis::pipe();
    ping.cmd("PING");
    for client in [&mut w.client, &mut worker.client] {
        client.trip(&ping).await.expect_err("it was reset");
    }
    w.own().await
}

/// Turns the owner for so many seconds.
async fn turns_for(owner: &mut Owned, secs: u64) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(secs) {
        owner.turn(false).await.expect("no faults");
    }
}

#[test]
fn a_result_that_its_worker_had_in_hand_during_an_outage_counts() {
    on_twin(async |server, mut w| {
        let mut worker = w.worker(1);
        let (run, of, _, mut owner) = an_outage(&server, &mut w, &mut worker).await;
        // The worker's last try hung, and the next one comes after its wait.
        turns_for(&mut owner, 8).await;
        worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed), "{:?}", w.stored(run).await.history);
        let failed = w.stored(run).await.history.iter().filter(|t| t.to == State::Failed).count();
        assert_eq!(failed, 0, "no attempt was given up");
        turns_for(&mut owner, 5).await;
        assert_eq!(w.number(&["ZCARD", &crate::fleet::keys().timers()]).await, 0, "its timer is gone");
    });
}

#[test]
fn an_attempt_without_a_result_is_given_up_ten_seconds_after_an_outage() {
    on_twin(async |server, mut w| {
        let mut worker = w.worker(1);
        let (run, _, first, mut owner) = an_outage(&server, &mut w, &mut worker).await;
        turns_for(&mut owner, 9).await;
        assert!(w.stored(run).await.history.iter().all(|t| t.to != State::Failed), "not yet");
        // Another owner that comes meanwhile waits anew, as there may have been another outage.
        let mut owner = {
            drop(owner);
            w.own().await
        };
        turns_for(&mut owner, 9).await;
        assert!(w.stored(run).await.history.iter().all(|t| t.to != State::Failed), "not yet");
        turns_for(&mut owner, 2).await;
        let history = w.stored(run).await.history;
        let given_up = history.iter().find(|t| t.to == State::Failed).expect("the owner gave it up");
        assert!(given_up.note.as_deref().is_some_and(|note| note.starts_with("timeout/")), "{given_up}");
        turns_for(&mut owner, 3).await;
        let again = w.jobs(&mut owner, &mut worker).await;
        assert_eq!((again[0].1.attempt, first.attempt), (2, 1));
    });
}

#[test]
fn retries_and_time_outs_of_runs_are_punctual_after_an_outage() {
    on_twin(async |server, mut w| {
        let mut flow = five_seconds();
        flow.timeout = stepfleet_protocol::duration::Millis(20_000);
        let run = w.submit(&flow).await;
        let retried = w.submit(&five_seconds()).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let mut jobs = w.jobs(&mut owner, &mut worker).await;
        jobs.retain(|(of, _)| of.run == retried);
        let failure =
            stepfleet_protocol::failure::Failure::new(stepfleet_protocol::failure::Category::Transient, "no luck");
        worker.answer(vec![(jobs[0].0.clone(), Outcome::Failed(failure))]).await.expect("up");
        w.turns(&mut owner, 2).await;
        drop(owner);
        let mut owner = away(&server, &mut w, &mut worker).await;
        w.turns(&mut owner, 3).await;
        let stopped = w.stored(run).await.history.iter().any(|t| t.why == Why::TimedOut);
        assert!(stopped, "{:?}", w.stored(run).await.history);
        let again = w.jobs(&mut owner, &mut worker).await;
        assert_eq!((again[0].0.run, again[0].1.attempt), (retried, 2));
    });
}
