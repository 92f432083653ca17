//! How long it takes until the job of a killed worker begins elsewhere: kills workers in the middle of a job, one after the
//! other, each at a random moment, and prints the times.
//!
//! `KILLS=n` (30 without it) sets how many. The fleet is one coordinator, eight idle workers and two that share a queue.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::RngExt;
use serde_json::{Value, json};
use stepfleet_tests::{
    Fsync, Server,
    lab::{Effects, Fleet, Hands},
    wait,
};

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let kills = std::env::var("KILLS").unwrap_or("30".to_owned());
    let read = kills.parse::<usize>().ok().filter(|kills| *kills > 0);
    let kills = read.with_context(|| format!("KILLS is `{kills}`: allowed is a whole number from 1"))?;
    let server = Server::options().append_only(Fsync::EverySecond).start().await?;
    let mut fleet = Fleet::start(&server.url(), 4, 0).await?;
    let (api, effects) = (fleet.api().clone(), Effects::default());
    let _idle: Vec<Hands> = (0..8).map(|_| Hands::start(&server.url(), 1, &effects)).collect::<Result<_, _>>()?;
    for _ in 0..2 {
        fleet.add_worker(&["--queue", "victims", "--concurrency", "1"])?;
    }
    let folder = tempfile::tempdir()?;
    let mut times = Vec::new();
    for kill in 0..kills {
        let file = folder.path().join(kill.to_string()).display().to_string();
        let script = format!("echo $PPID >> {file}; n=$(wc -l < {file}); [ $n -gt 1 ] || sleep 120");
        let step = json!({ "handler": "exec", "queue": "victims", "with": { "command": ["sh", "-c", script] } });
        wait::until(PATIENCE, "ten workers to be watched", async || {
            let now = api.metric("stepfleet_worker_channels_watched").await?;
            ensure!(now >= 10.0, "{now} are");
            Ok(())
        })
        .await?;
        let run = api.submit(&json!({ "workflow": "victim", "steps": { "work": step } }), Value::Null).await?;
        let pid = wait::until(PATIENCE, "the job to begin", async || {
            let text = std::fs::read_to_string(&file)?;
            Ok(text.lines().next().context("no line yet")?.parse::<u32>()?)
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..4_000))).await;
        let victim = fleet.workers.iter().position(|worker| worker.pid() == pid).context("a worker of ours has it")?;
        fleet.workers.remove(victim).kill_9()?;
        let began = Instant::now();
        wait::until(PATIENCE, "the job to begin elsewhere", async || {
            ensure!(std::fs::read_to_string(&file)?.lines().count() > 1, "it has not");
            Ok(())
        })
        .await?;
        let took = began.elapsed();
        println!("kill {:>3}: {:.2} s", kill + 1, took.as_secs_f64());
        times.push(took);
        api.until_state(&run, "completed", PATIENCE).await?;
        fleet.add_worker(&["--queue", "victims", "--concurrency", "1"])?;
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1].as_secs_f64();
    println!(
        "{kills} kills, until the job began elsewhere: p50 {:.2} s, p99 {:.2} s, max {:.2} s",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}
