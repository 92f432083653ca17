//! Small duties of a running worker: follow the number of partitions, and report jobs that take long.

use std::{sync::Arc, time::Duration};

use redis::{Pipeline, Value};
use stepfleet_protocol::limits::{PARTITIONS_MAX, STARTED_AFTER_MS};
use tokio::time::MissedTickBehavior;

use crate::{
    beat,
    kit::{Kit, Report},
    limits::{DOORBELL_WAIT, PARTITIONS_EVERY, TICK_EVERY},
};

/// Follows the number of partitions until the worker drains: they are added at any time.
pub(crate) async fn follow_partitions(kit: Arc<Kit>) {
    let mut told = false;
    loop {
        let wait = match partitions(&kit).await {
            Ok(0) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(key = kit.keys.meta(), "no partitions yet; hint: start a coordinator");
                }
                DOORBELL_WAIT
            }
            Ok(count) => {
                kit.partitions.send_if_modified(|known| {
                    let grew = count > *known;
                    *known = count.max(*known);
                    grew
                });
                PARTITIONS_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "the number of partitions could not be read");
                let _as_it_was = kit.redis.refresh().await;
                DOORBELL_WAIT
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = kit.drain.cancelled() => return,
        }
    }
}

async fn partitions(kit: &Kit) -> Result<u16, String> {
    let key = kit.keys.meta();
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HGET").arg(&key).arg("partitions");
    match beat::trip(kit, &key, &pipeline).await?.into_iter().next() {
        Some(Value::BulkString(digits)) => std::str::from_utf8(&digits)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|count| *count <= PARTITIONS_MAX)
            .ok_or_else(|| format!("`partitions` of `{key}` is `{}`", String::from_utf8_lossy(&digits))),
        _ => Ok(0),
    }
}

/// Reports jobs as started that are held longer than a second, until nothing will be reported any more.
pub(crate) async fn report_started(kit: Arc<Kit>) {
    let after = Duration::from_millis(STARTED_AFTER_MS);
    let mut every = tokio::time::interval(TICK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = kit.flush.cancelled() => return,
        }
        let held = kit.table.all();
        for attempt in held {
            let Some(running) = attempt.tell_started(after) else { continue };
            let report = Report::Started {
                partition: attempt.partition(),
                job: attempt.of().clone(),
                running_ms: running.as_millis() as u64,
            };
            if kit.reports.send(report).await.is_err() {
                return;
            }
        }
    }
}
