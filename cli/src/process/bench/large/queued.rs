//! Very many queued steps: submitted with no worker there, drained by one, looked at through the API meanwhile.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::super::graphs::chain;
use super::super::lab::{Lab, Size};
use super::super::load::{client, submit};
use super::super::probe::resident_bytes;

/// A person who looks: one page and one explanation, this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pages that are followed before beginning again.
const PAGES: usize = 50;
/// Runs of a page.
const PAGE: usize = 50;

/// A page of runs, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Item>,
    #[serde(default)]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Item {
    id: String,
}

/// How long the looks took, in milliseconds.
#[derive(Debug, Default)]
struct Looks {
    lists: Vec<f64>,
    explains: Vec<f64>,
}

pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let (url, runs, size) = (lab.url.clone(), lab.args.queued, lab.size());
    let mut fleet = lab.fleet(&url, Size { workers: 0, ..size }).await?;
    let (client, workflow) = (client(&url).await?, chain(1, "noop")?);
    let before = lab.probe.server().await?.memory_bytes;
    let began = Instant::now();
    submit(&client, &workflow, runs).await?;
    lab.report.put("large.submit_runs_per_s", runs as f64 / began.elapsed().as_secs_f64());
    let queued = lab.probe.server().await?.memory_bytes - before;
    lab.report.put("large.redis_bytes_per_queued_step", queued / runs as f64);
    lab.report.put("large.coordinator_rss_bytes", resident_bytes(fleet.coordinator.pid)?);
    let stop = CancellationToken::new();
    let looks = tokio::spawn(look(fleet.coordinator.api.clone(), stop.clone()));
    let began = Instant::now();
    fleet.add_worker(&url, size.slots)?;
    lab.all_completed(size.partitions, runs, 1).await?;
    lab.report.put("large.drain_steps_per_s", runs as f64 / began.elapsed().as_secs_f64());
    stop.cancel();
    let looks = looks.await??;
    lab.report.put_times("large.list_ms", looks.lists);
    lab.report.put_times("large.explain_ms", looks.explains);
    Ok(())
}

/// Pages through the runs, all of them and those that wait, and has a run of each page explained.
async fn look(api: String, stop: CancellationToken) -> anyhow::Result<Looks> {
    let http = reqwest::Client::new();
    let (mut looks, mut every) = (Looks::default(), tokio::time::interval(LOOK_EVERY));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        for filter in ["", "&state=queued"] {
            let mut cursor = String::new();
            for _ in 0..PAGES {
                tokio::select! {
                    () = stop.cancelled() => return Ok(looks),
                    _ = every.tick() => {}
                }
                let page: Page =
                    get(&http, &format!("{api}/runs?limit={PAGE}{filter}{cursor}"), &mut looks.lists).await?;
                if let Some(item) = page.items.first() {
                    let explain = format!("{api}/runs/{}/explain", item.id);
                    let _: serde_json::Value = get(&http, &explain, &mut looks.explains).await?;
                }
                let Some(next) = page.next else { break };
                cursor = format!("&cursor={next}");
            }
        }
    }
}

async fn get<T: serde::de::DeserializeOwned>(
    http: &reqwest::Client,
    url: &str,
    times: &mut Vec<f64>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let answer = http.get(url).send().await?.error_for_status()?;
    let body = answer.bytes().await?;
    times.push(began.elapsed().as_secs_f64() * 1e3);
    serde_json::from_slice(&body).with_context(|| format!("`{url}` gave no such JSON"))
}
