//! The same on a Cluster, behind Sentinels, with TLS and as an ACL user.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use stepfleet_protocol::{
    id::{PartitionId, RunId},
    keys,
};
use stepfleet_tests::{
    Cluster, Fsync, Sentinel, Signal,
    cluster::ClusterOptions,
    lab::{self, Api, Effects, Fleet, Hands, audit},
    sentinel, wait,
};

use crate::{commands, failures, flows, load, policies, worker_death};

const SOON: Duration = Duration::from_secs(30);
/// Partitions on a Cluster, as in production.
const PARTITIONS: u16 = 8;
/// Runs of one bulk submit.
const BULK: usize = 3_000;

/// The servers behind several URLs as one, with another scheme.
pub(crate) fn joined(scheme: &str, urls: &[String]) -> String {
    let hosts: Vec<&str> = urls.iter().map(|url| url.trim_start_matches("redis://")).collect();
    format!("{scheme}://{}", hosts.join(","))
}

/// A short run over the API.
async fn smoke(fleet: &Fleet) -> anyhow::Result<()> {
    let definition = json!({ "workflow": "smoke", "steps": {
        "a": { "handler": "exec", "with": { "command": ["printf", "hi"] } },
        "b": { "handler": "exec", "needs": ["a"], "with": { "command": ["cat"], "stdin": "${{ steps.a.output.stdout }}" } } } });
    let run = fleet.api().submit(&definition, json!(null)).await?;
    fleet.api().until_state(&run, "completed", SOON).await?;
    assert_eq!(fleet.api().output(&run, "b").await?["stdout"], "hi");
    Ok(())
}

#[tokio::test]
async fn on_a_cluster_runs_complete_and_a_killed_coordinator_is_replaced() {
    let cluster = lab::cluster().await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let mut fleet = Fleet::start(&url, PARTITIONS, 1).await.unwrap();
    smoke(&fleet).await.unwrap();
    fleet.workers[0].signal(Signal::SIGTERM).unwrap();
    assert!(fleet.workers[0].wait(Duration::from_secs(60)).await.unwrap().success());
    fleet.add_coordinator().await.unwrap();
    let (api, effects) = (fleet.coordinators[1].api.clone(), Effects::default());
    let hands = Hands::start(&url, 16, &effects).unwrap();
    let runs = load::submit(&api, 200).await.unwrap();
    load::until_begun(&effects, 100).await.unwrap();
    fleet.coordinators[0].program.kill_9().unwrap();
    load::until_done(&api, &runs, &effects).await.unwrap();
    hands.drain().await.unwrap();
}

