//! Workers whose pods end: their jobs are elsewhere at once, and say why. And everything of a pod that is no death.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_tests::{
    kubernetes::ApiServer,
    lab::{self, Api, Fleet},
    wait,
};

use crate::worker_death::{self, marked};

const SOON: Duration = Duration::from_secs(30);
/// The promise is 1 s; the machine may be busy. Without a word of Kubernetes it takes 30 s: channels are trusted only then.
const FAST: Duration = Duration::from_secs(5);

/// A coordinator that watches pods, and workers, each in a pod of its own: `uid-0` and so on.
async fn fleet(server: &str, cluster: &ApiServer, workers: usize) -> Fleet {
    let mut fleet = Fleet::at(server, 2).env("KUBECONFIG", cluster.config());
    fleet.add_coordinator_with(&["--watch-pods", "--watch-pods-selector", cluster.selector()]).await.unwrap();
    for n in 0..workers {
        let uid = format!("uid-{n}");
        cluster.runs(&uid, true);
        fleet.add_worker(&["--pod-uid", &uid, "--queue", &format!("q{n}")]).unwrap();
    }
    let api = fleet.api();
    wait::until(SOON, "the pods to be watched", async || {
        let watched = api.metric("stepfleet_pods_watched").await?;
        ensure!(watched == workers as f64 && cluster.asked().1 > 0, "{watched} of {workers}");
        Ok(())
    })
    .await
    .unwrap();
    fleet
}

async fn deaths_by_pods(api: &Api) -> f64 {
    let text = api.text("/metrics").await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix("stepfleet_worker_deaths_total{way=\"pod\"} "));
    found.context("the metric").unwrap().parse().unwrap()
}

/// Runs a job of the queue `q{n}`, kills its worker, lets Kubernetes say how, and waits until the job has begun elsewhere.
/// Returns the error that the history has of it.
async fn ends(fleet: &mut Fleet, n: usize, kubernetes_says: impl Fn()) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("marks").display().to_string();
    let queue = format!("q{n}");
    let api = fleet.api().clone();
    let run = api.submit(&marked(&queue, &file, 60), json!(null)).await.unwrap();
    worker_death::until_lines(&file, 1, SOON).await.unwrap();
    api.until_step(&run, "work", "processing", SOON).await.unwrap();
    fleet.add_worker(&["--queue", &queue]).unwrap();
    fleet.workers[n].kill_9().unwrap();
    let began = Instant::now();
    kubernetes_says();
    let again = worker_death::until_lines(&file, 2, FAST).await;
    again.unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.coordinators[0].program.stderr()));
    println!("its job began elsewhere {:.2} s later", began.elapsed().as_secs_f64());
    api.until_state(&run, "completed", SOON).await.unwrap();
    let history = api.history(&run).await.unwrap();
    let lost = history.iter().find(|entry| entry["reason"] == "worker_lost").context("a loss").unwrap();
    lost.to_string()
}

#[tokio::test]
async fn the_job_of_a_pod_that_ended_is_elsewhere_at_once_and_its_error_says_how() {
    let (server, cluster) = (lab::server().await.unwrap(), ApiServer::start().await.unwrap());
    let mut fleet = fleet(&server.url(), &cluster, 4).await;
    let error = ends(&mut fleet, 0, || cluster.terminated("uid-0", "OOMKilled", 137)).await;
    assert!(error.contains("(loss 1 of 3): OOMKilled, exit code 137"), "{error}");
    // The next container of the same pod has a worker, which does not end with the one before it.
    fleet.add_worker(&["--pod-uid", "uid-0", "--queue", "q0"]).unwrap();
    cluster.restarted("uid-0", "OOMKilled", 137);
    let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory." });
    let error = ends(&mut fleet, 1, || cluster.set("uid-1", &Value::Null, evicted.clone())).await;
    assert!(error.contains("(loss 1 of 3): Evicted"), "{error}");
    let error = ends(&mut fleet, 2, || cluster.deleted("uid-2")).await;
    assert!(error.contains("(loss 1 of 3): Deleted"), "{error}");
    // It goes while nobody watches, and the server forgets that it did.
    let unseen = || {
        cluster.deleted("uid-3");
        cluster.forget();
        cluster.cut();
    };
    let error = ends(&mut fleet, 3, unseen).await;
    assert!(error.contains("(loss 1 of 3): Deleted"), "{error}");
    assert_eq!(deaths_by_pods(fleet.api()).await, 4.0);
}

#[tokio::test]
async fn nobody_dies_of_a_pod_that_lives_nor_of_a_server_that_is_silent_or_wrong() {
    let (server, cluster) = (lab::server().await.unwrap(), ApiServer::start().await.unwrap());
    let fleet = fleet(&server.url(), &cluster, 1).await;
    let api = fleet.api();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("marks").display().to_string();
    let run = api.submit(&marked("q0", &file, 25), json!(null)).await.unwrap();
    worker_death::until_lines(&file, 1, SOON).await.unwrap();
    cluster.runs("uid-0", false);
    // What Kubernetes says of a worker that is on its channel is not believed.
    cluster.terminated("uid-0", "Error", 1);
    cluster.deleted("uid-0");
    wait::until(SOON, "the watch to have heard it", async || {
        ensure!(api.metric("stepfleet_pods_watched").await? == 0.0, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let (lists, _) = cluster.asked();
    cluster.runs("uid-0", true);
    cluster.forget();
    cluster.cut();
    wait::until(SOON, "a new list", async || {
        ensure!(cluster.asked().0 > lists, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    cluster.silence(true);
    wait::until(SOON, "an error of the watch", async || {
        ensure!(api.metric("stepfleet_pod_watch_errors_total").await? >= 1.0, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    api.until_state(&run, "completed", Duration::from_secs(90)).await.unwrap();
    worker_death::until_lines(&file, 1, SOON).await.unwrap();
    assert_eq!(deaths_by_pods(api).await, 0.0);
    assert_eq!(api.metric("stepfleet_jobs_lost_total").await.unwrap(), 0.0);
    fleet.stop().await.unwrap();
}
