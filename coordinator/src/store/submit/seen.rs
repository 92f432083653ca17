//! What this process has seen while it submitted: which plans it has written, and how the servers' time differs from its own.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use stepfleet_protocol::id::{PartitionId, StreamId};

use super::super::client::lock;

/// A plan is written again after this long, in case it was dropped. Owners keep one that no run follows for longer.
pub const PLAN_AGE_MAX: Duration = Duration::from_secs(600);
/// Plans whose writing is remembered.
const PLANS_MAX: usize = 10_000;
/// Which plans this process has written where, and when.
#[derive(Debug, Default)]
pub(in crate::store) struct PlansWritten(Mutex<HashMap<(PartitionId, String), Instant>>);

impl PlansWritten {
    pub(super) fn fresh(&self, partition: PartitionId, hash: &str) -> bool {
        lock(&self.0).get(&(partition, hash.to_owned())).is_some_and(|at| at.elapsed() < PLAN_AGE_MAX)
    }

    pub(super) fn wrote(&self, partition: PartitionId, hash: String) {
        let mut written = lock(&self.0);
        if written.len() >= PLANS_MAX {
            written.clear();
        }
        written.insert((partition, hash), Instant::now());
    }

    pub(super) fn forget(&self, partition: PartitionId, hash: &str) {
        lock(&self.0).remove(&(partition, hash.to_owned()));
    }
}

/// How far the servers' time is ahead of this host's, as their last answers have shown: run ids bear the servers' time, so
/// that an owner can tell a submit that comes at once from a copy that was held up.
#[derive(Debug, Default)]
pub(in crate::store) struct Clock(AtomicI64);

impl Clock {
    /// An answer that took longer says too little.
    const ROUND_TRIP_MAX: Duration = Duration::from_millis(500);

    pub(super) fn server_ms(&self, host_ms: u64) -> u64 {
        host_ms.saturating_add_signed(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn learn(&self, host_ms: u64, entry: StreamId, took: Duration) {
        if took <= Self::ROUND_TRIP_MAX {
            self.0.store(entry.ms as i64 - host_ms as i64, Ordering::Relaxed);
        }
    }
}
