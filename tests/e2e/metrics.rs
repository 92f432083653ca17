//! What operators measure: that it tells what happened, once, whoever decided it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use serde_json::json;
use stepfleet_tests::{
    lab::{self, Api, Fleet},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

/// Every series of a program with its value.
async fn series(api: &Api) -> BTreeMap<String, f64> {
    let text = api.text("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// The series of all coordinators, added up.
async fn sum(apis: &[Api]) -> BTreeMap<String, f64> {
    let mut sum = BTreeMap::new();
    for api in apis {
        for (name, value) in series(api).await {
            *sum.entry(name).or_default() += value;
        }
    }
    sum
}

#[tokio::test]
async fn counters_of_all_coordinators_add_up_to_what_happened_and_one_of_them_speaks_for_the_fleet() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 8, 2).await.unwrap();
    let second = fleet.add_coordinator().await.unwrap().api.clone();
    let apis = [fleet.api().clone(), second];
    wait::until(SOON, "both coordinators to own partitions", async || {
        for api in &apis {
            ensure!(api.metric("stepfleet_partitions_owned").await? > 0.0);
        }
        Ok(())
    })
    .await
    .unwrap();
    let good = json!({ "workflow": "good", "steps": {
        "first": { "handler": "noop" }, "second": { "handler": "sleep", "with": { "duration": "20ms" }, "needs": ["first"] },
    }});
    let bad = json!({ "workflow": "bad", "steps": { "only": { "handler": "fail", "with": { "category": "transient" },
        "retry": { "max_attempts": 2, "backoff": { "base": "50ms", "jitter": "none" } } } } });
    let slow = json!({ "workflow": "slow", "steps": { "only": { "handler": "sleep", "with": { "duration": "1m" }, "timeout": "100ms",
        "retry": { "max_attempts": 1 } } } });
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(apis[0].submit(&good, json!(null)).await.unwrap());
    }
    apis[0].until_all(&runs, "completed", SOON).await.unwrap();
    let failing = [&bad, &bad, &slow];
    for definition in failing {
        let run = apis[0].submit(definition, json!(null)).await.unwrap();
        apis[0].until_state(&run, "failed", SOON).await.unwrap();
    }
    let expected: &[(&str, f64)] = &[
        ("stepfleet_runs_submitted_total", 23.0),
        ("stepfleet_runs_finished_total{outcome=\"completed\"}", 20.0),
        ("stepfleet_runs_finished_total{outcome=\"failed\"}", 3.0),
        ("stepfleet_run_seconds_count{workflow=\"good\"}", 20.0),
        ("stepfleet_steps_finished_total{outcome=\"completed\",queue=\"default\"}", 40.0),
        ("stepfleet_steps_finished_total{outcome=\"failed\",queue=\"default\"}", 3.0),
        ("stepfleet_jobs_dispatched_total{queue=\"default\"}", 45.0),
        ("stepfleet_jobs_finished_total{outcome=\"completed\",queue=\"default\"}", 40.0),
        ("stepfleet_jobs_finished_total{outcome=\"failed\",queue=\"default\"}", 5.0),
        ("stepfleet_attempt_failures_total{category=\"transient\",queue=\"default\"}", 4.0),
        ("stepfleet_attempt_failures_total{category=\"timeout\",queue=\"default\"}", 1.0),
        ("stepfleet_retries_total{category=\"transient\",queue=\"default\"}", 2.0),
        ("stepfleet_dead_letters_total{cause=\"exhausted\",queue=\"default\"}", 3.0),
        ("stepfleet_timers_total{kind=\"retry\"}", 2.0),
        ("stepfleet_job_wait_seconds_count{queue=\"default\"}", 45.0),
        ("stepfleet_job_run_seconds_count{queue=\"default\"}", 45.0),
        ("stepfleet_dead_letters", 3.0),
        ("stepfleet_coordinators", 2.0),
        ("stepfleet_partitions", 8.0),
        ("stepfleet_partitions_owned", 8.0),
        ("stepfleet_partitions_unowned", 0.0),
        ("stepfleet_runs{state=\"active\"}", 0.0),
        ("stepfleet_workers{state=\"running\"}", 2.0),
        ("stepfleet_queue_workers{queue=\"default\"}", 2.0),
        ("stepfleet_queue_wanted_workers{queue=\"default\"}", 0.0),
        ("stepfleet_audit_repairs_total{what=\"ready\"}", 0.0),
        ("stepfleet_owner_torn_commits_total", 0.0),
    ];
    wait::until(SOON, "everything to be counted", async || {
        let found = sum(&apis).await;
        for (name, value) in expected {
            let told = found.get(*name).copied();
            ensure!(told == Some(*value), "{name}: {told:?}, expected {value}");
        }
        let slept = found["stepfleet_job_run_seconds_sum{queue=\"default\"}"];
        ensure!(slept >= 20.0 * 0.02 + 0.1, "20 sleeps and a time-out took {slept} s");
        for name in [
            "stepfleet_scheduling_delay_seconds_count",
            "stepfleet_owner_log_age_seconds_count",
            "stepfleet_owner_commit_seconds_count",
        ] {
            ensure!(found[name] >= 40.0, "{name}: {}", found[name]);
        }
        Ok(())
    })
    .await
    .unwrap();
    let mut speakers = 0;
    for api in &apis {
        let own = series(api).await;
        speakers += usize::from(own.contains_key("stepfleet_queue_depth{queue=\"default\"}"));
        assert!(own.contains_key("process_resident_memory_bytes") && own.contains_key("stepfleet_tokio_workers"));
        assert!(own.keys().any(|name| name.starts_with("stepfleet_build_info{version=")));
    }
    assert_eq!(speakers, 1, "what two processes tell of the fleet would be added up");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_queue_wants_more_workers_while_much_waits_and_those_at_work_as_long_as_they_are() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    fleet.add_worker(&["--concurrency", "2"]).unwrap();
    let api = fleet.api().clone();
    // Each takes two seconds: thirty of them in ten seconds are six slots, three workers.
    let definition = json!({ "workflow": "w", "steps": { "s": { "handler": "sleep", "with": { "duration": "2s" } } } });
    let mut runs = Vec::new();
    for _ in 0..30 {
        runs.push(api.submit(&definition, json!(null)).await.unwrap());
    }
    let wanted = async || -> anyhow::Result<f64> { api.metric("stepfleet_queue_wanted_workers").await };
    wait::until(SOON, "more workers to be wanted", async || {
        let wanted = wanted().await?;
        ensure!(wanted >= 3.0, "{wanted}");
        Ok(())
    })
    .await
    .unwrap();
    api.until_all(&runs, "completed", Duration::from_secs(120)).await.unwrap();
    wait::until(SOON, "none to be wanted", async || {
        let wanted = wanted().await?;
        ensure!(wanted == 0.0, "{wanted}");
        Ok(())
    })
    .await
    .context("an idle queue wants nobody")
    .unwrap();
    fleet.stop().await.unwrap();
}
