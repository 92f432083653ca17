//! A dependency that fails, limits, hangs and comes back: what the fleet does to it, and what that costs the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::{
    Router, extract::State, http::StatusCode, http::Uri, http::header, response::IntoResponse, response::Response,
};
use serde_json::{Value, json};
use stepfleet_tests::lab::Fleet;
use stepfleet_tests::wait;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(60);
/// Runs that want the dependency.
const RUNS: usize = 60;

on_one_server! {
    lesson_40_a_flaky_server_is_left_alone_but_for_canaries_and_no_attempt_is_burned,
    lesson_40_a_server_that_lies_about_when_to_come_back_costs_a_day_at_most,
    a_paused_queue_waits_for_its_operator_and_the_audit_knows_both,
    an_operator_opens_and_closes_a_breaker_and_a_fallback_does_the_work_meanwhile,
}

/// How the dependency does.
const GOOD: usize = 0;
const FAILS: usize = 1;
/// Answers 429 and says when to come back: at a time that has passed, or in a second.
const LIMITS: usize = 2;
/// Takes the call and never answers.
const HANGS: usize = 3;
/// Answers 429 with the lie that the address names.
const LIES: usize = 4;

/// What a server may say of when to come back, and the wait in milliseconds that it gets: its own word up to a day, what is none
/// as if it had said nothing, and a time that has passed as the policy has it.
const WORDS: [(&str, &str); 6] = [
    ("soon", "30000"),
    ("-5", "30000"),
    ("99999999999999999999999", "30000"),
    ("Sun, 06 Nov 1994 08:49:37 GMT", "300"),
    ("946080000", "86400000"),
    ("1", "1000"),
];

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

fn limited(word: &'static str) -> Response {
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, word)]).into_response()
}

async fn answer(State((mood, calls)): State<(Arc<AtomicUsize>, Arc<AtomicUsize>)>, uri: Uri) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    match mood.load(Ordering::SeqCst) {
        GOOD => "paid".into_response(),
        LIMITS => limited(WORDS[if call.is_multiple_of(2) { 3 } else { 5 }].0),
        HANGS => std::future::pending().await,
        LIES => limited(WORDS[uri.path()[1..].parse::<usize>().unwrap()].0),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

pub(crate) async fn apply(fleet: &Fleet, policies: &Value) {
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

async fn lesson_40_a_server_that_lies_about_when_to_come_back_costs_a_day_at_most(fleet: &Fleet) {
    let bank = Bank::start(LIES).await.unwrap();
    let waits = json!({ "base": "300ms", "factor": 1.0, "cap": "300ms", "jitter": "none" });
    let retry = json!({ "max_attempts": 3, "backoff": waits, "categories": { "rate_limited": { "backoff": waits } } });
    for (n, (word, ms)) in WORDS.into_iter().enumerate() {
        let with = json!({ "method": "GET", "url": bank.url.replace("pay", &n.to_string()) });
        let definition = json!({ "workflow": "lied-to", "timeout": "30d",
            "steps": { "pay": { "handler": "http", "retry": retry, "with": with } } });
        let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
        let planned = wait::until(SOON, "another try to be planned", async || {
            let history = fleet.api().history(&run).await?;
            let planned = history.iter().find(|h| h["reason"] == "retry_planned").and_then(|h| h["note"].as_str());
            planned.map(str::to_string).ok_or_else(|| anyhow::anyhow!("{history:#?}"))
        })
        .await
        .unwrap();
        assert_eq!(planned, format!("try 2 of 3 in {ms} ms"), "it said `{word}`");
        fleet.api().command(&run, "cancel").await.unwrap();
    }
}

pub(crate) async fn a_paused_queue_waits_for_its_operator_and_the_audit_knows_both(fleet: &Fleet) {
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

pub(crate) async fn an_operator_opens_and_closes_a_breaker_and_a_fallback_does_the_work_meanwhile(fleet: &Fleet) {
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
