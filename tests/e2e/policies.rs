//! The fleet's policies: changed while everything runs, followed by the next failure, kept over the death of a coordinator.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_protocol::{
    id::PartitionId,
    keys::{Keys, PREFIX_DEFAULT},
};
use stepfleet_tests::{
    Server,
    lab::{self, Api, Fleet, START},
    wait,
};

const SOON: Duration = Duration::from_secs(30);
const PARTITIONS: u16 = 2;

/// Waits until this coordinator decides by this version.
async fn until_version(api: &Api, version: f64) {
    wait::until(SOON, "the policies to be known", async || {
        let known = api.metric("stepfleet_policies_version").await?;
        ensure!(known == version, "it knows version {known}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Writes the document and applies it with the command line; what it answers.
async fn apply(fleet: &Fleet, document: &str, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policies.yaml");
    std::fs::write(&path, document).unwrap();
    let words = [&["policies", "apply", "--reason", "the test says so", "-f", path.to_str().unwrap()], more].concat();
    serde_json::from_str(&fleet.verb(&words).await.unwrap()).unwrap()
}

/// A run of one step that fails for good by what is built in: how it ended, and its history.
async fn failed(api: &Api) -> (Value, Vec<Value>) {
    let step = json!({ "handler": "fail", "with": { "category": "permanent", "message": "refused" } });
    let run = api.submit(&json!({ "workflow": "refused", "steps": { "work": step } }), json!(null)).await.unwrap();
    let view = api.until_state(&run, "failed", SOON).await.unwrap();
    let history = api.history(&run).await.unwrap();
    (view, history)
}

const TWICE: &str = "
retry:
  max_attempts: 2
  notify: true
  backoff: { base: 10ms, jitter: none }
  categories: { permanent: { retry: true } }
";

on_one_server! {
    policies_that_are_applied_while_a_coordinator_runs_hold_for_the_next_failure,
}

pub(crate) async fn policies_that_are_applied_while_a_coordinator_runs_hold_for_the_next_failure(fleet: &Fleet) {
    let api = fleet.api();
    let (view, history) = failed(api).await;
    assert_eq!(view["step_list"][0]["attempts"], 1, "{view:#}");
    assert!(history.iter().all(|h| h["reason"] != "escalated"), "{history:#?}");
    let error = &view["errors"][0];
    assert_eq!((&error["action"], &error["severity"]), (&json!("permanent"), &json!("high")), "{error:#}");
    assert_eq!(error["summary"], "Permanent error (permanent): refused");

    let dry = apply(fleet, TWICE, &["--dry-run"]).await;
    assert_eq!((&dry["version"], &dry["changed"], &dry["dry_run"]), (&json!(0), &json!(true), &json!(true)));
    let applied = apply(fleet, TWICE, &[]).await;
    assert_eq!((&applied["version"], &applied["diff"]), (&json!(1), &dry["diff"]));
    assert_eq!(applied["diff"][0], "+ retry.backoff.base: 10ms");
    assert_eq!(apply(fleet, TWICE, &[]).await["changed"], json!(false), "nothing is different, nothing is written");
    until_version(api, 1.0).await;
    // The owners are told with the metric; their next batch follows.
    let (view, history) = failed(api).await;
    assert_eq!(view["step_list"][0]["attempts"], 2, "{view:#}");
    let noted = |reason: &str, note: &str| history.iter().any(|h| h["reason"] == reason && h["note"] == note);
    assert!(noted("retry_planned", "try 2 of 2 in 10 ms"), "{history:#?}");
    assert!(noted("escalated", "the step gave up: permanent: refused"), "{history:#?}");

    let shown: Value =
        serde_json::from_str(&fleet.verb(&["policies", "show", "--handler", "fail"]).await.unwrap()).unwrap();
    let permanent = shown["categories"].as_array().unwrap().iter().find(|c| c["category"] == "permanent").unwrap();
    assert_eq!(permanent["retry"], json!({ "value": true, "level": "fleet", "for_category": true }));
    assert_eq!(permanent["max_attempts"], json!({ "value": 2, "level": "fleet", "for_category": false }));
    assert_eq!(permanent["cap_ms"]["level"], "built_in");

    assert_eq!(apply(fleet, "{}", &["--expected-version", "1"]).await["version"], 2);
    let back = fleet.verb(&["policies", "apply", "--version", "1"]).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&back).unwrap()["version"], 3, "rolled back by going forward");
    let history = api.items("/api/v1/policies/history").await.unwrap();
    let told: Vec<&Value> = history.iter().map(|v| &v["version"]).collect();
    assert_eq!(told, [&json!(3), &json!(2), &json!(1)]);
    assert_eq!(history[2]["reason"], "the test says so");
}

#[tokio::test]
async fn policies_that_are_wrong_or_of_another_version_are_refused_and_change_nothing() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let url = format!("{}/api/v1/policies", fleet.api().base());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let put = async |query: &str, tag: Option<&str>, body: &'static str| -> (u16, Value) {
        let mut request = client.put(format!("{url}{query}")).body(body);
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let (status, problem) = put("", None, "retry:\n  max_atempts: 3\n").await;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_policies")), "{problem:#}");
    assert_eq!(problem["problems"][0]["line"], 2, "{problem:#}");
    let (status, problem) = put("", Some("\"4\""), "{}").await;
    assert_eq!((status, &problem["code"]), (409, &json!("policies_changed")), "{problem:#}");
    let (status, applied) = put("", Some("\"0\""), "preset: production").await;
    assert_eq!((status, &applied["version"]), (200, &json!(1)), "{applied:#}");
    let (status, problem) = put("?expected_version=0", None, "{}").await;
    assert_eq!((status, &problem["code"]), (409, &json!("policies_changed")), "{problem:#}");
    let (status, problem) = put("?expected_version=1", Some("\"2\""), "{}").await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_parameter")), "{problem:#}");
    let present = client.get(&url).send().await.unwrap();
    assert_eq!(present.headers()["etag"], "\"1\"");
    assert_eq!(present.json::<Value>().await.unwrap()["policies"], json!({ "preset": "production" }));
    let (_, problem) = fleet.api().post("/api/v1/policies", &[], &json!({})).await.unwrap();
    assert_eq!(problem["code"], "method_not_allowed");
    fleet.stop().await.unwrap();
}

/// The policies that each partition was last decided with.
async fn heads(server: &Server) -> Vec<Option<u64>> {
    let mut connection = server.connection().await.unwrap();
    let mut all = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let head = Keys::new(PREFIX_DEFAULT).partition(partition).head();
        all.push(redis::cmd("HGET").arg(head).arg("rules").query_async(&mut connection).await.unwrap());
    }
    all
}

#[tokio::test]
async fn who_takes_a_dead_coordinators_partitions_goes_on_with_its_policies() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), PARTITIONS, 1).await.unwrap();
    apply(&fleet, TWICE, &[]).await;
    until_version(fleet.api(), 1.0).await;
    let mut connection = server.connection().await.unwrap();
    let audit = Keys::new(PREFIX_DEFAULT).fleet_audit();
    let entries: u64 = redis::cmd("XLEN").arg(audit).query_async(&mut connection).await.unwrap();
    assert_eq!(entries, 1, "one entry a change");
    // As many runs as there are partitions: they are dealt out in turn.
    for _ in 0..PARTITIONS {
        assert_eq!(failed(fleet.api()).await.0["step_list"][0]["attempts"], 2);
    }
    assert_eq!(heads(&server).await, [Some(1); PARTITIONS as usize]);
    let mut first = fleet.coordinators.remove(0).program;
    first.kill_9().unwrap();
    let second = fleet.add_coordinator().await.unwrap().api.clone();
    // Its very first decisions follow them: nobody waits here until it has heard of them.
    for _ in 0..PARTITIONS {
        assert_eq!(failed(&second).await.0["step_list"][0]["attempts"], 2);
    }
    assert_eq!(heads(&server).await, [Some(1); PARTITIONS as usize]);
    wait::until(START, "the new one to own all", async || {
        let owned = second.metric("stepfleet_partitions_owned").await?;
        ensure!(owned == f64::from(PARTITIONS), "it owns {owned}");
        Ok(())
    })
    .await
    .unwrap();
    fleet.stop().await.unwrap();
}
