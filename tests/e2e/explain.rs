//! Why something does not run, asked of a real fleet.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_protocol::{
    id::{PartitionId, RunId},
    keys::{Keys, PREFIX_DEFAULT},
    name::Name,
};
use stepfleet_tests::{
    Server,
    lab::{self, Api, Fleet, START},
    wait,
};

async fn explained(api: &Api, run: &str, step: Option<&str>, reason: &str) -> Value {
    let query = step.map(|step| format!("?step={step}")).unwrap_or_default();
    let path = format!("/api/v1/runs/{run}/explain{query}");
    wait::until(START, &format!("run {run} to be explained by `{reason}`"), async || {
        let found = api.get(&path).await?;
        let told = if step.is_some() { &found["steps"][0] } else { &found };
        ensure!(told["reason"] == reason, "{found:#}");
        Ok(told.clone())
    })
    .await
    .unwrap()
}

fn has(told: &Value, part: &str) {
    let text = told["sentence"].as_str().unwrap();
    assert!(text.contains(part), "`{part}` is not in `{text}`");
}

async fn fleet() -> (Server, Fleet) {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    (server, fleet)
}

#[tokio::test]
async fn lesson_32_why_a_run_does_not_go_on_is_one_question() {
    let (_server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    let definition = json!({ "workflow": "two", "steps": {
        "nap": { "handler": "sleep", "with": { "duration": "1h" } },
        "then": { "handler": "noop", "needs": ["nap"] } } });
    let run = api.submit(&definition, Value::Null).await.unwrap();
    has(&explained(&api, &run, None, "no_worker").await, "No live worker subscribes to queue `default`");
    has(&explained(&api, &run, Some("then"), "needs_unmet").await, "`nap` (queued)");
    fleet.add_worker(&[]).unwrap();
    // A beat between the read and the beginning names it without a time; the next one has it.
    let told = wait::until(START, "the worker to tell how long it has been at it", async || {
        let told = explained(&api, &run, Some("nap"), "held").await;
        ensure!(told["details"]["running_ms"].as_u64().is_some(), "{told}");
        Ok(told)
    })
    .await
    .unwrap();
    has(&told, "Step `nap` has been running on worker w1@");
    let text = fleet.verb(&["runs", "explain", &run, "nap"]).await.unwrap();
    assert!(text.contains("\"reason\":\"held\""), "{text}");
    let (status, _) = api.command(&run, "suspend").await.unwrap();
    assert_eq!(status, 200);
    has(&explained(&api, &run, None, "run_suspended").await, "because \"the test says so\"");
    api.command(&run, "cancel").await.unwrap();
    explained(&api, &run, None, "cancelled").await;

    let fail = |retry: Value| {
        let step = json!({ "handler": "fail", "with": { "category": "transient" }, "retry": retry });
        json!({ "workflow": "fails", "steps": { "only": step } })
    };
    let backoff = json!({ "base": "10m", "cap": "10m", "jitter": "none" });
    let run = api.submit(&fail(json!({ "max_attempts": 2, "backoff": backoff })), Value::Null).await.unwrap();
    has(&explained(&api, &run, None, "retry_waits").await, "Try 1 of step `only` failed with transient");
    let run = api.submit(&fail(json!({ "max_attempts": 1 })), Value::Null).await.unwrap();
    let told = explained(&api, &run, Some("only"), "dead_letter").await;
    assert!(told["next"][0].as_str().unwrap().starts_with("`stepfleet dead-letters replay "), "{told}");
    let error = api.get(&format!("/api/v1/runs/{run}/explain?step=nothing")).await.unwrap_err().to_string();
    assert!(error.contains("step_not_found"), "{error}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn lesson_06_a_busy_queue_says_how_many_are_before_a_step_and_a_foreign_handler_is_named() {
    let (server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    fleet.add_worker(&["--concurrency", "1"]).unwrap();
    let nap = json!({ "workflow": "nap", "steps": { "nap": { "handler": "sleep", "with": { "duration": "1h" } } } });
    api.register(&nap).await.unwrap();
    api.submit_many("nap", 300).await.unwrap();
    // 256 go to the stream; the last of the others has all of them before it.
    let ready = Keys::new(PREFIX_DEFAULT).partition(PartitionId(0)).ready(&Name::new("default").unwrap());
    let mut redis = server.connection().await.unwrap();
    let last: Vec<Vec<u8>> = redis::cmd("ZRANGE").arg(&ready).arg(-1).arg(-1).query_async(&mut redis).await.unwrap();
    let last = RunId::from_bytes(&last[0][..16]).unwrap().to_string();
    let told = explained(&api, &last, None, "slots_busy").await;
    has(&told, "of 1 slots are busy");
    assert!(told["details"]["ahead"].as_u64().is_some_and(|ahead| ahead > 200), "{told}");
    let foreign = json!({ "workflow": "odd", "steps": { "odd": { "handler": "unheard-of" } } });
    let run = api.submit(&foreign, Value::Null).await.unwrap();
    has(&explained(&api, &run, None, "no_handler").await, "has the handler `unheard-of`");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn doctor_finds_a_destroyed_group_and_puts_it_right_and_says_so_in_the_log_of_actions() {
    let (server, mut fleet) = fleet().await;
    let api = fleet.api().clone();
    let mut redis = server.connection().await.unwrap();
    let one = json!({ "workflow": "one", "steps": { "only": { "handler": "noop" } } });
    let run = api.submit(&one, Value::Null).await.unwrap();
    let keys = Keys::new(PREFIX_DEFAULT);
    let jobs = keys.partition(PartitionId(0)).jobs(&Name::new("default").unwrap());
    let gone: i64 =
        redis::cmd("XGROUP").arg("DESTROY").arg(&jobs).arg("workers").query_async(&mut redis).await.unwrap();
    assert_eq!(gone, 1);
    let view = api.get("/api/v1/doctor").await.unwrap();
    let streams: Vec<&Value> =
        view["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "streams").collect();
    assert_eq!(view["severity"], "error", "{view:#}");
    assert!(streams.iter().any(|f| f["sentence"].as_str().unwrap().contains("have no group")), "{streams:#?}");
    fleet.verb(&["doctor"]).await.expect_err("it ends with 1");
    let (status, fixed) = api.post("/api/v1/doctor/fix", &[], &json!({})).await.unwrap();
    assert_eq!((status, fixed["done"].as_array().unwrap().len()), (200, 1), "{fixed}");
    fleet.add_worker(&[]).unwrap();
    api.until_state(&run, "completed", Duration::from_secs(60)).await.unwrap();
    let noted = api.items("/api/v1/audit?action=doctor.fix").await.unwrap();
    assert_eq!(noted.len(), 1, "{noted:#?}");
    wait::until(START, "everything to be well", async || {
        let text = fleet.verb(&["doctor", "--fix"]).await?;
        ensure!(text.contains("there was nothing to put right"), "{text}");
        Ok(())
    })
    .await
    .unwrap();
    fleet.stop().await.unwrap();
}
