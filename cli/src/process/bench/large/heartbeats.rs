//! The heartbeats of very many workers: what each writes, as often as it does, and the observer that looks at them.
//!
//! Some connections stand for those of the workers. Each waits for its answers, so beats are not gathered into one write.

use std::time::Duration;

use stepfleet_protocol::{
    beat::{Beat, Phase},
    codec,
    id::WorkerId,
    keys::Keys,
    limits::HEARTBEAT_MS,
    name::Name,
};
use tokio::time::{Instant, MissedTickBehavior};

use super::super::lab::{Fleet, Lab, Size, Usage};
use super::super::probe::connection;

/// Connections that the beats come through.
const CONNECTIONS: usize = 16;
/// As workers' records have it.
const REGISTRY_TTL_MS: u64 = 24 * 3_600_000;

pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let (url, size) = (lab.url.clone(), lab.size());
    let fleet = lab.fleet(&url, Size { workers: 0, ..size }).await?;
    let window = Duration::from_secs(lab.args.seconds.min(20));
    let idle = share(lab, &fleet, window / 4).await?;
    let mut beating = tokio::task::JoinSet::new();
    for share in 0..CONNECTIONS {
        let workers: Vec<usize> = (share..lab.args.workers).step_by(CONNECTIONS).collect();
        beating.spawn(beat(url.clone(), workers));
    }
    // Everybody has registered, and the observer has seen them.
    tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS).min(window)).await;
    let busy = share(lab, &fleet, window).await?;
    // A beat ends only with an error.
    if let Some(ended) = beating.try_join_next() {
        ended??;
    }
    lab.report.put("large.heartbeats.redis_cpu_percent", busy.0 - idle.0);
    lab.report.put("large.heartbeats.redis_idle_cpu_percent", idle.0);
    lab.report.put("large.heartbeats.coordinator_cpu_percent", busy.1 - idle.1);
    lab.report.put("large.heartbeats.open_workers", lab.probe.count(&Keys::default().workers()).await? as f64);
    Ok(())
}

/// Per cent of a core that Redis and the coordinator take.
async fn share(lab: &mut Lab<'_>, fleet: &Fleet, window: Duration) -> anyhow::Result<(f64, f64)> {
    let (began, before) = (Instant::now(), lab.usage(fleet).await?);
    tokio::time::sleep(window).await;
    let (took, after) = (began.elapsed().as_secs_f64(), lab.usage(fleet).await?);
    let percent = |of: fn(&Usage) -> f64| (of(&after) - of(&before)) / took * 100.0;
    Ok((percent(|usage| usage.server.cpu_s), percent(|usage| usage.coordinator_s)))
}

/// Beats for these workers, evenly over the time between two beats of one.
async fn beat(url: String, workers: Vec<usize>) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    let keys = Keys::default();
    let account = codec::pack(&account()?);
    let mut every = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS) / workers.len().max(1) as u32);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for beats in 1_u64.. {
        for number in &workers {
            every.tick().await;
            let worker = WorkerId::new(&Name::new("simulated")?, *number as u64);
            let own = keys.worker(&worker);
            let mut record = redis::pipe();
            record.cmd("HSET").arg(&own).arg("n").arg(beats).arg("beat").arg(&account).ignore();
            record.cmd("PEXPIRE").arg(&own).arg(REGISTRY_TTL_MS).ignore();
            record.query_async::<()>(&mut connection).await?;
            let mut list = redis::cmd("ZADD");
            list.arg(keys.workers()).arg(*number).arg(worker.as_str());
            list.query_async::<()>(&mut connection).await?;
        }
        if workers.is_empty() {
            break;
        }
    }
    Ok(())
}

fn account() -> anyhow::Result<Beat> {
    Ok(Beat {
        v: codec::VERSION,
        read_age_ms: 5,
        phase: Phase::Running,
        slots: 16,
        queues: vec![Name::new("default")?],
        handlers: ["noop", "sleep", "fail", "exec", "http"].into_iter().map(Name::new).collect::<Result<_, _>>()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: "simulated".to_owned(),
        pid: 1,
        held: Vec::new(),
        pod: None,
    })
}
