//! What is kept is a setting: a coordinator with another one deletes what is beyond it.

use anyhow::ensure;
use serde_json::json;
use stepfleet_tests::{
    Signal,
    lab::{self, Fleet, START},
    wait,
};

#[tokio::test]
async fn a_coordinator_keeps_as_many_runs_and_letters_as_it_is_told() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let mut runs = Vec::new();
    for handler in ["noop", "noop", "noop", "fail", "fail"] {
        let definition = json!({ "workflow": handler, "steps": { "only": { "handler": handler,
            "with": { "category": "permanent" } } } });
        let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
        let state = if handler == "noop" { "completed" } else { "failed" };
        fleet.api().until_state(&run, state, START).await.unwrap();
        runs.push(run);
    }
    assert_eq!(fleet.api().items("/api/v1/dead-letters").await.unwrap().len(), 2, "{}", fleet.story());
    let mut first = fleet.coordinators.remove(0).program;
    first.signal(Signal::SIGTERM).unwrap();
    assert!(first.wait(START).await.unwrap().success(), "{}", first.stderr());

    let settings = ["--retain-runs", "1", "--retain-dead-letters-max", "1"];
    let api = fleet.add_coordinator_with(&settings).await.unwrap().api.clone();
    wait::until(START, "the older runs to be deleted", async || {
        let left = api.items("/api/v1/runs").await?;
        ensure!(left.len() == 2, "{left:?}");
        ensure!(api.metric("stepfleet_runs_expired_total").await? == 3.0, "three are counted");
        Ok(())
    })
    .await
    .unwrap();
    // Each listing keeps its newest run, and the failed one that is left has its letter still.
    let mut left: Vec<_> = api.items("/api/v1/runs").await.unwrap().iter().map(|run| run["id"].clone()).collect();
    left.sort_by_key(|id| runs.iter().position(|run| id == run));
    assert_eq!(left, [json!(runs[2]), json!(runs[4])]);
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    assert_eq!((letters.len(), &letters[0]["run"]), (1, &json!(runs[4])), "{letters:?}");
    assert!((api.metric("stepfleet_dead_letters_expired_total").await.unwrap() - 1.0).abs() < f64::EPSILON);
    fleet.stop().await.unwrap();
}
