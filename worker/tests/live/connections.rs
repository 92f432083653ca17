//! How many connections a worker has.

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    codec,
    message::Outcome,
    value::{Input, Payload, ValueRef},
};

use crate::{
    owner::{self, Owner, job, keys},
    server::{Server, until},
};

/// A reader, a writer, a subscription.
pub(crate) const ITS_OWN: usize = 3;
/// The pool for beats, values and other short commands.
pub(crate) const POOL_MAX: usize = 16;

/// Clients of a server other than the one that asks.
async fn others(owner: &mut Owner) -> usize {
    match owner.ask(redis::cmd("CLIENT").arg("LIST")).await {
        redis::Value::BulkString(list) => String::from_utf8_lossy(&list).lines().count() - 1,
        redis::Value::VerbatimString { text, .. } => text.lines().count() - 1,
        other => panic!("CLIENT LIST answered {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_three_connections_of_its_own_and_a_bounded_pool() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 8).await;
    let worker = owner::start(owner::worker(&server).concurrency(256));
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    let idle = others(&mut owner).await;
    assert!((ITS_OWN + 1..=ITS_OWN + 4).contains(&idle), "{idle} connections of a worker that has little to do");
    // Inputs by reference are read over the pool, by as many jobs as run at once.
    let (mut most, mut jobs) = (0, Vec::new());
    let value = codec::pack(&json!({"duration": "1ms", "pad": "x".repeat(200_000)}));
    for n in 0..256_u16 {
        let mut job = job("sleep", Json::Null);
        let of = keys(n % 8);
        owner.ask(redis::cmd("SET").arg(of.value(job.id)).arg(&value)).await;
        let by_reference = ValueRef { id: job.id.to_string(), bytes: value.len() as u64 };
        job.input = Input::Whole(Payload::Ref(by_reference));
        owner.dispatch(n % 8, "q", &job).await;
        jobs.push(job);
        most = most.max(others(&mut owner).await);
    }
    owner.wait_for(jobs.len() + 1).await;
    most = most.max(others(&mut owner).await);
    assert!(most <= ITS_OWN + POOL_MAX, "{most} connections of a busy worker");
    worker.left().await;
    until("all are closed", async || others(&mut owner).await == 0).await;
}
