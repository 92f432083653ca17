//! A dependency that fails, limits, hangs and comes back: what the fleet does to it, and what that costs the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, response::Response};
use serde_json::{Value, json};
use stepfleet_tests::lab::Fleet;
use stepfleet_tests::wait;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(60);
/// Runs that want the dependency.
const RUNS: usize = 60;

on_one_server! {
    lesson_40_a_flaky_server_is_left_alone_but_for_canaries_and_no_attempt_is_burned,
    a_server_that_lies_about_when_to_come_back_costs_a_day_at_most,
    a_paused_queue_waits_for_its_operator_and_the_audit_knows_both,
    an_operator_opens_and_closes_a_breaker_and_a_fallback_does_the_work_meanwhile,
}

/// How the dependency does.
const GOOD: usize = 0;
const FAILS: usize = 1;
/// Answers 429, and says when to come back: no time at all, one that has passed, more than can be, one second.
const LIMITS: usize = 2;
/// Takes the call and never answers.
const HANGS: usize = 3;
/// Answers 429, and asks for thirty years.
const GREEDY: usize = 4;

/// A web server whose mood the test sets, and that counts its calls.
struct Bank {
    url: String,
    mood: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bank {
    async fn start(mood: usize) -> anyhow::Result<Self> {
        let (mood, calls) = (Arc::new(AtomicUsize::new(mood)), Arc::new(AtomicUsize::new(0)));
        let router = Router::new().fallback(answer).with_state((mood.clone(), calls.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/pay", listener.local_addr()?);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the listener stays") });
        Ok(Self { url, mood, calls, task })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// What it says of when to come back. All but the last are to be taken for nothing.
const LIES: [&str; 4] = ["soon", "Sun, 06 Nov 1994 08:49:37 GMT", "99999999999999999999999", "1"];

async fn answer(State((mood, calls)): State<(Arc<AtomicUsize>, Arc<AtomicUsize>)>) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    match mood.load(Ordering::SeqCst) {
        GOOD => "paid".into_response(),
        LIMITS => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, LIES[call % LIES.len()])]).into_response(),
        HANGS => std::future::pending().await,
        GREEDY => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "946080000")]).into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn apply(fleet: &Fleet, policies: &Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/api/v1/policies", fleet.api().base());
    let answer = client.put(url).body(policies.to_string()).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{status} {text}");
    let version = serde_json::from_str::<Value>(&text).unwrap()["version"].as_f64().unwrap();
    wait::until(SOON, "the coordinator to follow the policies", async || {
        let metric = fleet.api().metric("stepfleet_policies_version").await?;
        anyhow::ensure!(metric >= version, "it follows version {metric}");
        Ok(())
    })
    .await
    .unwrap();
}

async fn until_breaker(fleet: &Fleet, name: &str, state: &str) -> Value {
    wait::until(SOON, &format!("breaker {name} to be {state}"), async || {
        let breaker = fleet.api().get(&format!("/api/v1/breakers/{name}")).await?;
        anyhow::ensure!(breaker["state"] == state, "{breaker:#}");
        Ok(breaker)
    })
    .await
    .unwrap()
}

/// The waits are longer than an opening takes to be heard of everywhere, and without jitter: a run that fails while the others
/// are only being submitted has tries left when the breaker has seen enough calls.
pub(crate) async fn lesson_40_a_flaky_server_is_left_alone_but_for_canaries_and_no_attempt_is_burned(fleet: &Fleet) {
    let bank = Bank::start(FAILS).await.unwrap();
    let breaker =
        json!({ "failures": 5, "minimum_calls": 10, "break_for": "1500ms", "break_cap": "2s", "canaries": 2 });
    let waits = json!({ "base": "2s", "cap": "4s", "jitter": "none" });
    let retry = json!({ "max_attempts": 3, "backoff": waits, "categories": { "rate_limited": { "backoff": waits } } });
    apply(fleet, &json!({ "targets": { "bank": breaker }, "retry": retry })).await;
    let definition = json!({ "workflow": "pays", "steps": { "pay": { "handler": "http", "breaker": "${{ input.host }}",
        "timeout": "2s", "with": { "method": "GET", "url": "${{ input.url }}" } } } });
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(fleet.api().submit(&definition, json!({ "url": bank.url, "host": "bank" })).await.unwrap());
    }
    let opened = until_breaker(fleet, "target:bank", "open").await;
    assert!(opened["reason"].as_str().unwrap().contains("fail"), "{opened:#}");
    // What was under way when it opened may still arrive: at most what the slots of the fleet hold.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let before = bank.calls();
    assert!(before <= 10 + 2 * 8, "{before} calls before the breaker was heard of");
    // Two or three times it is tried, each time by two jobs, and opens again; the server changes its mind about how to fail.
    for (mood, what) in [(LIMITS, "limits"), (HANGS, "hangs")] {
        let before = bank.calls();
        bank.mood.store(mood, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let tried = bank.calls() - before;
        assert!((2..=8).contains(&tried), "{tried} calls in five seconds of an open breaker while the server {what}");
        let parked = fleet.api().get("/api/v1/breakers/target:bank").await.unwrap();
        assert!(parked["parked"].as_u64().unwrap() >= RUNS as u64 / 2, "{parked:#}");
    }

    bank.mood.store(GOOD, Ordering::SeqCst);
    for run in &runs {
        fleet.api().until_state(run, "completed", SOON).await.unwrap();
    }
    let (mut attempts, mut errors) = (0, Vec::new());
    for run in &runs {
        let view = fleet.api().run(run).await.unwrap();
        attempts += view["step_list"][0]["attempts"].as_u64().unwrap();
        errors.extend(
            fleet.api().history(run).await.unwrap().iter().filter_map(|h| h["note"].as_str().map(String::from)),
        );
    }
    assert_eq!(attempts as usize, bank.calls(), "each attempt is a call: none was spent on waiting");
    for category in ["transient", "rate_limited", "timeout"] {
        assert!(errors.iter().any(|note| note.starts_with(category)), "no failure was {category}: {errors:#?}");
    }
    let letters = fleet.api().items("/api/v1/dead-letters?workflow=pays").await.unwrap();
    assert!(letters.is_empty(), "nobody gave up: {letters:#?}");
    until_breaker(fleet, "target:bank", "closed").await;
}

