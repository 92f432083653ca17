//! Workers whose end is seen on their control channels within seconds, and everything that looks like it and is no death.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_protocol::keys::{self, Keys};
use stepfleet_tests::{
    Cluster, Sentinel, Server, Signal,
    cluster::ClusterOptions,
    lab::{self, Api, Effects, Fleet, Hands},
    sentinel, wait,
};

use crate::{topologies::joined, worker_death};

const SOON: Duration = Duration::from_secs(30);
/// Channels tell nothing until the coordinator's connection was quiet for half a minute.
const CALM: Duration = Duration::from_secs(90);
/// The promise is 8 s; the machine may be busy.
const FAST: Duration = Duration::from_secs(5 * 8);

/// Deaths that this coordinator saw by `way`.
pub(crate) async fn deaths(api: &Api, way: &str) -> anyhow::Result<f64> {
    let text = api.text("/metrics").await?;
    let name = format!("stepfleet_worker_deaths_total{{way=\"{way}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.with_context(|| format!("no `{name}` in\n{text}"))?.parse()?)
}

/// Waits until the deaths of all `workers` would be seen at once.
pub(crate) async fn until_watched(api: &Api, workers: usize) -> anyhow::Result<()> {
    wait::until(CALM, "the channels of all workers to be watched", async || {
        let watched = api.metric("stepfleet_worker_channels_watched").await?;
        ensure!(watched == workers as f64, "{watched} of {workers}");
        Ok(())
    })
    .await
}

/// Waits until something made the coordinator stop trusting the channels, and until it does so again.
async fn until_watched_again(api: &Api, workers: usize) -> anyhow::Result<()> {
    wait::until(SOON, "the channels to be in doubt", async || {
        let watched = api.metric("stepfleet_worker_channels_watched").await?;
        ensure!(watched < workers as f64, "all {watched} are watched");
        Ok(())
    })
    .await?;
    until_watched(api, workers).await
}

async fn nobody_died(api: &Api) -> anyhow::Result<()> {
    let dead = (deaths(api, "beats").await?, deaths(api, "channel").await?);
    ensure!(dead == (0.0, 0.0), "by beats and by channel: {dead:?}");
    ensure!(api.metric("stepfleet_jobs_lost_total").await? == 0.0, "jobs were lost");
    Ok(())
}

/// One step of a workflow of its own, for `Hands`.
fn one(ms: u64) -> Value {
    json!({ "workflow": "one", "steps": { "work": { "handler": "mark", "with": { "ms": ms } } } })
}

#[tokio::test]
async fn the_job_of_a_killed_worker_is_elsewhere_within_seconds_and_a_stopped_one_keeps_its_own() {
    let server = lab::server().await.unwrap();
    kill_one_and_stop_one(&server.url()).await;
}

#[tokio::test]
async fn on_a_cluster_the_job_of_a_killed_worker_is_elsewhere_within_seconds_too() {
    let cluster = lab::cluster().await.unwrap();
    kill_one_and_stop_one(&joined("redis-cluster", &cluster.urls())).await;
}

async fn kill_one_and_stop_one(url: &str) {
    let mut fleet = Fleet::start(url, 2, 0).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let effects = Effects::default();
    let _others: Vec<Hands> = (0..4).map(|_| Hands::start(url, 1, &effects).unwrap()).collect();
    for queue in ["killed", "frozen"] {
        fleet.add_worker(&["--queue", queue]).unwrap();
    }
    let api = fleet.api().clone();
    until_watched(&api, 6).await.unwrap();
    let killed = api.submit(&worker_death::marked("killed", &file("killed"), 90), json!(null)).await.unwrap();
    let frozen = api.submit(&worker_death::marked("frozen", &file("frozen"), 60), json!(null)).await.unwrap();
    worker_death::until_lines(&file("killed"), 1, SOON).await.unwrap();
    worker_death::until_lines(&file("frozen"), 1, SOON).await.unwrap();
    api.until_step(&killed, "work", "processing", SOON).await.unwrap();
    fleet.add_worker(&["--queue", "killed", "--queue", "frozen"]).unwrap();
    fleet.workers[1].signal(Signal::SIGSTOP).unwrap();
    fleet.workers[0].kill_9().unwrap();
    let began = Instant::now();
    worker_death::until_lines(&file("killed"), 2, FAST).await.unwrap();
    println!("killed -9, and its job began elsewhere {:.1} s later", began.elapsed().as_secs_f64());
    assert_eq!(deaths(&api, "channel").await.unwrap(), 1.0, "seen on its channel");
    if began.elapsed() < Duration::from_secs(20) {
        worker_death::until_lines(&file("frozen"), 1, SOON).await.unwrap();
        assert_eq!(deaths(&api, "beats").await.unwrap(), 0.0, "who is stopped keeps its connections");
    }
    api.until_state(&killed, "completed", SOON).await.unwrap();
    let history = api.history(&killed).await.unwrap();
    assert!(worker_death::reasons(&history).contains(&"worker_lost"), "{history:#?}");
    fleet.workers[1].signal(Signal::SIGCONT).unwrap();
    api.until_state(&frozen, "completed", Duration::from_secs(120)).await.unwrap();
}

/// Ends connections of this kind again and again.
async fn storm(server: &Server, kind: &str, lasts: Duration) -> anyhow::Result<usize> {
    let (begun, mut killed) = (Instant::now(), 0);
    let mut every = tokio::time::interval(Duration::from_millis(150));
    while begun.elapsed() < lasts {
        every.tick().await;
        let mut connection = server.connection().await?;
        let mut kill = redis::cmd("CLIENT");
        killed += kill.arg("KILL").arg("TYPE").arg(kind).query_async::<usize>(&mut connection).await?;
    }
    Ok(killed)
}

#[tokio::test]
async fn a_storm_of_resets_over_a_fleet_kills_nobody() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 2, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let all: Vec<Hands> = (0..20).map(|_| Hands::start(&server.url(), 2, &effects).unwrap()).collect();
    until_watched(api, 20).await.unwrap();
    api.register(&one(30_000)).await.unwrap();
    let runs = api.submit_many("one", 40).await.unwrap();
    wait::until(SOON, "every slot to be taken", async || {
        ensure!(effects.steps() == 40, "{} have begun", effects.steps());
        Ok(())
    })
    .await
    .unwrap();
    // First the subscriptions alone, so that coordinators keep their connections; then everything.
    assert!(storm(&server, "pubsub", Duration::from_secs(12)).await.unwrap() > 100);
    nobody_died(api).await.unwrap();
    assert!(storm(&server, "normal", Duration::from_secs(6)).await.unwrap() > 100);
    assert!(storm(&server, "pubsub", Duration::from_secs(6)).await.unwrap() > 20);
    api.until_all(&runs, "completed", Duration::from_secs(90)).await.unwrap();
    until_watched(api, 20).await.unwrap();
    nobody_died(api).await.unwrap();
    for run in &runs {
        assert_eq!(effects.of(run, "work").len(), 1, "a job was done twice");
    }
    drop(all);
}

