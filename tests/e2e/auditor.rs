//! What becomes of a run when somebody takes a step out of its place by hand, in a real server.

use std::time::Duration;

use anyhow::{Context, ensure};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use stepfleet_protocol::{
    id::PartitionId,
    keys::{Keys, PREFIX_DEFAULT, PartitionKeys},
    name::Name,
};
use stepfleet_tests::{
    Server, Signal,
    lab::{self, Api, Effects, Fleet, Hands, START},
    wait,
};

use crate::load;

/// A job that is nowhere is found after a walk and two beats.
const REPAIRED: Duration = Duration::from_secs(60);

fn keys() -> PartitionKeys {
    Keys::new(PREFIX_DEFAULT).partition(PartitionId(0))
}

fn one(handler: &str, with: &Value) -> Value {
    json!({ "workflow": "one", "steps": { "only": { "handler": handler, "with": with } } })
}

async fn jobs(redis: &mut MultiplexedConnection) -> anyhow::Result<Vec<String>> {
    let key = keys().jobs(&Name::new("default")?);
    let found: redis::streams::StreamRangeReply =
        redis::cmd("XRANGE").arg(key).arg("-").arg("+").query_async(redis).await?;
    Ok(found.ids.into_iter().map(|entry| entry.id).collect())
}

async fn delete_jobs(redis: &mut MultiplexedConnection) -> anyhow::Result<usize> {
    let entries = jobs(redis).await?;
    let key = keys().jobs(&Name::new("default")?);
    Ok(redis::cmd("XDEL").arg(key).arg(&entries).query_async(redis).await?)
}

async fn until_jobs(redis: &mut MultiplexedConnection, at_least: usize) {
    wait::until(START, "jobs on the stream", async || {
        let found = jobs(redis).await?.len();
        ensure!(found >= at_least, "{found}");
        Ok(())
    })
    .await
    .unwrap();
}