async fn a_server_that_lies_about_when_to_come_back_costs_a_day_at_most(fleet: &Fleet) {
    let bank = Bank::start(LIMITS).await.unwrap();
    let waits = json!({ "base": "300ms", "factor": 1.0, "cap": "300ms", "jitter": "none" });
    let retry = json!({ "max_attempts": 5, "backoff": waits, "categories": { "rate_limited": { "backoff": waits } } });
    let definition = json!({ "workflow": "lied-to", "timeout": "30d", "steps": { "pay": { "handler": "http",
        "retry": retry, "with": { "method": "GET", "url": bank.url } } } });
    let begun = std::time::Instant::now();
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_state(&run, "failed", SOON).await.unwrap();
    let history = fleet.api().history(&run).await.unwrap();
    let planned: Vec<&str> =
        history.iter().filter(|h| h["reason"] == "retry_planned").filter_map(|h| h["note"].as_str()).collect();
    let waits: Vec<&str> = planned.iter().filter_map(|note| note.split(" in ").nth(1)).collect();
    assert_eq!(waits, ["300 ms", "300 ms", "300 ms", "1000 ms"], "a lie is no reason to come back at once, or never");
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
    assert_eq!(bank.calls(), 5);

    bank.mood.store(GREEDY, Ordering::SeqCst);
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_step(&run, "pay", "retrying", SOON).await.unwrap();
    let history = fleet.api().history(&run).await.unwrap();
    let planned = history.iter().find(|h| h["reason"] == "retry_planned").unwrap();
    assert_eq!(planned["note"], "try 2 of 5 in 86400000 ms", "a day, and no more");
    fleet.api().command(&run, "cancel").await.unwrap();
    fleet.api().until_state(&run, "cancelled", SOON).await.unwrap();
}

async fn a_paused_queue_waits_for_its_operator_and_the_audit_knows_both(fleet: &Fleet) {
    let told: Value =
        serde_json::from_str(&fleet.verb(&["queues", "pause", "default", "--reason", "the bank asked"]).await.unwrap())
            .unwrap();
    assert_eq!((&told["paused"], &told["changed"]), (&json!(true), &json!(true)));
    // Owners look at the gates a few times a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let definition =
        json!({ "workflow": "waits", "steps": { "nap": { "handler": "sleep", "with": { "duration": "1ms" } } } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.api().run(&run).await.unwrap()["state"], "queued");
    let queues = fleet.api().items("/api/v1/queues").await.unwrap();
    let queue = queues.iter().find(|queue| queue["name"] == "default").unwrap();
    assert_eq!(queue["paused"]["reason"], "the bank asked", "{queue:#}");
    fleet.verb(&["queues", "resume", "default", "--reason", "it is ready"]).await.unwrap();
    fleet.api().until_state(&run, "completed", SOON).await.unwrap();
}

async fn an_operator_opens_and_closes_a_breaker_and_a_fallback_does_the_work_meanwhile(fleet: &Fleet) {
    let open = ["breakers", "open", "target:shop", "--reason", "maintenance"];
    let opened: Value = serde_json::from_str(&fleet.verb(&open).await.unwrap()).unwrap();
    assert_eq!((&opened["state"], &opened["until"]), (&json!("open"), &Value::Null));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let nap = json!({ "handler": "sleep", "breaker": "shop", "with": { "duration": "1ms" } });
    let mut with_fallback = nap.clone();
    with_fallback["fallback"] = json!({ "handler": "exec" });
    with_fallback["with"] = json!({ "command": ["echo", "from the cache"] });
    let definition = json!({ "workflow": "shops", "steps": { "wait": nap, "stand-in": with_fallback } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_step(&run, "stand-in", "completed", SOON).await.unwrap();
    assert_eq!(fleet.api().output(&run, "stand-in").await.unwrap()["stdout"], "from the cache\n");
    let shown: Value = serde_json::from_str(&fleet.verb(&["breakers", "show", "target:shop"]).await.unwrap()).unwrap();
    assert_eq!((&shown["parked"], &shown["reason"]), (&json!(1), &json!("maintenance")), "{shown:#}");
    fleet.verb(&["breakers", "close", "target:shop", "--reason", "done"]).await.unwrap();
    fleet.api().until_state(&run, "completed", SOON).await.unwrap();
}
