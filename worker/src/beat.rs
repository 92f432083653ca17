//! The beat: what a worker tells of itself, and what it asks with it.
//!
//! A worker that cannot read its streams does not beat: then it is dead to its coordinator, and its jobs go to others. While
//! the worker's control channel is lost it beats at once and every second, on another connection: to coordinators who see
//! nobody on that channel this is the proof that it lives.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Pipeline, Value};
use stepfleet_protocol::{
    beat::{Beat, FIELD_LOSSES, Held, Phase},
    codec::{self, pack},
    id::{JobId, PartitionId},
    keys,
    limits::{HEARTBEAT_MS, QUICK_BEAT_MS},
    name::Name,
};
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::{
    attempt::{Attempt, Cause},
    kit::Kit,
    limits::REGISTRY_TTL,
};

/// Beats until the worker has left.
pub(crate) async fn run(kit: Arc<Kit>) {
    let beaten = Notify::new();
    tokio::join!(beats(&kit, &beaten), follow(&kit, &beaten));
}

/// Beats, and waits for no node but that of the worker's own record.
async fn beats(kit: &Kit, beaten: &Notify) {
    let mut every = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut drains) = (0, false);
    loop {
        let is_deaf = kit.hearing.borrow().is_deaf;
        tokio::select! {
            _ = every.tick() => {}
            () = tokio::time::sleep(Duration::from_millis(QUICK_BEAT_MS)), if is_deaf => {}
            () = kit.beat_now.notified() => {}
            () = kit.drain.cancelled(), if !drains => drains = true,
            () = kit.flush.cancelled() => return,
        }
        if !kit.pulse.is_fresh() {
            tracing::warn!(age = ?kit.pulse.age(), "no beat: job streams could not be read");
            continue;
        }
        count += 1;
        if let Err(error) = beat(kit, count).await {
            tracing::warn!(%error, "a beat could not be written");
            let _as_it_was = kit.redis.refresh().await;
            continue;
        }
        beaten.notify_one();
    }
}

/// After each beat: what is on other nodes. One that is away holds up the rest of this, and no beat.
async fn follow(kit: &Kit, beaten: &Notify) {
    let mut since_ms = 0;
    loop {
        tokio::select! {
            () = beaten.notified() => {}
            () = kit.flush.cancelled() => return,
        }
        if let Err(error) = register(kit, &mut since_ms).await {
            tracing::warn!(%error, "the worker could not be registered");
            // The slot of the registry may have moved, and nothing else of this worker with it.
            let _as_it_was = kit.redis.refresh().await;
        }
        if let Err(error) = ask_for_cancels(kit).await {
            tracing::warn!(%error, "cancels could not be read");
        }
    }
}

/// Writes the worker's own record.
async fn beat(kit: &Kit, count: u64) -> Result<(), String> {
    let own = kit.keys.worker(&kit.worker);
    let mut pipeline = Pipeline::new();
    let losses = kit.hearing.borrow().told_losses();
    let fields = pipeline.cmd("HSET").arg(&own).arg("n").arg(count).arg("beat").arg(pack(&account(kit)));
    losses.iter().for_each(|losses| _ = fields.arg(FIELD_LOSSES).arg(losses));
    pipeline.cmd("PEXPIRE").arg(&own).arg(REGISTRY_TTL.as_millis() as u64);
    trip(kit, &own, &pipeline).await.map(|_| ())
}

/// Puts the worker into the registry, where it may have been taken for dead. `since_ms`: when it came, by the server's
/// clock; 0 before that is known.
async fn register(kit: &Kit, since_ms: &mut u64) -> Result<(), String> {
    let list = kit.keys.workers();
    if *since_ms == 0 {
        let mut time = Pipeline::new();
        time.cmd("TIME");
        *since_ms = time_ms(&trip(kit, &list, &time).await?).ok_or("TIME gave no time")?;
    }
    let mut pipeline = Pipeline::new();
    pipeline.cmd("ZADD").arg(&list).arg(*since_ms).arg(kit.worker.as_str());
    trip(kit, &list, &pipeline).await.map(|_| ())
}

