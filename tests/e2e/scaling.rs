//! More and fewer workers and coordinators while load runs: nothing is lost, nothing is doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_tests::{
    Signal,
    lab::{self, Effects, Fleet, Hands, START},
    wait,
};

use crate::load::{self, Flow};

/// How long a change may take to show in the work.
const SHOWN: Duration = Duration::from_secs(60);

/// A chain of two steps, each of which leaves a line in the ledger: run, step, and the process of its worker.
fn noted(ledger: &Path) -> Value {
    let script = format!("echo $0 $PPID >> {}", ledger.display());
    let step = |name: &str, needs: &[&str]| {
        let place = format!("${{{{ run.id }}}} {name}");
        json!({ "handler": "exec", "needs": needs, "with": { "command": ["sh", "-c", script, place] } })
    };
    json!({ "workflow": "noted", "steps": { "a": step("a", &[]), "b": step("b", &["a"]) } })
}

/// The lines of the ledger: run and step, and the worker.
fn lines(ledger: &Path) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.map(|line| line.rsplit_once(' ').map(|(place, pid)| (place.into(), pid.parse().unwrap())).unwrap()).collect()
}

/// Waits until each of these workers, and nobody else, does something new.
async fn until_work_is_shared(ledger: &Path, pids: &BTreeSet<u32>) {
    let before = lines(ledger).len();
    wait::until(SHOWN, "every worker to do something", async || {
        let busy: BTreeSet<u32> = lines(ledger)[before..].iter().map(|(_, pid)| *pid).collect();
        ensure!(busy.is_superset(pids), "{busy:?} of {pids:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn one_worker_becomes_eight_and_one_again() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 2, 0).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let api = fleet.api().clone();
    fleet.add_worker(&["--concurrency", "1"]).unwrap();
    let counted = ledger.clone();
    let flow = Flow::start(&api, &noted(&ledger), move || lines(&counted).len()).await.unwrap();
    let pids = |fleet: &Fleet| fleet.workers.iter().map(|worker| worker.pid()).collect::<BTreeSet<_>>();
    until_work_is_shared(&ledger, &pids(&fleet)).await;
    for _ in 0..7 {
        fleet.add_worker(&["--concurrency", "1"]).unwrap();
    }
    until_work_is_shared(&ledger, &pids(&fleet)).await;
    for worker in &mut fleet.workers[1..] {
        worker.signal(Signal::SIGTERM).unwrap();
    }
    for mut worker in fleet.workers.drain(1..) {
        assert!(worker.wait(START).await.unwrap().success(), "{}", worker.stderr());
    }
    until_work_is_shared(&ledger, &pids(&fleet)).await;
    let runs = flow.end().await.unwrap();
    api.until_all(&runs, "completed", load::ALL).await.unwrap();

    let mut effects: BTreeMap<String, usize> = BTreeMap::new();
    for (place, _) in lines(&ledger) {
        *effects.entry(place).or_default() += 1;
    }
    let steps = runs.iter().flat_map(|run| [format!("{run} a"), format!("{run} b")]);
    let wanted: BTreeMap<String, usize> = steps.map(|step| (step, 1)).collect();
    assert!(effects == wanted, "each step once: {effects:#?}");
    for run in runs.iter().step_by(5) {
        let history = api.history(run).await.unwrap();
        let told = |reason: &str| history.iter().any(|entry| entry["reason"] == reason);
        assert!(!told("attempt_failed") && !told("worker_lost"), "{history:#?}");
    }
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn one_coordinator_becomes_three_and_one_again() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 3, 0).await.unwrap();
    let (api, effects) = (fleet.api().clone(), Effects::default());
    let hands = Hands::start(&server.url(), 4, &effects).unwrap();
    let counted = effects.clone();
    let flow = Flow::start(&api, &load::chain(), move || counted.steps()).await.unwrap();
    for _ in 0..2 {
        fleet.add_coordinator().await.unwrap();
        flow.to.send_replace(fleet.coordinators.last().unwrap().api.clone());
    }
    owns(&fleet, &[1.0, 1.0, 1.0]).await;
    let stays = fleet.coordinators[1].api.clone();
    flow.to.send_replace(stays.clone());
    for place in [2, 0] {
        let mut leaves = fleet.coordinators.remove(place).program;
        leaves.signal(Signal::SIGTERM).unwrap();
        assert!(leaves.wait(START).await.unwrap().success(), "{}", leaves.stderr());
    }
    owns(&fleet, &[3.0]).await;
    let begun = effects.steps();
    load::until_begun(&effects, begun + 50).await.unwrap();
    let runs = flow.end().await.unwrap();
    load::until_done(&stays, &runs, &effects).await.unwrap();
    hands.drain().await.unwrap();
}

/// Waits until the coordinators own so many partitions each.
async fn owns(fleet: &Fleet, wanted: &[f64]) {
    wait::until(SHOWN, "the partitions to be shared", async || {
        let mut owned = Vec::new();
        for coordinator in &fleet.coordinators {
            owned.push(coordinator.api.metric("stepfleet_partitions_owned").await?);
        }
        ensure!(owned == wanted, "{owned:?} instead of {wanted:?}");
        Ok(())
    })
    .await
    .unwrap();
}
