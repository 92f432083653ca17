//! The life of a running worker: what is started, in which order, and how it ends.
//!
//! The end is a list: take nothing more; let running attempts finish, or stop them when the time is up; write the last
//! results; leave the registry.

use std::{future::Future, sync::Arc, time::Duration};

use stepfleet_connect::{Redis, Severity, preflight};
use stepfleet_protocol::id::WorkerId;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attempt::Cause,
    backoff, beat,
    builder::{Plan, RunError},
    calls::Ledger,
    control, duties,
    gates::{self, Gates},
    health,
    kit::{Kit, Pulse, Report},
    limits::{DRAIN_GRACE, LEAVE_TIMEOUT, REPORTS_MAX},
    metrics::Metrics,
    sink::Sink,
    source,
    table::Table,
};

/// Recalls that may wait for the writer.
const RECALLS_MAX: usize = 64;

/// Runs a worker until `shutdown` ends or a coordinator asks it to drain.
pub(crate) async fn run(plan: Plan, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let redis = tokio::select! {
        redis = connect(&plan) => redis?,
        () = &mut shutdown => return Ok(()),
    };
    let listener = match plan.health {
        Some(address) => Some(health::bind(address).await?),
        None => None,
    };
    let drain_timeout = plan.drain_timeout;
    let (reports, received) = mpsc::channel(REPORTS_MAX);
    let kit = Arc::new(kit_of(plan, redis, reports));
    tracing::info!(worker = %kit.worker, queues = ?kit.queues, slots = kit.slots, "the worker starts");

    let (recalls, recalled) = mpsc::channel(RECALLS_MAX);
    let writer = tokio::spawn(Sink::new(Arc::clone(&kit), received, recalled).run());
    let reader = tokio::spawn(source::run(Arc::clone(&kit), recalls));
    let beats = tokio::spawn(beat::run(Arc::clone(&kit)));
    let mut duties = vec![
        tokio::spawn(duties::follow_partitions(Arc::clone(&kit))),
        tokio::spawn(duties::report_started(Arc::clone(&kit))),
        tokio::spawn(control::run(Arc::clone(&kit))),
        tokio::spawn(gates::run(Arc::clone(&kit))),
    ];
    if let Some(listener) = listener {
        duties.push(tokio::spawn(health::serve(Arc::clone(&kit), listener)));
    }

    tokio::select! {
        () = &mut shutdown => {}
        () = kit.drain.cancelled() => {}
    }
    drain(&kit, reader, drain_timeout).await;
    leave(&kit, writer, beats).await;
    duties.iter().for_each(JoinHandle::abort);
    Ok(())
}

/// Finds the servers; waits for them while they cannot be reached.
async fn connect(plan: &Plan) -> Result<Redis, RunError> {
    let mut failures = 0;
    loop {
        match Redis::connect(plan.redis.clone()).await {
            Ok(redis) => return check(&redis).await.map(|()| redis),
            Err(error) if error.is_temporary() => {
                failures += 1;
                tracing::warn!(%error, failures, "waiting for redis");
                tokio::time::sleep(backoff::wait(failures)).await;
            }
            Err(error) => return Err(RunError::Redis(error)),
        }
    }
}

/// Refuses servers that are too old or throw keys away. Whether they keep what they are told is the coordinator's matter.
async fn check(redis: &Redis) -> Result<(), RunError> {
    let facts = match redis.facts().await {
        Ok(facts) => facts,
        Err(error) => {
            tracing::warn!(%error, "the servers could not be checked");
            return Ok(());
        }
    };
    let findings = preflight(&facts, true);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    if errors.is_empty() { Ok(()) } else { Err(RunError::Unfit(errors)) }
}

fn kit_of(plan: Plan, redis: Redis, reports: mpsc::Sender<Report>) -> Kit {
    let metrics = Metrics::new().of(&plan.queues, plan.handlers.keys());
    metrics.slots.set(plan.concurrency as i64);
    let boot = uuid::Uuid::new_v4().as_u128() as u64;
    let ledger = Ledger { redis: redis.clone(), keys: plan.keys.clone(), counts: metrics.external_calls.clone() };
    Kit {
        origin: crate::builder::origin(),
        redis,
        keys: plan.keys,
        worker: WorkerId::new(&plan.name, boot),
        pod: plan.pod,
        queues: plan.queues,
        handlers: plan.handlers,
        classifier: plan.classifier,
        ledger: Arc::new(ledger),
        tracing: plan.tracing,
        slots: plan.concurrency,
        free: Arc::new(Semaphore::new(plan.concurrency)),
        unhandled: Arc::new(Semaphore::new(plan.concurrency)),
        table: Table::default(),
        reports,
        partitions: watch::Sender::new(0),
        metrics,
        pulse: Pulse::new(),
        attempts: TaskTracker::new(),
        drain: CancellationToken::new(),
        flush: CancellationToken::new(),
        doorbell: watch::Sender::new(0),
        gates: Gates::default(),
        beat_now: Notify::new(),
        hearing: watch::Sender::default(),
    }
}

/// Takes nothing more, and waits for what runs; stops it when the time is up.
async fn drain(kit: &Arc<Kit>, reader: JoinHandle<()>, timeout: Duration) {
    tracing::info!(held = kit.table.all().len(), "the worker drains");
    kit.drain.cancel();
    let finished = async {
        // Only what the reader still brings can come after this; it hands that back by itself.
        if let Err(error) = reader.await {
            tracing::error!(%error, "the reader has failed");
        }
        kit.attempts.close();
        kit.attempts.wait().await;
    };
    tokio::pin!(finished);
    if tokio::time::timeout(timeout, &mut finished).await.is_ok() {
        return;
    }
    let running = kit.table.all();
    tracing::warn!(running = running.len(), "the drain time is up: running attempts are stopped and handed back");
    running.iter().for_each(|attempt| attempt.stop(Cause::Drained));
    if tokio::time::timeout(DRAIN_GRACE * 2, finished).await.is_err() {
        tracing::error!("a handler blocks its thread and cannot be stopped");
    }
}

/// Writes the last results and leaves the registry.
async fn leave(kit: &Arc<Kit>, writer: JoinHandle<()>, beats: JoinHandle<()>) {
    if tokio::time::timeout(LEAVE_TIMEOUT, kit.table.empty()).await.is_err() {
        tracing::error!(held = kit.table.all().len(), "the last results could not be written");
    }
    kit.flush.cancel();
    if tokio::time::timeout(LEAVE_TIMEOUT, writer).await.is_err() {
        tracing::error!("the writer did not end in time");
    }
    // RACE: a beat under way would register the worker again. It ends first.
    if tokio::time::timeout(LEAVE_TIMEOUT, beats).await.is_err() {
        tracing::error!("the last beat did not end in time");
    }
    match tokio::time::timeout(LEAVE_TIMEOUT, beat::leave(kit)).await {
        Ok(Ok(())) => tracing::info!(worker = %kit.worker, "the worker has left"),
        Ok(Err(error)) => tracing::warn!(%error, "the worker could not deregister"),
        Err(_) => tracing::warn!("the worker could not deregister in time"),
    }
}
