//! The health server.

use serde_json::{Value as Json, json};
use stepfleet_protocol::message::Outcome;

use crate::{
    owner::{self, Owner, job},
    server::{Server, free_port, until},
};

async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_whether_the_worker_takes_jobs_and_what_it_did() {
    let server = Server::start().await;
    let port = free_port();
    let mut worker = owner::start(owner::worker(&server).health(([127, 0, 0, 1], port).into()));
    until("the worker lives", async || get(port, "/livez").await.is_some_and(|(status, _)| status == 200)).await;
    assert_eq!(get(port, "/readyz").await, Some((503, "no partitions yet\n".to_owned())));

    let mut owner = Owner::new(&server, 1).await;
    assert_eq!(owner.outcome(&job("noop", Json::Null)).await, Outcome::Completed(None));
    assert_eq!(get(port, "/readyz").await.map(|(status, _)| status), Some(200));
    let (_, metrics) = get(port, "/metrics").await.expect("metrics");
    assert!(metrics.contains("stepfleet_worker_jobs_total{outcome=\"completed\"} 1"), "{metrics}");

    owner.dispatch(0, "q", &job("sleep", json!({"duration": "500ms"}))).await;
    until("the slot is used", async || {
        get(port, "/metrics").await.is_some_and(|(_, text)| text.contains("stepfleet_worker_slots_used 1"))
    })
    .await;
    worker.tell_to_drain();
    until("it is not ready", async || get(port, "/readyz").await == Some((503, "draining\n".to_owned()))).await;
    worker.left().await;
}