/// What is a test of its own on one server, together on one Cluster.
#[tokio::test]
async fn on_a_cluster_the_ordinary_flows_are_the_same() {
    let cluster = lab::cluster().await.unwrap();
    let fleet = Fleet::start(&joined("redis-cluster", &cluster.urls()), PARTITIONS, 3).await.unwrap();
    tokio::join!(
        flows::a_chain_hands_its_outputs_on(&fleet),
        flows::a_diamond_and_a_fan_join_what_their_branches_gave(&fleet),
        flows::large_values_reach_the_steps_that_need_them(&fleet),
        failures::a_failing_step_is_tried_again_after_its_backoff(&fleet),
        failures::limits_of_time_end_steps_and_runs(&fleet),
        failures::a_dead_letter_tells_everything_and_its_replay_ends_the_run(&fleet),
        commands::a_cancel_stops_the_handler_at_once(&fleet),
        commands::a_suspended_run_starts_nothing_until_it_is_resumed(&fleet),
    );
    // It changes what holds for everybody.
    policies::policies_that_are_applied_while_a_coordinator_runs_hold_for_the_next_failure(&fleet).await;
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn on_a_cluster_thousands_of_runs_come_in_bulk_and_a_killed_worker_loses_none() {
    let cluster = lab::cluster().await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let mut fleet = Fleet::start(&url, PARTITIONS, 0).await.unwrap();
    let (api, effects) = (fleet.api().clone(), Effects::default());
    // One death must be less than a third of the fleet, or it waits for a second look.
    let _hands: Vec<Hands> = (0..4).map(|_| Hands::start(&url, 16, &effects).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines").display().to_string();
    fleet.add_worker(&["--queue", "killed"]).unwrap();
    let killed = api.submit(&worker_death::marked("killed", &file, 100), json!(null)).await.unwrap();
    api.until_step(&killed, "work", "processing", SOON).await.unwrap();
    api.register(&json!({ "workflow": "one", "steps": { "only": { "handler": "mark" } } })).await.unwrap();
    let runs = api.submit_many("one", BULK).await.unwrap();
    assert_eq!(runs.len(), BULK);
    fleet.workers[0].kill_9().unwrap();
    fleet.add_worker(&["--queue", "killed"]).unwrap();
    api.until_state(&killed, "completed", worker_death::DEATH).await.unwrap();
    worker_death::until_lines(&file, 2, SOON).await.unwrap();
    let history = api.history(&killed).await.unwrap();
    assert!(worker_death::reasons(&history).contains(&"worker_lost"), "the history says why: {history:#?}");
    wait::until(load::ALL, "all runs to complete", async || {
        let metrics = api.get("/api/v1/metrics/runs?time_range=1h").await?;
        anyhow::ensure!(metrics["completed"] == BULK + 1, "{metrics}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(effects.steps(), BULK);
    for run in runs.iter().step_by(50) {
        audit(&api, run, &effects).await.unwrap();
    }
    let partitions: BTreeSet<PartitionId> = runs.iter().map(|run| partition_of(run)).collect();
    assert_eq!(partitions.len(), usize::from(PARTITIONS), "every partition had its share");
}

fn partition_of(run: &str) -> PartitionId {
    run.parse::<RunId>().unwrap().partition()
}

#[tokio::test]
async fn on_a_cluster_a_killed_node_comes_back_and_everything_goes_on_by_itself() {
    let server = lab::durable().append_only(Fsync::Always);
    let mut cluster = Cluster::launch(ClusterOptions { server, ..ClusterOptions::default() }).await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let fleet = Fleet::start(&url, PARTITIONS, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let hands = Hands::start(&url, 16, &effects).unwrap();
    let runs = load::submit(api, 150).await.unwrap();
    for (node, steps) in [(0, 75), (1, 250)] {
        load::until_begun(&effects, steps).await.unwrap();
        cluster.node_mut(node).kill_9().unwrap();
        cluster.node_mut(node).restart().await.unwrap();
    }
    load::until_done(api, &runs, &effects).await.unwrap();
    assert_eq!(api.metric("stepfleet_owner_torn_commits_total").await.unwrap(), 0.0);
    hands.drain().await.unwrap();
}

#[tokio::test]
async fn on_a_cluster_a_promoted_replica_loses_no_run_that_was_replicated() {
    let node_timeout = Duration::from_secs(1);
    let options =
        ClusterOptions { replicas_each: 1, node_timeout, server: lab::durable(), ..ClusterOptions::default() };
    let mut cluster = Cluster::launch(options).await.unwrap();
    let mut fleet = Fleet::start(&joined("redis-cluster", &cluster.urls()), PARTITIONS, 0).await.unwrap();
    fleet.add_worker(&["--concurrency", "8"]).unwrap();
    smoke(&fleet).await.unwrap();
    let runs = replicated(&fleet).await;
    // It had some of the runs, so that something is at stake.
    let of_node = |run: &String| cluster.primary_of(keys::slot(partition_of(run))) == 0;
    assert!(runs.iter().any(of_node), "no run is on the node that dies: {runs:?}");
    cluster.node_mut(0).kill_9().unwrap();
    fleet.api().until_all(&runs, "completed", Duration::from_secs(120)).await.unwrap();
    smoke(&fleet).await.unwrap();
}

/// Submits eight runs that a replica has, all of which are in their first step then.
async fn replicated(fleet: &Fleet) -> Vec<String> {
    let slow = json!({ "workflow": "slow", "steps": {
        "a": { "handler": "sleep", "with": { "duration": "8s" } },
        "b": { "handler": "sleep", "needs": ["a"], "with": { "duration": "10ms" } } } });
    let body = json!({ "definition": slow, "durable": true });
    // Each waits 4 s for a sync that these servers never do, before it asks for replicas.
    let submits = (0..8).map(|_| fleet.api().post("/api/v1/runs", &[], &body));
    let mut runs = Vec::new();
    for answer in futures::future::join_all(submits).await {
        let (status, answer) = answer.unwrap();
        assert_eq!((status, &answer["durability"]), (201, &json!("replica")), "{answer:#}");
        runs.push(answer["id"].as_str().unwrap().to_owned());
    }
    for run in &runs {
        fleet.api().until_step(run, "a", "processing", SOON).await.unwrap();
    }
    runs
}

/// Submits chains, `each` to every partition.
async fn everywhere(api: &Api, each: usize) -> Vec<String> {
    let mut runs = Vec::new();
    // One request for few runs is one log entry of one partition; the next one goes to the next.
    for _ in 0..PARTITIONS {
        runs.extend(load::submit(api, each).await.unwrap());
    }
    let partitions: BTreeSet<PartitionId> = runs.iter().map(|run| partition_of(run)).collect();
    assert_eq!(partitions.len(), usize::from(PARTITIONS), "every partition has its share");
    runs
}

/// The first partition that this coordinator owns.
async fn first_of(coordinator: &str, cluster: &Cluster) -> PartitionId {
    for partition in (0..PARTITIONS).map(PartitionId) {
        let node = &cluster.nodes()[cluster.primary_of(keys::slot(partition))];
        let mut get = redis::cmd("GET");
        get.arg(keys::Keys::default().partition(partition).lease());
        let lease: Option<String> = get.query_async(&mut node.connection().await.unwrap()).await.unwrap();
        if lease.is_some_and(|name| name.starts_with(coordinator)) {
            return partition;
        }
    }
    panic!("`{coordinator}` owns nothing");
}

/// The doctor, the explanation of a run and the metric tell of a partition whose slot moves.
async fn says_that_it_pauses(api: &Api, moving: PartitionId, slot: u16, runs: &[String]) -> anyhow::Result<()> {
    let doctor = api.get("/api/v1/doctor").await?;
    let findings = doctor["findings"].as_array().context("findings")?;
    let said = findings.iter().filter(|f| f["check"] == "partitions").filter_map(|f| f["sentence"].as_str());
    let said: Vec<&str> = said.filter(|sentence| sentence.ends_with(&format!("pause: {moving}"))).collect();
    anyhow::ensure!(said.len() == 1, "the doctor does not say that partition {moving} pauses: {doctor:#}");
    let run = runs.iter().find(|run| partition_of(run) == moving).context("a run of the partition")?;
    let why = api.get(&format!("/api/v1/runs/{run}/explain")).await.expect_err("it cannot be read").to_string();
    anyhow::ensure!(why.contains(&format!("slot {slot} is moving")) && why.contains("pauses"), "{why}");
    wait::until(SOON, "the pause to be counted", async || {
        let paused = api.metric("stepfleet_partitions_paused").await?;
        anyhow::ensure!(paused == 1.0, "{paused}");
        Ok(())
    })
    .await
}

/// Every key of a partition is in one slot. While the slot moves its partition pauses, and only that one.
#[tokio::test]
async fn on_a_cluster_a_partition_whose_slot_moves_pauses_and_goes_on_afterwards() {
    let cluster = lab::cluster().await.unwrap();
    let url = joined("redis-cluster", &cluster.urls());
    let mut fleet = Fleet::start(&url, PARTITIONS, 0).await.unwrap();
    fleet.add_coordinator().await.unwrap();
    let (api, effects) = (fleet.coordinators[1].api.clone(), Effects::default());
    let hands = Hands::start(&url, 8, &effects).unwrap();
    let runs = everywhere(&api, 30).await;
    load::until_begun(&effects, 100).await.unwrap();
    let moving = first_of("c1", &cluster).await;
    let slot = keys::slot(moving);
    let to = (cluster.primary_of(slot) + 1) % 3;
    cluster.begin_move(slot, to).await.unwrap();
    // Some keys are gone while its owner goes on for as long as it can; then all of them are.
    assert!(cluster.move_keys(slot, to, 10).await.unwrap() > 0, "there was something to move");
    let begun = effects.steps();
    load::until_begun(&effects, begun + 150).await.unwrap();
    while cluster.move_keys(slot, to, 100).await.unwrap() > 0 {}
    for coordinator in &fleet.coordinators {
        says_that_it_pauses(&coordinator.api, moving, slot, &runs).await.unwrap();
    }
    // Meanwhile a coordinator leaves: the other one takes its partitions, but for the first that it looks at, which nobody can
    // have now.
    fleet.coordinators[0].program.signal(Signal::SIGTERM).unwrap();
    assert!(fleet.coordinators[0].program.wait(lab::START).await.unwrap().success());
    let (here, others): (Vec<String>, Vec<String>) = runs.iter().cloned().partition(|run| partition_of(run) == moving);
    api.until_all(&others, "completed", load::ALL).await.unwrap();
    assert_eq!(cluster.move_keys(slot, to, 1).await.unwrap(), 0, "nobody made a key anew on the old node");
    cluster.end_move(slot, to).await.unwrap();
    api.until_all(&here, "completed", load::ALL).await.unwrap();
    assert_eq!(api.metric("stepfleet_partitions_paused").await.unwrap(), 0.0);
    load::until_done(&api, &runs, &effects).await.unwrap();
    let more = everywhere(&api, 2).await;
    load::until_done(&api, &more, &effects).await.unwrap();
    assert_eq!(api.metric("stepfleet_owner_torn_commits_total").await.unwrap(), 0.0);
    hands.drain().await.unwrap();
}

#[tokio::test]
async fn behind_sentinels_a_fail_over_under_load_loses_no_run_that_was_replicated() {
    let mut sentinel = Sentinel::launch(3, lab::durable()).await.unwrap();
    let url = format!("{}/{}", joined("redis-sentinel", &sentinel.urls()), sentinel::NAME);
    let mut fleet = Fleet::start(&url, 2, 0).await.unwrap();
    fleet.add_worker(&["--concurrency", "8"]).unwrap();
    smoke(&fleet).await.unwrap();
    let runs = replicated(&fleet).await;
    sentinel.fail_over().await.unwrap();
    fleet.api().until_all(&runs, "completed", Duration::from_secs(120)).await.unwrap();
    smoke(&fleet).await.unwrap();
}

#[tokio::test]
async fn a_durable_submit_waits_for_the_disk_and_for_a_replica_if_there_is_one() {
    let primary = lab::durable().append_only(Fsync::Always).start().await.unwrap();
    let fleet = Fleet::start(&primary.url(), 1, 0).await.unwrap();
    let body =
        json!({ "definition": { "workflow": "one", "steps": { "only": { "handler": "noop" } } }, "durable": true });
    let durability = async || {
        let (status, answer) = fleet.api().post("/api/v1/runs", &[], &body).await?;
        anyhow::ensure!(status == 201, "{answer}");
        Ok::<String, anyhow::Error>(answer["durability"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(durability().await.unwrap(), "fsync", "there is no replica");
    let replica = lab::durable().setting("replicaof", &format!("127.0.0.1 {}", primary.port()));
    let mut replica = replica.start().await.unwrap();
    wait::until(SOON, "the replica to follow", async || {
        let got = durability().await?;
        anyhow::ensure!(got == "replica", "{got}");
        Ok(())
    })
    .await
    .unwrap();
    // One that is connected and does not answer: the disk is what is left to promise.
    replica.pause().unwrap();
    assert_eq!(durability().await.unwrap(), "fsync");
    // Many that wait for it hold up nobody else; beyond a bound they are told so.
    let submits = futures::future::join_all((0..80).map(|_| fleet.api().post("/api/v1/runs", &[], &body)));
    let plain = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        let mut body = body.clone();
        body["durable"] = json!(false);
        let (status, answer) = fleet.api().post("/api/v1/runs", &[], &body).await.unwrap();
        assert_eq!(status, 201, "{answer}");
        begun.elapsed()
    };
    let (submits, plain) = tokio::join!(submits, plain);
    assert!(plain < Duration::from_millis(1_500), "a plain submit took {plain:?}");
    let (mut taken, mut refused) = (0, 0);
    for (status, answer) in submits.into_iter().map(Result::unwrap) {
        match (status, answer["code"].as_str()) {
            (201 | 202, None) => taken += 1,
            (503, Some("durable_busy")) => refused += 1,
            other => panic!("{other:?}: {answer}"),
        }
    }
    assert_eq!((taken, refused), (64, 16));
}

#[tokio::test]
async fn with_tls_everything_is_the_same() {
    let server = lab::durable().tls().start().await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 1).option("--redis-ca-file", server.ca_file().unwrap());
    fleet.add_coordinator().await.unwrap();
    fleet.add_worker(&[]).unwrap();
    smoke(&fleet).await.unwrap();
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_user_that_may_touch_only_our_keys_and_channels_is_enough() {
    let rules = "~sf:* &sf:* +@all -@dangerous +info +config|get";
    let server = lab::durable().user("fleet", "secret", rules).default_user_off().start().await.unwrap();
    let fleet = Fleet::start(&server.url_for("fleet", "secret"), 1, 1).await.unwrap();
    smoke(&fleet).await.unwrap();
    assert!(!fleet.story().contains("secret"), "a password in a log");
    fleet.stop().await.unwrap();
}
