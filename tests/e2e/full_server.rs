//! A server that fills up: clients are refused in time, and what was accepted ends.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Fleet, START},
    wait,
};

/// Bytes of each run's input: far above what travels inside the log entry.
const INPUT_BYTES: usize = 100_000;
const MAXMEMORY: u64 = 24 << 20;

/// One submit: status, `Retry-After`, and what came back.
async fn submit(client: &reqwest::Client, base: &str) -> anyhow::Result<(u16, Option<String>, Value)> {
    let body = json!({ "definition": { "workflow": "one", "steps": { "only": { "handler": "noop" } } },
        "input": { "text": "x".repeat(INPUT_BYTES) } });
    let answer = client.post(format!("{base}/api/v1/runs")).json(&body).send().await?;
    let status = answer.status().as_u16();
    let retry = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()).map(str::to_owned);
    Ok((status, retry, answer.json().await?))
}

/// Submits until one is refused; the runs that were taken.
async fn flood(client: &reqwest::Client, base: &str) -> anyhow::Result<Vec<String>> {
    let mut runs = Vec::new();
    while runs.len() < 1_000 {
        let (status, retry, answer) = submit(client, base).await?;
        if status == 201 {
            runs.push(answer["id"].as_str().context("an id")?.to_owned());
            continue;
        }
        ensure!((status, answer["code"].as_str()) == (503, Some("server_full")), "{status} {answer}");
        ensure!(retry.as_deref() == Some("10"), "{retry:?}");
        ensure!(answer["detail"].as_str().is_some_and(|d| d.contains("below 80 %")), "{answer}");
        return Ok(runs);
    }
    anyhow::bail!("a thousand runs were taken")
}

#[tokio::test]
async fn trap_18_a_flood_is_refused_at_80_percent_what_was_taken_ends_and_freed_space_is_used_again() {
    let server = lab::durable().maxmemory(MAXMEMORY).start().await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 2);
    fleet.add_coordinator_with(&["--retain-runs", "3"]).await.unwrap();
    let api = fleet.api().clone();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    wait::until(START, "the memory to be looked at", async || api.metric("stepfleet_redis_memory_ratio").await)
        .await
        .unwrap();
    let runs = flood(&client, api.base()).await.unwrap();
    let ratio = wait::until(START, "a fresh look", async || {
        let ratio = api.metric("stepfleet_redis_memory_ratio").await?;
        ensure!(ratio > 0.5, "{ratio}");
        Ok(ratio)
    })
    .await
    .unwrap();
    assert!(ratio < 0.9, "{ratio}: refused too late");
    assert!(runs.len() > 20, "only {} taken", runs.len());
    // Below 90 % a command passes.
    let (status, answer) = api.command(&runs[0], "cancel").await.unwrap();
    assert_eq!(status, 200, "{answer}");

    // Above 90 % none does; what is running goes on, because results always pass.
    let mut redis = server.connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut redis).await.unwrap();
    let used: u64 =
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).and_then(|n| n.trim().parse().ok()).unwrap();
    let tight = (used + used / 14).to_string();
    let _: () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(tight).query_async(&mut redis).await.unwrap();
    wait::until(START, "commands to be refused", async || {
        let (status, answer) = api.command(&runs[1], "suspend").await?;
        ensure!((status, answer["code"].as_str()) == (503, Some("server_full")), "{status} {answer}");
        ensure!(answer["detail"].as_str().is_some_and(|d| d.contains("below 90 %")), "{answer}");
        // An earlier one may have passed.
        Ok(())
    })
    .await
    .unwrap();
    fleet.add_worker(&[]).unwrap();
    // They end, and go beyond retention; so there is room again.
    wait::until(START, "every run to end", async || {
        let active = api.items("/api/v1/runs?state=queued").await?.len();
        let processing = api.items("/api/v1/runs?state=processing").await?.len();
        ensure!(active + processing == 0, "{active} queued, {processing} processing");
        Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.story()));
    wait::until(START, "new runs to be taken again", async || {
        let (status, _, answer) = submit(&client, api.base()).await?;
        ensure!(status == 201, "{status} {answer}");
        Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.story()));
    fleet.stop().await.unwrap();
}
