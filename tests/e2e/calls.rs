//! Two-phase external calls: a worker that dies between the request and its answer makes nothing happen twice, and what
//! nobody knows is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::ensure;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Effects, Fleet, Hands},
    wait,
};
use tokio::task::JoinHandle;

use crate::worker_death::DEATH;

const SOON: Duration = Duration::from_secs(30);

/// What happened under one idempotency key.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    requests: u32,
    effects: u32,
    questions: u32,
}

type Keys = Arc<Mutex<HashMap<String, Seen>>>;

/// A provider that knows requests by their keys. The first request of a key takes effect and is never answered.
struct Provider {
    address: SocketAddr,
    keys: Keys,
    task: JoinHandle<()>,
}

impl Provider {
    async fn start() -> anyhow::Result<Self> {
        let keys = Keys::default();
        let router = Router::new().route("/pay", post(pay)).route("/paid/{key}", get(paid)).with_state(keys.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the listener stays") });
        Ok(Self { address, keys, task })
    }

    /// A run of one step that pays, with one way to ask about it or none.
    fn definition(&self, asks: bool, more: &Value) -> Value {
        let base = format!("http://{}", self.address);
        let mut with = json!({ "method": "POST", "url": format!("{base}/pay"), "idempotency": "two-phase" });
        if asks {
            with["settle"] = json!({ "url": format!("{base}/paid/{{idempotency_key}}") });
        }
        let mut step = json!({ "handler": "http", "queue": "money", "with": with });
        for (name, value) in more.as_object().into_iter().flatten() {
            step[name] = value.clone();
        }
        json!({ "workflow": "pay", "steps": { "work": step } })
    }

    /// What happened for the only step of a run.
    fn of(&self, run: &str) -> Seen {
        self.keys.lock().unwrap().get(&format!("{run}/work/1")).copied().unwrap_or_default()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pay(State(keys): State<Keys>, headers: HeaderMap) -> Response {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let seen = {
        let mut keys = keys.lock().unwrap();
        let seen = keys.entry(key).or_default();
        seen.requests += 1;
        // Only the first request of a key takes effect.
        seen.effects = 1;
        *seen
    };
    if seen.requests == 1 {
        std::future::pending::<()>().await;
    }
    Json(json!({ "effects": seen.effects, "told": "again" })).into_response()
}

async fn paid(State(keys): State<Keys>, Path(key): Path<String>) -> Response {
    let mut keys = keys.lock().unwrap();
    let Some(seen) = keys.get_mut(&key) else { return StatusCode::NOT_FOUND.into_response() };
    seen.questions += 1;
    Json(json!({ "effects": seen.effects, "told": "asked" })).into_response()
}

async fn calls(fleet: &Fleet, run: &str) -> Vec<Value> {
    fleet.api().items(&format!("/api/v1/runs/{run}/calls")).await.unwrap()
}

/// The worker is killed between request and answer. Another one asks, or sends it again with the same key.
#[tokio::test]
async fn a_worker_killed_in_the_middle_of_a_call_makes_nothing_happen_twice() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let provider = Provider::start().await.unwrap();
    // A death must be less than a third of the fleet, or it waits for a second look.
    let effects = Effects::default();
    let _others: Vec<Hands> = (0..4).map(|_| Hands::start(&server.url(), 1, &effects).unwrap()).collect();
    fleet.add_worker(&["--queue", "money"]).unwrap();
    let api = fleet.api().clone();
    let blind = api.submit(&provider.definition(false, &json!({})), json!(null)).await.unwrap();
    let asking = api.submit(&provider.definition(true, &json!({})), json!(null)).await.unwrap();
    wait::until(SOON, "both requests to arrive", async || {
        ensure!(provider.of(&blind).requests == 1 && provider.of(&asking).requests == 1);
        Ok(())
    })
    .await
    .unwrap();
    let listed = calls(&fleet, &blind).await;
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &json!("started")), "{listed:#?}");
    fleet.workers[0].kill_9().unwrap();
    fleet.add_worker(&["--queue", "money"]).unwrap();
    for (run, told, requests, questions) in [(&blind, "again", 2, 0), (&asking, "asked", 1, 1)] {
        api.until_state(run, "completed", DEATH).await.unwrap();
        let output = api.output(run, "work").await.unwrap();
        assert_eq!((&output["status"], &output["body"]["told"]), (&json!(200), &json!(told)), "{output:#}");
        let seen = provider.of(run);
        assert_eq!((seen.effects, seen.requests, seen.questions), (1, requests, questions), "{told}");
        let listed = calls(&fleet, run).await;
        assert!(!listed.is_empty() && listed.iter().all(|call| call["state"] == "completed"), "{listed:#?}");
        assert_eq!(listed[0]["key"], format!("{run}/work/1"));
    }
    let shown: Value = serde_json::from_str(&fleet.verb(&["runs", "calls", &asking]).await.unwrap()).unwrap();
    assert_eq!((&shown["items"][0]["method"], &shown["items"][0]["step"]), (&json!("POST"), &json!("work")));
}

#[tokio::test]
async fn a_call_whose_outcome_nobody_found_out_is_unknown_in_the_letter_and_on_record() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let provider = Provider::start().await.unwrap();
    fleet.add_worker(&["--queue", "money"]).unwrap();
    let api = fleet.api().clone();
    let once = json!({ "timeout": "500ms", "retry": { "max_attempts": 1 } });
    let run = api.submit(&provider.definition(false, &once), json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    assert_eq!(provider.of(&run).requests, 1);
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    let letter = api.get(&format!("/api/v1/dead-letters/{}", letters[0]["id"].as_str().unwrap())).await.unwrap();
    assert_eq!(letter["attempts"][0]["code"], "call_unknown", "{letter:#}");
    let listed = calls(&fleet, &run).await;
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &json!("unknown")), "{listed:#?}");
    assert!(listed[0]["endpoint"].as_str().unwrap().ends_with("/pay"), "{listed:#?}");
    // Its replay goes on with the same key, and finds what was done.
    let path = format!("/api/v1/dead-letters/{}/replay", letters[0]["id"].as_str().unwrap());
    api.post(&path, &[], &json!({})).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();
    let seen = provider.of(&run);
    assert_eq!((seen.effects, seen.requests), (1, 2));
    let listed = calls(&fleet, &run).await;
    assert!(listed.len() == 2 && listed.iter().all(|call| call["state"] == "completed"), "{listed:#?}");
    assert_eq!(listed[0]["settled_by"], 2, "{listed:#?}");
    fleet.stop().await.unwrap();
}