fn account(kit: &Kit) -> Beat {
    let mut handlers: Vec<Name> = kit.handlers.keys().cloned().collect();
    handlers.sort();
    Beat {
        v: codec::VERSION,
        read_age_ms: kit.pulse.age().as_millis() as u64,
        phase: if kit.drain.is_cancelled() { Phase::Draining } else { Phase::Running },
        slots: kit.slots as u32,
        queues: kit.queues.clone(),
        handlers,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: crate::builder::host(),
        pid: std::process::id(),
        held: vouched(kit),
        pod: kit.pod.clone(),
    }
}

/// The jobs that are named: all that are held, but those whose handlers do not come back.
fn vouched(kit: &Kit) -> Vec<Held> {
    let now = Instant::now();
    let (stuck, held): (Vec<Attempt>, Vec<Attempt>) = kit.table.all().into_iter().partition(|a| a.is_stuck(now));
    for attempt in &stuck {
        let (job, step) = (attempt.job(), attempt.step());
        tracing::error!(%job, step, "a handler does not come back after its limit; its job is held no more");
    }
    kit.metrics.stuck.set(stuck.len() as i64);
    held.iter().map(Attempt::held).collect()
}

/// Takes the worker off the registry.
pub(crate) async fn leave(kit: &Kit) -> Result<(), String> {
    let (list, own) = (kit.keys.workers(), kit.keys.worker(&kit.worker));
    let mut pipeline = Pipeline::new();
    pipeline.cmd("ZREM").arg(&list).arg(kit.worker.as_str());
    trip(kit, &list, &pipeline).await?;
    let mut pipeline = Pipeline::new();
    pipeline.cmd("DEL").arg(&own);
    trip(kit, &own, &pipeline).await.map(|_| ())
}

/// Asks, for the partitions whose jobs it holds, which of them are to be stopped: a message on a channel may be lost.
async fn ask_for_cancels(kit: &Kit) -> Result<(), String> {
    let mut held: BTreeMap<PartitionId, Vec<JobId>> = BTreeMap::new();
    for attempt in kit.table.all() {
        if !attempt.is_done() {
            held.entry(attempt.partition()).or_default().push(attempt.job());
        }
    }
    for (partition, jobs) in held {
        let key = kit.keys.partition(partition).cancels();
        let mut pipeline = Pipeline::new();
        let command = pipeline.cmd("SMISMEMBER").arg(&key);
        for job in &jobs {
            command.arg(job.to_string());
        }
        let replies = trip(kit, &key, &pipeline).await?;
        let Some(Value::Array(flags)) = replies.into_iter().next() else { continue };
        let cancelled: Vec<JobId> =
            jobs.into_iter().zip(flags).filter(|(_, flag)| *flag == Value::Int(1)).map(|(job, _)| job).collect();
        cancel(kit, &cancelled);
    }
    Ok(())
}

/// Stops these jobs where they are held, and remembers them in case they come later.
pub(crate) fn cancel(kit: &Kit, jobs: &[JobId]) {
    if jobs.is_empty() {
        return;
    }
    for attempt in kit.table.cancel(jobs) {
        attempt.stop(Cause::Cancelled);
    }
}

/// One round trip to the server of a key; the first refusal is an error.
pub(crate) async fn trip(kit: &Kit, key: &str, pipeline: &Pipeline) -> Result<Vec<Value>, String> {
    let mut connection = kit.redis.pooled(keys::slot_of(key.as_bytes())).await.map_err(|error| error.to_string())?;
    pipeline.query_async(&mut connection).await.map_err(|error| error.to_string())
}

fn time_ms(replies: &[Value]) -> Option<u64> {
    let Some(Value::Array(parts)) = replies.first() else { return None };
    let number = |at: usize| match parts.get(at) {
        Some(Value::BulkString(digits)) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    Some(number(0)? * 1_000 + number(1)? / 1_000)
}
