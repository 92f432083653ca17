//! Commands on runs, and submits that come twice.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use stepfleet_tests::{
    lab::{self, Fleet},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    a_cancel_stops_the_handler_at_once,
    a_suspended_run_starts_nothing_until_it_is_resumed,
}

pub(crate) async fn a_cancel_stops_the_handler_at_once(fleet: &Fleet) {
    let api = fleet.api();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 300", file.display());
    let definition = json!({ "workflow": "long", "steps": {
        "work": { "handler": "exec", "with": { "command": ["sh", "-c", script] } },
        "after": { "handler": "noop", "needs": ["work"] } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_step(&run, "work", "processing", SOON).await.unwrap();
    let pid = std::fs::read_to_string(&file).unwrap();
    let began = Instant::now();
    let (status, answer) = api.command(&run, "cancel").await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    wait::until(Duration::from_secs(10), "the program to end", async || {
        anyhow::ensure!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "it still runs");
        Ok(())
    })
    .await
    .unwrap();
    api.until_state(&run, "cancelled", SOON).await.unwrap();
    api.until_step(&run, "after", "cancelled", SOON).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    let (status, problem) = api.command(&run, "resume").await.unwrap();
    assert_eq!(status, 409, "a cancelled run is final: {problem:#}");
    assert!(problem.to_string().contains("cancelled"), "the state is named: {problem:#}");
}

pub(crate) async fn a_suspended_run_starts_nothing_until_it_is_resumed(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "two", "steps": {
        "work": { "handler": "sleep", "with": { "duration": "1500ms" } },
        "after": { "handler": "noop", "needs": ["work"] } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let step = api.until_step(&run, "work", "processing", SOON).await.unwrap();
    assert!(step["worker"].as_str().unwrap().starts_with('w') && step["started_at"].is_string(), "{step:#}");
    let (status, answer) = api.command(&run, "suspend").await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(api.get("/api/v1/metrics/runs").await.unwrap()["suspended"], 1, "a held run is counted");
    // What runs finishes and counts; what follows waits.
    api.until_step(&run, "work", "completed", SOON).await.unwrap();
    let view = api.until_state(&run, "suspended", SOON).await.unwrap();
    assert_eq!(view["steps"]["completed"], 1, "{view:#}");
    let (status, answer) = api.command(&run, "resume").await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(api.get("/api/v1/metrics/runs").await.unwrap()["suspended"], 0);
}

#[tokio::test]
async fn who_has_a_run_in_hand_and_for_how_long_is_shown() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let api = fleet.api();
    let definition =
        json!({ "workflow": "long", "steps": { "work": { "handler": "sleep", "with": { "duration": "5m" } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let step = api.until_step(&run, "work", "processing", SOON).await.unwrap();
    let partitions = api.get("/api/v1/partitions").await.unwrap();
    let owner = partitions["items"][0]["owner"].as_str().unwrap();
    assert!(owner.starts_with("c1@"), "{partitions:#}");
    // The next beat tells what the worker holds; beats are ten seconds apart.
    let held = wait::until(SOON, "the worker to tell what it holds", async || {
        let workers = api.items("/api/v1/workers").await?;
        let held = workers[0]["held"].as_array().and_then(|held| held.first()).cloned();
        // A beat may come in the very millisecond in which the job begins.
        let held = held.filter(|held| held["running_ms"].as_u64().is_some_and(|ms| ms > 0));
        held.with_context(|| format!("nothing is held: {workers:#?}"))
    });
    let held = held.await.unwrap();
    assert_eq!((&held["job"], &held["partition"]), (&step["job"], &json!(0)), "{held:#}");
    api.command(&run, "cancel").await.unwrap();
    api.until_state(&run, "cancelled", SOON).await.unwrap();
}

#[tokio::test]
async fn a_key_gives_the_same_run_and_another_body_is_refused() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 4, 1).await.unwrap();
    let api = fleet.api();
    let body = |word: &str| {
        json!({ "definition": { "workflow": "one", "steps": { "only": { "handler": "noop" } } },
        "input": { "word": word } })
    };
    let key = [("idempotency-key", "order-17")];
    let (first, one) = api.post("/api/v1/runs", &key, &body("a")).await.unwrap();
    let (second, two) = api.post("/api/v1/runs", &key, &body("a")).await.unwrap();
    assert_eq!((first, second, &one["id"]), (201, 200, &two["id"]), "{one} {two}");
    let (status, problem) = api.post("/api/v1/runs", &key, &body("b")).await.unwrap();
    assert_eq!(status, 422, "{problem:#}");
    api.until_state(one["id"].as_str().unwrap(), "completed", SOON).await.unwrap();
    assert_eq!(api.items("/api/v1/runs").await.unwrap().len(), 1);
}
