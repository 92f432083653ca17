//! Workers whose pods end: their jobs are elsewhere at once, and say why. And everything of a pod that is no death.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_tests::{
    Signal,
    kubernetes::{ApiServer, Wrong},
    lab::{self, Fleet},
    wait,
};

use crate::{
    fast_death,
    worker_death::{self, marked},
};

const SOON: Duration = Duration::from_secs(30);
/// The promise is 1 s after the word of Kubernetes; the machine may be busy.
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
    fast_death::until_watched(api, workers).await.unwrap();
    fleet
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
    assert_eq!(fast_death::deaths(fleet.api(), "pod").await.unwrap(), 4.0);
}

#[tokio::test]
async fn nobody_dies_of_a_pod_that_lives_nor_of_a_server_that_is_silent_or_wrong() {
    let (server, cluster) = (lab::server().await.unwrap(), ApiServer::start().await.unwrap());
    let mut fleet = fleet(&server.url(), &cluster, 2).await;
    let api = fleet.api().clone();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    // The worker of one container leaves in order, and the next container of the pod has one that works when the end is told.
    fleet.workers[1].signal(Signal::SIGTERM).unwrap();
    assert!(fleet.workers[1].wait(SOON).await.unwrap().success());
    fleet.add_worker(&["--pod-uid", "uid-1", "--queue", "q1"]).unwrap();
    let runs = [
        api.submit(&marked("q0", &file("q0"), 25), json!(null)).await.unwrap(),
        api.submit(&marked("q1", &file("q1"), 25), json!(null)).await.unwrap(),
    ];
    for name in ["q0", "q1"] {
        worker_death::until_lines(&file(name), 1, SOON).await.unwrap();
    }
    cluster.terminated("uid-1", "Error", 1);
    cluster.restarted("uid-1", "Error", 1);
    // What Kubernetes says of a worker that is on its channel is not believed.
    cluster.runs("uid-0", false);
    cluster.terminated("uid-0", "Error", 1);
    cluster.deleted("uid-0");
    let pods = async |count: f64| {
        wait::until(SOON, "the watch to have heard it", async || {
            let watched = api.metric("stepfleet_pods_watched").await?;
            ensure!(watched == count, "{watched}");
            Ok(())
        })
        .await
        .unwrap();
    };
    pods(1.0).await;
    let failed = async || api.metric("stepfleet_pod_watch_errors_total").await;
    let (lists, before) = (cluster.asked().0, failed().await.unwrap());
    cluster.runs("uid-0", true);
    cluster.forget();
    cluster.cut();
    wait::until(SOON, "a new list", async || {
        ensure!(cluster.asked().0 > lists, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    pods(2.0).await;
    for (wrong, word) in
        [(Wrong::Answers(503), "errors"), (Wrong::Answers(410), "that it has forgotten"), (Wrong::Silent, "silence")]
    {
        let before = failed().await.unwrap();
        cluster.is(Some(wrong));
        wait::until(SOON, word, async || {
            ensure!(failed().await? > before, "not yet");
            Ok(())
        })
        .await
        .unwrap();
        cluster.is(None);
    }
    assert!(failed().await.unwrap() > before);
    for run in &runs {
        api.until_state(run, "completed", Duration::from_secs(90)).await.unwrap();
    }
    for name in ["q0", "q1"] {
        worker_death::until_lines(&file(name), 1, SOON).await.unwrap();
    }
    assert_eq!(fast_death::deaths(&api, "pod").await.unwrap(), 0.0);
    assert_eq!(api.metric("stepfleet_jobs_lost_total").await.unwrap(), 0.0);
    fleet.workers.remove(1);
    fleet.stop().await.unwrap();
}
