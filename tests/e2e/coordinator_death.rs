//! Coordinators that die, freeze and are asked to leave, under load.

use std::time::{Duration, Instant};

use anyhow::ensure;
use stepfleet_protocol::{
    id::PartitionId,
    keys::{Keys, PREFIX_DEFAULT},
};
use stepfleet_tests::{
    Server, Signal,
    lab::{self, Api, Effects, Fleet, Hands, START},
    wait,
};

use crate::load;

const PARTITIONS: u16 = 4;
const RUNS: usize = 200;
/// Five times what a hand-over may take.
const HANDED_OVER: Duration = Duration::from_secs(5);

/// Waits until this coordinator owns every partition.
async fn owns_all(api: &Api, deadline: Duration) -> anyhow::Result<()> {
    wait::until(deadline, "one coordinator to own all", async || {
        let owned = api.metric("stepfleet_partitions_owned").await?;
        ensure!(owned == f64::from(PARTITIONS), "it owns {owned}");
        Ok(())
    })
    .await
}

/// Waits until this coordinator owns at least one partition.
async fn owns_some(api: &Api) -> anyhow::Result<()> {
    wait::until(START, "a coordinator to own a partition", async || {
        ensure!(api.metric("stepfleet_partitions_owned").await? >= 1.0, "it owns none");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn when_a_coordinator_is_killed_the_other_goes_on() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), PARTITIONS, 0).await.unwrap();
    fleet.add_coordinator().await.unwrap();
    let (api, effects) = (fleet.coordinators[1].api.clone(), Effects::default());
    let hands = Hands::start(&server.url(), 16, &effects).unwrap();
    owns_some(&api).await.unwrap();
    let runs = load::submit(&api, RUNS).await.unwrap();
    load::until_begun(&effects, RUNS / 2).await.unwrap();
    fleet.coordinators[0].program.kill_9().unwrap();
    load::until_done(&api, &runs, &effects).await.unwrap();
    owns_all(&api, START).await.unwrap();
    hands.drain().await.unwrap();
}

#[tokio::test]
async fn a_frozen_coordinator_that_wakes_commits_nothing() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), PARTITIONS, 0).await.unwrap();
    fleet.add_coordinator().await.unwrap();
    let (api, old, effects) =
        (fleet.coordinators[1].api.clone(), fleet.coordinators[0].api.clone(), Effects::default());
    let hands = Hands::start(&server.url(), 16, &effects).unwrap();
    owns_some(&old).await.unwrap();
    let runs = load::submit(&api, RUNS).await.unwrap();
    load::until_begun(&effects, RUNS / 2).await.unwrap();
    fleet.coordinators[0].program.signal(Signal::SIGSTOP).unwrap();
    owns_all(&api, Duration::from_secs(60)).await.unwrap();
    fleet.coordinators[0].program.signal(Signal::SIGCONT).unwrap();
    load::until_done(&api, &runs, &effects).await.unwrap();
    let ended = old.metric("stepfleet_owner_fenced_total").await.unwrap()
        + old.metric("stepfleet_owner_doubts_total").await.unwrap();
    assert!(ended >= 1.0, "no reign of the frozen one ended");
    for api in [&api, &old] {
        assert_eq!(api.metric("stepfleet_owner_torn_commits_total").await.unwrap(), 0.0);
    }
    hands.drain().await.unwrap();
}

/// Of each partition: who has its lease, and its reign.
async fn reigns(server: &Server) -> anyhow::Result<Vec<(String, String)>> {
    let mut connection = server.connection().await?;
    let mut all = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let keys = Keys::new(PREFIX_DEFAULT).partition(partition);
        let mut look = redis::pipe();
        look.get(keys.lease()).hget(keys.head(), "reign");
        let (lease, reign): (Option<String>, Option<String>) = look.query_async(&mut connection).await?;
        all.push((lease.unwrap_or_default(), reign.unwrap_or_default()));
    }
    Ok(all)
}

#[tokio::test]
async fn a_coordinator_that_is_asked_to_leave_hands_its_partitions_over_at_once() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), PARTITIONS, 0).await.unwrap();
    fleet.add_coordinator().await.unwrap();
    let (api, effects) = (fleet.coordinators[1].api.clone(), Effects::default());
    let hands = Hands::start(&server.url(), 16, &effects).unwrap();
    owns_some(&api).await.unwrap();
    let runs = load::submit(&api, RUNS).await.unwrap();
    load::until_begun(&effects, RUNS / 2).await.unwrap();
    let before = reigns(&server).await.unwrap();
    let theirs = before.iter().filter(|(lease, _)| lease.starts_with("c1")).count();
    assert!(theirs > 0, "the one that leaves owns nothing: {before:?}");
    let asked = Instant::now();
    fleet.coordinators[0].program.signal(Signal::SIGTERM).unwrap();
    // The other one's reign is its first commit. Five times what is promised: a lease that was not released would take 3 s,
    // and then the others wait for one to two more.
    wait::until(HANDED_OVER, "the other one to commit in every partition", async || {
        let now = reigns(&server).await?;
        let pairs = before.iter().zip(&now).filter(|((lease, _), _)| lease.starts_with("c1"));
        for ((_, old), (lease, new)) in pairs {
            ensure!(lease.starts_with("c2") && new != old, "{now:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
    println!("{theirs} partitions were handed over in {:?}", asked.elapsed());
    owns_all(&api, START).await.unwrap();
    // Requests under way may keep the program a little.
    assert!(fleet.coordinators[0].program.wait(START).await.unwrap().success());
    load::until_done(&api, &runs, &effects).await.unwrap();
    hands.drain().await.unwrap();
}
