//! The same on a Cluster, behind Sentinels, with TLS and as an ACL user.

use std::time::Duration;

use serde_json::json;
use stepfleet_tests::{
    Sentinel, Signal,
    lab::{self, Effects, Fleet, Hands},
    sentinel,
};

use crate::load;

const SOON: Duration = Duration::from_secs(30);

/// The servers behind several URLs as one, with another scheme.
fn joined(scheme: &str, urls: &[String]) -> String {
    let hosts: Vec<&str> = urls.iter().map(|url| url.trim_start_matches("redis://")).collect();
    format!("{scheme}://{}", hosts.join(","))
}

/// A short run over the API.
async fn smoke(fleet: &Fleet) -> anyhow::Result<()> {
    let definition = json!({ "workflow": "smoke", "steps": {
        "a": { "handler": "exec", "with": { "command": ["printf", "hi"] } },
        "b": { "handler": "exec", "needs": ["a"], "with": { "command": ["cat"], "stdin": "${{ steps.a.output.stdout }}" } } } });
    let run = fleet.api().submit(&definition, json!(null)).await?;
    fleet.api().until_state(&run, "completed", SOON).await?;
    assert_eq!(fleet.api().output(&run, "b").await?["stdout"], "hi");
    Ok(())
}

#[tokio::test]
async fn on_a_cluster_runs_complete_and_a_killed_coordinator_is_replaced() {
    let cluster = lab::cluster().await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let mut fleet = Fleet::start(&url, 8, 1).await.unwrap();
    smoke(&fleet).await.unwrap();
    fleet.workers[0].signal(Signal::SIGTERM).unwrap();
    assert!(fleet.workers[0].wait(Duration::from_secs(60)).await.unwrap().success());
    fleet.add_coordinator().await.unwrap();
    let (api, effects) = (fleet.coordinators[1].api.clone(), Effects::default());
    let hands = Hands::start(&url, 16, &effects).unwrap();
    let runs = load::submit(&api, 200).await.unwrap();
    load::until_begun(&effects, 100).await.unwrap();
    fleet.coordinators[0].program.kill_9().unwrap();
    load::until_done(&api, &runs, &effects).await.unwrap();
    hands.drain().await.unwrap();
}

#[tokio::test]
async fn on_a_cluster_failures_dead_letters_cancel_and_suspend_are_the_same() {
    let cluster = lab::cluster().await.unwrap();
    let fleet = Fleet::start(&joined("redis-cluster", &cluster.urls()), 8, 2).await.unwrap();
    let api = fleet.api();
    let retry = json!({ "max_attempts": 2, "backoff": { "base": "50ms" } });
    let failing = json!({ "workflow": "failing", "steps": { "work": { "handler": "fail", "retry": retry } } });
    let failed = api.submit(&failing, json!(null)).await.unwrap();
    let view = api.until_state(&failed, "failed", SOON).await.unwrap();
    assert_eq!(view["step_list"][0]["attempts"], 2, "{view:#}");
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    assert_eq!((letters.len(), &letters[0]["run"]), (1, &json!(failed)));
    let long = json!({ "workflow": "long", "steps": { "work": { "handler": "sleep", "with": { "duration": "5m" } } } });
    let long = api.submit(&long, json!(null)).await.unwrap();
    api.until_step(&long, "work", "processing", SOON).await.unwrap();
    assert_eq!(api.command(&long, "cancel").await.unwrap().0, 200);
    api.until_state(&long, "cancelled", SOON).await.unwrap();
    let two = json!({ "workflow": "two", "steps": {
        "work": { "handler": "sleep", "with": { "duration": "1500ms" } }, "after": { "handler": "noop", "needs": ["work"] } } });
    let two = api.submit(&two, json!(null)).await.unwrap();
    api.until_step(&two, "work", "processing", SOON).await.unwrap();
    assert_eq!(api.command(&two, "suspend").await.unwrap().0, 200);
    api.until_step(&two, "work", "completed", SOON).await.unwrap();
    api.until_state(&two, "suspended", SOON).await.unwrap();
    assert_eq!(api.command(&two, "resume").await.unwrap().0, 200);
    api.until_state(&two, "completed", SOON).await.unwrap();
}

#[tokio::test]
async fn behind_sentinels_a_fail_over_under_load_loses_no_run_that_was_replicated() {
    let mut sentinel = Sentinel::launch(3, lab::durable()).await.unwrap();
    let url = format!("{}/{}", joined("redis-sentinel", &sentinel.urls()), sentinel::NAME);
    let fleet = Fleet::start(&url, 2, 1).await.unwrap();
    smoke(&fleet).await.unwrap();
    let slow = json!({ "workflow": "slow", "steps": {
        "a": { "handler": "sleep", "with": { "duration": "1s" } },
        "b": { "handler": "sleep", "needs": ["a"], "with": { "duration": "10ms" } } } });
    let mut runs = Vec::new();
    for _ in 0..8 {
        let body = json!({ "definition": slow, "durable": true });
        let (status, answer) = fleet.api().post("/api/v1/runs", &[], &body).await.unwrap();
        assert_eq!((status, &answer["durability"]), (201, &json!("replica")), "{answer:#}");
        runs.push(answer["id"].as_str().unwrap().to_owned());
    }
    sentinel.fail_over().await.unwrap();
    fleet.api().until_all(&runs, "completed", Duration::from_secs(120)).await.unwrap();
    smoke(&fleet).await.unwrap();
}

#[tokio::test]
async fn with_tls_everything_is_the_same() {
    let server = lab::durable().tls().start().await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 1).option("--redis-ca-file", server.ca_file().unwrap());
    fleet.add_coordinator().await.unwrap();
    fleet.add_worker(&[]).unwrap();
    smoke(&fleet).await.unwrap();
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_user_that_may_touch_only_our_keys_and_channels_is_enough() {
    let rules = "~sf:* &sf:* +@all -@dangerous +info +config|get";
    let server = lab::durable().user("fleet", "secret", rules).default_user_off().start().await.unwrap();
    let fleet = Fleet::start(&server.url_for("fleet", "secret"), 1, 1).await.unwrap();
    smoke(&fleet).await.unwrap();
    assert!(!fleet.story().contains("secret"), "a password in a log");
    fleet.stop().await.unwrap();
}
