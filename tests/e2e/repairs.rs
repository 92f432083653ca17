//! What becomes of dead letters, time-outs and acked jobs when somebody deletes keys by hand, in a real server.

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
    Server,
    lab::{self, Api, Effects, Fleet, Hands, START},
    wait,
};

/// A job that is nowhere is found after a walk and two beats.
const REPAIRED: Duration = Duration::from_secs(60);

fn keys() -> PartitionKeys {
    Keys::new(PREFIX_DEFAULT).partition(PartitionId(0))
}

async fn fleet() -> (Server, Fleet) {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    (server, fleet)
}

/// The value of the counter with this label.
async fn repairs(api: &Api, what: &str) -> anyhow::Result<f64> {
    let text = api.text("/metrics").await?;
    let name = format!("stepfleet_audit_repairs_total{{what=\"{what}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("{name}in {text}"))?;
    Ok(line.parse()?)
}

async fn until_repaired(api: &Api, fleet: &Fleet, run: &str, note: &str) {
    wait::until(REPAIRED, note, async || {
        let history = api.history(run).await?;
        let said = |entry: &Value| entry["reason"] == "repaired" && entry["note"].as_str().unwrap_or("").contains(note);
        ensure!(history.iter().any(said), "{history:#?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
}

async fn number(redis: &mut MultiplexedConnection, command: &str, key: &str) -> u64 {
    redis::cmd(command).arg(key).query_async(redis).await.unwrap()
}

async fn letters(api: &Api) -> Vec<Value> {
    api.get("/api/v1/dead-letters").await.unwrap()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_dead_letter_that_vanished_is_written_again_and_can_be_replayed() {
    let (server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let fail = json!({ "handler": "fail", "with": { "category": "permanent", "message": "no such card" } });
    fleet.add_worker(&[]).unwrap();
    let run = api.submit(&json!({ "workflow": "one", "steps": { "only": fail } }), Value::Null).await.unwrap();
    api.until_state(&run, "failed", START).await.unwrap();
    let before = letters(&api).await;
    let deleted: u64 = redis::cmd("DEL").arg(keys().dead()).query_async(&mut redis).await.unwrap();
    assert_eq!((before.len(), deleted), (1, 1));
    // Failed runs are walked over every ten minutes, unless somebody asks.
    let said = fleet.verb(&["doctor", "--audit"]).await.map_err(|e| format!("{e:#}"));
    until_repaired(&api, &fleet, &run, "its dead letter was lost").await;
    let text = said.unwrap_or_else(|text| text);
    assert!(text.contains("1 repairs of what was in no place"), "{text}\n{}", fleet.story());
    let after = letters(&api).await;
    assert_eq!((after.len(), repairs(&api, "letter").await.unwrap()), (1, 1.0));
    assert_eq!((&after[0]["cause"], &after[0]["category"]), (&before[0]["cause"], &before[0]["category"]));
    assert_eq!(after[0]["fingerprint"], before[0]["fingerprint"]);
    let group = number(&mut redis, "ZCARD", &keys().letters(after[0]["fingerprint"].as_str().unwrap())).await;
    assert_eq!((group, number(&mut redis, "XLEN", &keys().dead()).await), (1, 1), "the lost one left its group");

    // The same when only the group is lost.
    let _: u64 = redis::cmd("DEL")
        .arg(keys().letters(after[0]["fingerprint"].as_str().unwrap()))
        .query_async(&mut redis)
        .await
        .unwrap();
    let _ = fleet.verb(&["doctor", "--audit"]).await;
    let again = letters(&api).await;
    assert_eq!((again.len(), repairs(&api, "letter").await.unwrap()), (1, 2.0), "{}", fleet.story());
    assert_ne!(again[0]["id"], after[0]["id"]);
    let groups = number(&mut redis, "ZCARD", &keys().letter_groups()).await;
    let group = number(&mut redis, "ZCARD", &keys().letters(after[0]["fingerprint"].as_str().unwrap())).await;
    assert_eq!((groups, group), (1, 1));
    let path = format!("/api/v1/dead-letters/{}/replay", again[0]["id"].as_str().unwrap());
    let (status, answer) = api.post(&path, &[], &json!({})).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_run_whose_time_out_vanished_is_ended_in_time_by_a_new_one() {
    let (server, fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let sleep = json!({ "handler": "sleep", "with": { "duration": "1h" } });
    let definition = json!({ "workflow": "one", "timeout": "100s", "steps": { "only": sleep } });
    let run = api.submit(&definition, Value::Null).await.unwrap();
    wait::until(START, "a timer", async || {
        ensure!(number(&mut redis, "ZCARD", &keys().timers()).await == 1);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(number(&mut redis, "DEL", &keys().timers()).await, 1);
    let view = api.get("/api/v1/doctor").await.unwrap();
    assert!(view.to_string().contains("have lost their time-out"), "{view:#}");
    until_repaired(&api, &fleet, &run, "its time-out was lost").await;
    assert_eq!(repairs(&api, "timeout").await.unwrap(), 1.0);
    assert_eq!(number(&mut redis, "ZCARD", &keys().timers()).await, 1);
    let view = api.get("/api/v1/doctor").await.unwrap();
    assert!(!view.to_string().contains("have lost their time-out"), "{view:#}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_group_that_is_made_anew_runs_nothing_again_that_was_done() {
    let (server, fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let effects = Effects::default();
    let hands = Hands::start(&server.url(), 1, &effects).unwrap();
    let quick = json!({ "workflow": "quick", "steps": { "only": { "handler": "mark", "with": { "ms": 1 } } } });
    api.register(&quick).await.unwrap();
    let done = api.submit_many("quick", 50).await.unwrap();
    api.until_all(&done, "completed", START).await.unwrap();
    hands.drain().await.unwrap();
    let waiting = api.submit_many("quick", 3).await.unwrap();
    let jobs = keys().jobs(&Name::new("default").unwrap());
    wait::until(START, "waiting jobs", async || {
        ensure!(number(&mut redis, "XLEN", &jobs).await >= 3);
        Ok(())
    })
    .await
    .unwrap();
    let _: u64 = redis::cmd("XGROUP").arg("DESTROY").arg(&jobs).arg("workers").query_async(&mut redis).await.unwrap();
    let (status, fixed) = api.post("/api/v1/doctor/fix", &[], &json!({})).await.unwrap();
    assert_eq!((status, fixed["done"].as_array().unwrap().len()), (200, 1), "{fixed}");
    let hands = Hands::start(&server.url(), 1, &effects).unwrap();
    api.until_all(&waiting, "completed", REPAIRED).await.unwrap_or_else(|e| panic!("{e:#}\n{}", fleet.story()));
    for run in done.iter().chain(&waiting) {
        assert_eq!(effects.of(run, "only").len(), 1, "nothing was done twice: {run}");
    }
    hands.drain().await.unwrap();
    fleet.stop().await.unwrap();
}
