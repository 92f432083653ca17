//! Limits of the fleet, as a dependency sees them: never more at once than it can bear, whoever dies, and never faster.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State};
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Fleet},
    wait,
};
use tokio::task::JoinHandle;

use crate::breakers;

const SOON: Duration = Duration::from_secs(60);
const RUNS: usize = 60;

on_one_server! {
    a_rate_is_kept_and_what_waits_says_why,
}

/// A web server that takes its time, and notes how many it had at once and when they came.
#[derive(Debug, Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    came: Mutex<Vec<Instant>>,
}

struct Shop {
    url: String,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shop {
    async fn start(takes: Duration) -> anyhow::Result<Self> {
        let seen = Arc::new(Seen::default());
        let router = Router::new()
            .fallback(async move |State(seen): State<Arc<Seen>>| {
                seen.came.lock().unwrap().push(Instant::now());
                let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(takes).await;
                seen.now.fetch_sub(1, Ordering::SeqCst);
                "sold"
            })
            .with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/buy", listener.local_addr()?);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the listener stays") });
        Ok(Self { url, seen, task })
    }
}

#[tokio::test]
async fn no_more_at_once_than_the_limit_says_though_a_coordinator_dies() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 4, 4).await.unwrap();
    fleet.add_coordinator().await.unwrap();
    let shop = Shop::start(Duration::from_millis(80)).await.unwrap();
    breakers::apply(&fleet, &json!({ "limits": { "target:shop": { "concurrency": 3 } } })).await;
    // Both coordinators have heard of it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let definition = json!({ "workflow": "buys", "steps": { "buy": { "handler": "http", "breaker": "${{ input.at }}",
        "with": { "method": "GET", "url": "${{ input.url }}" } } } });
    let api = fleet.coordinators[1].api.clone();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(api.submit(&definition, json!({ "url": shop.url, "at": "shop" })).await.unwrap());
    }
    wait::until(SOON, "a third of the work to be done", async || {
        let done = shop.seen.came.lock().unwrap().len();
        anyhow::ensure!(done >= RUNS / 3, "{done} are done");
        Ok(())
    })
    .await
    .unwrap();
    fleet.coordinators[0].program.kill_9().unwrap();
    api.until_all(&runs, "completed", SOON).await.unwrap();
    assert_eq!(shop.seen.most.load(Ordering::SeqCst), 3, "it had as many at once as it can bear, and no more");
    assert_eq!(shop.seen.came.lock().unwrap().len(), RUNS, "and each once");
    let limits = api.items("/api/v1/limits").await.unwrap();
    assert_eq!((&limits[0]["name"], &limits[0]["parked"]), (&json!("target:shop"), &json!(0)), "{limits:?}");
    wait::until(SOON, "every place to be given back", async || {
        let limits = api.items("/api/v1/limits").await?;
        anyhow::ensure!(limits[0]["used"] == 0, "{limits:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(api.metric("stepfleet_limit_leaks_total").await.unwrap(), 0.0);
}

pub(crate) async fn a_rate_is_kept_and_what_waits_says_why(fleet: &Fleet) {
    let shop = Shop::start(Duration::from_millis(1)).await.unwrap();
    breakers::apply(fleet, &json!({ "limits": { "handler:http": { "rate": "20/s", "burst": 2 } } })).await;
    let definition = json!({ "workflow": "buys", "steps": { "buy": { "handler": "http",
        "with": { "method": "GET", "url": "${{ input.url }}" } } } });
    let begun = Instant::now();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(fleet.api().submit(&definition, json!({ "url": shop.url })).await.unwrap());
    }
    let mut said = Value::Null;
    for run in runs.iter().rev() {
        let answer = fleet.api().get(&format!("/api/v1/runs/{run}/explain?step=buy")).await.unwrap();
        if answer["steps"][0]["reason"] == "gated" {
            said = answer["steps"][0].clone();
            break;
        }
    }
    let sentence = said["sentence"].as_str().unwrap_or_default();
    assert!(sentence.contains("limit of `handler:http` (at most 20/s)"), "{said:#}");
    let listed = fleet.verb(&["limits", "list"]).await.unwrap();
    let limits: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(limits["items"][0]["rate"], "20/s", "{listed}");
    assert!(limits["items"][0]["parked"].as_u64().unwrap() > 0, "{listed}");
    fleet.api().until_all(&runs, "completed", SOON).await.unwrap();
    let took = begun.elapsed();
    // The burst, and what may have begun before the owners had the limit.
    assert!(took >= Duration::from_millis((RUNS as u64 - 2 - 4) * 50), "{took:?} for {RUNS} at 20/s");
    let came = shop.seen.came.lock().unwrap().clone();
    for first in &came {
        let within = came.iter().filter(|at| **at >= *first && **at - *first < Duration::from_secs(1)).count();
        // A second's worth, the burst, and what was on its way when the second began.
        assert!(within <= 20 + 2 + 4, "{within} in one second");
    }
}
