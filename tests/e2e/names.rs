//! The other names of the API, under `/api/v1/workflow`: every path of them, and what operators do with them.

use std::time::Duration;

use serde_json::{Value, json};
use stepfleet_tests::lab::{self, Api, Fleet};

const SOON: Duration = Duration::from_secs(30);
const ACTOR: [(&str, &str); 1] = [("x-stepfleet-actor", "ann")];

/// The document at a path.
async fn get(api: &Api, path: &str) -> Value {
    api.get(&format!("/api/v1/workflow{path}")).await.expect("it is there")
}

/// Ann's command, with a reason.
async fn command(api: &Api, run: &str, verb: &str, reason: &str) -> (u16, Value) {
    api.post(&format!("/api/v1/workflow/{run}/{verb}"), &ACTOR, &json!({ "reason": reason })).await.expect("an answer")
}

/// The ids of the runs in a state.
async fn listed(api: &Api, state: &str) -> Vec<String> {
    let page = get(api, &format!("?state={state}&limit=20")).await;
    let items = page["items"].as_array().expect("a page");
    assert!(items.iter().all(|run| run["state"] == state), "{page:#}");
    items.iter().map(|run| run["id"].as_str().expect("an id").to_owned()).collect()
}

/// Moves of the run itself for a reason, as `from to actor note`.
async fn moves(api: &Api, run: &str, reason: &str) -> Vec<String> {
    let page = get(api, &format!("/{run}/history?limit=100")).await;
    let word = |item: &Value, field: &str| item[field].as_str().unwrap_or("-").to_owned();
    let of_the_run =
        page["items"].as_array().expect("a page").iter().filter(|h| h["step"].is_null() && h["reason"] == reason);
    of_the_run.map(|h| ["from", "to", "actor", "note"].map(|field| word(h, field)).join(" ")).collect()
}

/// A run whose only step waits in a queue that nobody reads.
async fn idle(api: &Api) -> String {
    let definition = json!({ "workflow": "idle", "steps": { "only": { "handler": "noop", "queue": "nobody" } } });
    api.submit(&definition, json!(null)).await.expect("it is taken")
}

#[tokio::test]
async fn a_data_failure_is_listed_fixed_and_retried_by_name() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let api = fleet.api();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("price");
    let look = format!("test -e {} || exit 3", file.display());
    let definition = json!({ "workflow": "orders", "steps": { "check": { "handler": "exec",
        "with": { "command": ["sh", "-c", look], "exit_codes": { "3": "data" } } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "suspended", SOON).await.unwrap();
    assert_eq!(listed(api, "suspended").await, [run.as_str()]);
    let status = get(api, &format!("/{run}/status")).await;
    assert_eq!((&status["workflow_id"], &status["current_state"]), (&json!(run), &json!("suspended")), "{status:#}");
    assert_eq!((&status["current_stage"], &status["retry_count"]), (&json!("check"), &json!(0)), "{status:#}");
    assert_eq!((&status["metadata"]["review"], &status["metadata"]["workflow"]), (&json!(true), &json!("orders")));

    std::fs::write(&file, "42").unwrap();
    let (status, answer) = command(api, &run, "retry", "the price is there").await;
    assert_eq!((status, &answer["state"]), (200, &json!("queued")), "{answer:#}");
    api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(moves(api, &run, "retried").await, ["suspended queued ann the price is there"]);
    assert_eq!(get(api, &format!("/{run}/status")).await["retry_count"], 1, "the second try completed it");
    let metrics = get(api, "/metrics?time_range=24h").await;
    assert_eq!((&metrics["completed"], &metrics["suspended"]), (&json!(1), &json!(0)), "{metrics:#}");
}

#[tokio::test]
async fn a_failed_run_is_listed_held_and_resumed_by_name() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let api = fleet.api();
    let definition = json!({ "workflow": "once", "steps": { "work": { "handler": "fail", "with": { "times": 1 },
        "retry": { "max_attempts": 1 } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    assert_eq!(listed(api, "failed").await, [run.as_str()]);
    let (status, answer) = command(api, &run, "suspend", "nobody touches it").await;
    assert_eq!((status, &answer["state"]), (200, &json!("suspended")), "{answer:#}");
    assert_eq!((listed(api, "failed").await, listed(api, "suspended").await), (Vec::new(), vec![run.clone()]));
    assert_eq!(moves(api, &run, "suspended").await, ["failed suspended ann nobody touches it"]);
    let (status, answer) = command(api, &run, "resume", "looked at").await;
    assert_eq!(status, 200, "{answer:#}");
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(view["step_list"][0]["attempts"], 2, "{view:#}");
    assert_eq!(moves(api, &run, "resumed").await, ["suspended queued ann looked at"]);
    assert!(api.items("/api/v1/dead-letters").await.unwrap().is_empty(), "the resume closed the letter");
}

#[tokio::test]
async fn of_ten_resumes_at_once_one_is_done_and_nothing_follows_a_cancel() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let api = fleet.api();
    let run = idle(api).await;
    let (status, answer) = command(api, &run, "suspend", "wait").await;
    assert_eq!(status, 200, "{answer:#}");
    let resumes = (0..10).map(|n| {
        let (api, run) = (api.clone(), run.clone());
        async move { command(&api, &run, "resume", &format!("resume {n}")).await }
    });
    let mut answers = futures::future::join_all(resumes).await;
    answers.sort_by_key(|(status, _)| *status);
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [vec![200], vec![409; 9]].concat(), "{answers:#?}");
    for (_, problem) in &answers[1..] {
        assert_eq!((&problem["code"], &problem["state"]), (&json!("illegal_state"), &json!("queued")), "{problem:#}");
    }
    let resumed = moves(api, &run, "resumed").await;
    assert_eq!(resumed.len(), 1, "{resumed:?}");

    let held = idle(api).await;
    let (status, answer) = command(api, &held, "suspend", "wait").await;
    assert_eq!(status, 200, "{answer:#}");
    let (status, answer) = command(api, &held, "cancel", "wrong order").await;
    assert_eq!(status, 200, "{answer:#}");
    let remarks = moves(api, &held, "cancelled").await;
    assert!(remarks.iter().any(|text| text.ends_with("ann wrong order")), "{remarks:?}");
    let (status, problem) = command(api, &held, "retry", "no").await;
    assert_eq!((status, &problem["code"]), (409, &json!("illegal_state")), "{problem:#}");
}

#[tokio::test]
async fn an_input_that_its_workflow_does_not_allow_starts_nothing() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let api = fleet.api();
    let definition = json!({ "workflow": "orders", "steps": { "only": { "handler": "noop" } },
        "input": { "type": "object", "required": ["id"], "properties": { "id": { "type": "integer" } } } });
    let body = json!({ "definition": definition, "input": { "id": "x" } });
    let (status, problem) = api.post("/api/v1/runs", &[], &body).await.unwrap();
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_input")), "{problem:#}");
    assert!(problem["detail"].as_str().unwrap().contains("/id"), "{problem:#}");
    assert_eq!(get(api, "?limit=20").await["items"], json!([]));
}