/// The port of the primary of a slot in what CLUSTER SLOTS says.
fn port_of(map: &redis::Value, slot: u16) -> Option<u16> {
    use redis::Value::{Array, Int};
    let Array(rows) = map else { return None };
    rows.iter().find_map(|row| match row {
        Array(row) => match &row[..] {
            [Int(first), Int(last), Array(primary), ..] if (*first..=*last).contains(&i64::from(slot)) => {
                primary.get(1).and_then(|port| if let Int(port) = port { u16::try_from(*port).ok() } else { None })
            }
            _ => None,
        },
        _ => None,
    })
}

/// After a fail-over its subscribers are told `sunsubscribe`, the new primary counts none, and the old one, which serves the
/// coordinator's connection on as a replica, counts none either.
#[tokio::test]
async fn trap_8_on_a_cluster_neither_a_fail_over_nor_a_moved_slot_kills_anybody() {
    let server = lab::durable();
    let options = ClusterOptions { replicas_each: 1, server, ..ClusterOptions::default() };
    let cluster = Cluster::launch(options).await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let fleet = Fleet::start(&url, 4, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let _all: Vec<Hands> = (0..8).map(|_| Hands::start(&url, 1, &effects).unwrap()).collect();
    until_watched(api, 8).await.unwrap();
    api.register(&one(20_000)).await.unwrap();
    let runs = api.submit_many("one", 8).await.unwrap();
    // The channel of one worker on the third node moves to the first.
    let workers = api.items("/api/v1/workers").await.unwrap();
    let ids = workers.iter().filter_map(|w| w["id"].as_str());
    let mut slots = ids.map(|id| keys::slot_of(Keys::default().worker_control(id).as_bytes()));
    if let Some(slot) = slots.find(|slot| cluster.primary_of(*slot) == 2) {
        cluster.begin_move(slot, 0).await.unwrap();
        while cluster.move_keys(slot, 0, 100).await.unwrap() > 0 {}
        cluster.end_move(slot, 0).await.unwrap();
        // A replica that has not heard of it yet would not claim the slot when it is promoted.
        for node in cluster.nodes() {
            let mut connection = node.connection().await.unwrap();
            wait::until(SOON, "every node to know who has the slot", async || {
                let map = redis::cmd("CLUSTER").arg("SLOTS").query_async::<redis::Value>(&mut connection).await?;
                ensure!(port_of(&map, slot) == Some(cluster.nodes()[0].port()), "{map:?}");
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    for primary in 0..2 {
        let replica = &cluster.nodes()[3 + primary];
        let mut connection = replica.connection().await.unwrap();
        redis::cmd("CLUSTER").arg("FAILOVER").query_async::<()>(&mut connection).await.unwrap();
        wait::until(SOON, "the replica to be promoted", async || {
            let role: Value =
                json!(format!("{:?}", redis::cmd("ROLE").query_async::<redis::Value>(&mut connection).await?));
            ensure!(role.to_string().contains("master"), "{role}");
            Ok(())
        })
        .await
        .unwrap();
    }
    until_watched_again(api, 8).await.unwrap();
    api.until_all(&runs, "completed", Duration::from_secs(120)).await.unwrap();
    until_watched(api, 8).await.unwrap();
    nobody_died(api).await.unwrap();
}

#[tokio::test]
async fn trap_8_a_fail_over_behind_sentinels_kills_nobody() {
    let mut sentinel = Sentinel::launch(3, lab::durable()).await.unwrap();
    let url = format!("{}/{}", joined("redis-sentinel", &sentinel.urls()), sentinel::NAME);
    let fleet = Fleet::start(&url, 2, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let _all: Vec<Hands> = (0..6).map(|_| Hands::start(&url, 1, &effects).unwrap()).collect();
    until_watched(api, 6).await.unwrap();
    sentinel.fail_over().await.unwrap();
    until_watched_again(api, 6).await.unwrap();
    nobody_died(api).await.unwrap();
}