/// The value of the counter with this label.
async fn repairs(api: &Api, what: &str) -> anyhow::Result<f64> {
    let text = api.text("/metrics").await?;
    let name = format!("stepfleet_audit_repairs_total{{what=\"{what}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("{name}in {text}"))?;
    Ok(line.parse()?)
}

async fn is_repaired(api: &Api, run: &str) -> bool {
    api.history(run).await.unwrap().iter().any(|entry| entry["reason"] == "repaired")
}

async fn fleet() -> (Server, Fleet) {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    (server, fleet)
}

#[tokio::test]
async fn lesson_33_steps_that_fell_out_of_the_ready_set_are_put_back() {
    let (server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    api.register(&one("noop", &Value::Null)).await.unwrap();
    // The window of a queue takes 256; the others wait in the ready set.
    let runs = api.submit_many("one", 300).await.unwrap();
    let ready = keys().ready(&Name::new("default").unwrap());
    wait::until(START, "steps in the ready set", async || {
        let found: usize = redis::cmd("ZCARD").arg(&ready).query_async(&mut redis).await?;
        ensure!(found == 44, "{found}");
        Ok(())
    })
    .await
    .unwrap();
    let _: usize = redis::cmd("DEL").arg(&ready).query_async(&mut redis).await.unwrap();
    fleet.add_worker(&[]).unwrap();
    api.until_all(&runs, "completed", REPAIRED).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    assert_eq!(repairs(&api, "ready").await.unwrap(), 44.0);
    let mut repaired = 0;
    for run in &runs {
        repaired += usize::from(is_repaired(&api, run).await);
    }
    assert_eq!(repaired, 44, "the history says whose");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn lesson_02_a_job_that_vanished_from_its_stream_is_dispatched_again() {
    let (server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let run = api.submit(&one("noop", &Value::Null), Value::Null).await.unwrap();
    until_jobs(&mut redis, 1).await;
    assert_eq!(delete_jobs(&mut redis).await.unwrap(), 1);
    fleet.add_worker(&[]).unwrap();
    api.until_state(&run, "completed", REPAIRED).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    assert_eq!(repairs(&api, "job").await.unwrap(), 1.0);
    let step = api.run(&run).await.unwrap()["step_list"][0].clone();
    assert_eq!((&step["attempts"], is_repaired(&api, &run).await), (&json!(1), true), "the loss is no attempt");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn lesson_31_a_cancel_whose_job_vanished_ends_the_run_although_no_worker_ever_confirms() {
    let (server, fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let run = api.submit(&one("sleep", &json!({ "duration": "1h" })), Value::Null).await.unwrap();
    until_jobs(&mut redis, 1).await;
    let (status, _) = api.command(&run, "cancel").await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(delete_jobs(&mut redis).await.unwrap(), 1);
    api.until_state(&run, "cancelled", REPAIRED).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    assert!(is_repaired(&api, &run).await);
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_retry_whose_timer_vanished_is_tried_at_once_by_the_next_owner() {
    let (server, mut fleet) = fleet().await;
    let mut redis = server.connection().await.unwrap();
    let retry = json!({ "max_attempts": 2, "backoff": { "base": "10m", "cap": "10m", "jitter": "none" } });
    let fail = json!({ "handler": "fail", "with": { "category": "transient" }, "retry": retry });
    let definition = json!({ "workflow": "one", "steps": { "only": fail } });
    fleet.add_worker(&[]).unwrap();
    let run = fleet.api().submit(&definition, Value::Null).await.unwrap();
    fleet.api().until_step(&run, "only", "retrying", START).await.unwrap();
    // The owner remembers its timers: the next one has only what Redis has.
    let mut first = fleet.coordinators.remove(0).program;
    first.signal(Signal::SIGTERM).unwrap();
    assert!(first.wait(START).await.unwrap().success(), "{}", first.stderr());
    let timers: Vec<Vec<u8>> =
        redis::cmd("ZRANGE").arg(keys().timers()).arg(0).arg(-1).query_async(&mut redis).await.unwrap();
    for member in timers.iter().filter(|member| member.first() == Some(&b'T')) {
        let _: usize = redis::cmd("ZREM").arg(keys().timers()).arg(&member[..]).query_async(&mut redis).await.unwrap();
    }
    let api = fleet.add_coordinator().await.unwrap().api.clone();
    api.until_state(&run, "failed", REPAIRED).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    assert_eq!(repairs(&api, "timer").await.unwrap(), 1.0);
    assert_eq!(api.run(&run).await.unwrap()["step_list"][0]["attempts"], 2);
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn with_nothing_broken_nothing_is_repaired_under_load() {
    let (server, fleet) = fleet().await;
    let api = fleet.api().clone();
    let effects = Effects::default();
    let hands = Hands::start(&server.url(), 2, &effects).unwrap();
    // Few slots and a slow handler: jobs wait on the stream and in the ready set for longer than an auditor's two
    // looks.
    let slow = json!({ "workflow": "slow", "steps": { "only": { "handler": "mark", "with": { "ms": 120 } } } });
    api.register(&slow).await.unwrap();
    let waiting = api.submit_many("slow", 600).await.unwrap();
    let chains = load::submit(&api, 100).await.unwrap();
    api.until_all(&waiting, "completed", load::ALL).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    api.until_all(&chains, "completed", load::ALL).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    for what in ["ready", "timer", "job", "run", "timeout", "work", "letter"] {
        assert_eq!(repairs(&api, what).await.unwrap(), 0.0, "{what}: {}", fleet.story());
    }
    assert!(api.metric("stepfleet_audit_runs_total").await.unwrap() > 600.0, "it looked");
    hands.drain().await.unwrap();
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_that_waits_for_the_workers_of_its_fallback_is_left_alone() {
    let (_server, mut fleet) = fleet().await;
    fleet.add_worker(&[]).unwrap();
    let api = fleet.api().clone();
    fleet.verb(&["breakers", "open", "target:shop", "--reason", "maintenance"]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let definition = json!({ "workflow": "shops", "steps": { "buy": { "handler": "noop", "breaker": "shop",
        "fallback": { "handler": "noop", "queue": "nobody" } } } });
    let run = api.submit(&definition, Value::Null).await.unwrap();
    // Longer than two looks at a job that is nowhere are apart.
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!((repairs(&api, "job").await.unwrap(), is_repaired(&api, &run).await), (0.0, false));
    fleet.add_worker(&["--queue", "nobody"]).unwrap();
    api.until_state(&run, "completed", START).await.unwrap();
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_run_whose_timeout_was_lost_gets_it_again_and_ends() {
    let (server, mut fleet) = fleet().await;
    let mut redis = server.connection().await.unwrap();
    let limited = json!({
        "workflow": "limited", "timeout": "6s",
        "steps": { "only": { "handler": "sleep", "with": { "duration": "1h" }, "timeout": "2h" } }
    });
    fleet.add_worker(&[]).unwrap();
    let run = fleet.api().submit(&limited, Value::Null).await.unwrap();
    fleet.api().until_state(&run, "processing", START).await.unwrap();
    // The owner remembers its timers: the next one has only what Redis has.
    let mut first = fleet.coordinators.remove(0).program;
    first.signal(Signal::SIGTERM).unwrap();
    assert!(first.wait(START).await.unwrap().success(), "{}", first.stderr());
    let _: usize = redis::cmd("DEL").arg(keys().timers()).query_async(&mut redis).await.unwrap();
    let api = fleet.add_coordinator().await.unwrap().api.clone();
    let failed = api.until_state(&run, "failed", REPAIRED).await;
    failed.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    assert_eq!((repairs(&api, "timeout").await.unwrap(), is_repaired(&api, &run).await), (1.0, true));
    fleet.stop().await.unwrap();
}
