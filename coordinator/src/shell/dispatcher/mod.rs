//! The dispatcher: tells subscribers what was committed, by the outbox of each partition that this coordinator owns.
//!
//! Delivery is at least once, in the order of the commits of a partition. Each subscriber has a cursor of its own in each
//! partition, and is followed by itself: one that is slow or gone holds up neither another nor the trimming of the outbox. What
//! was trimmed before it was read is counted as missed. Two dispatchers of one partition, for a moment when it changes hands,
//! only deliver twice.
//!
//! What happens to the fleet, as a circuit breaker that opens, is in the fleet's audit stream, written by the script that did it.
//! It is followed in the same way, by whoever owns partition 0.
//!
//! Connections are the pooled ones of clients; nothing here touches the owner's.

mod escalation;
mod fleet;
mod follower;
mod notice;

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use stepfleet_protocol::id::PartitionId;
use tokio_util::sync::CancellationToken;

pub use self::{
    escalation::{EscalationCommand, EscalationLog, is_escalation},
    fleet::FleetEvent,
    notice::Notice,
};
use super::metrics::Metrics;
use crate::{
    machine::decision::Why,
    store::{client::Client, outbox::Feed},
};

/// Tries of one delivery before the entry is set aside.
pub const ATTEMPTS_MAX: u32 = 5;
/// Time between two looks at the age of the fleet's audit stream, and at changes that were left half-way.
const TEND_EVERY: Duration = Duration::from_secs(10);
/// A change that is under way for so long has lost the process that made it, in milliseconds.
const LEFT_MS: u64 = 30_000;

/// Why a subscriber did not take what it was told. The text is kept with the entry if no later try goes better.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Somebody who is told what was committed.
pub trait Subscriber: Send + Sync + 'static {
    /// Its name, under which its cursors are kept: it must never change, and no two may share one.
    fn name(&self) -> &str;

    /// Whether it wants to hear of commits in which something happened for this reason. Cheap, and without a panic: it is asked
    /// about every transition there is.
    fn wants(&self, why: Why) -> bool;

    /// Tells it of one commit: every wanted notice of one outbox entry. It may be told the same again.
    ///
    /// # Errors
    /// Any of them, a panic, or no end within 30 s is a failed try; there are [`ATTEMPTS_MAX`].
    fn deliver<'a>(&'a self, notices: &'a [Notice]) -> BoxFuture<'a, Result<(), Refusal>>;

    /// Whether it wants to hear of what was done to the fleet with this action: `breaker.open`, `queue.pause`. Cheap, and
    /// without a panic.
    fn wants_of_fleet(&self, _action: &str) -> bool {
        false
    }

    /// Tells it of one change of the fleet. It may be told the same again.
    ///
    /// # Errors
    /// As for [`Self::deliver`].
    fn deliver_of_fleet<'a>(&'a self, _event: &'a FleetEvent) -> BoxFuture<'a, Result<(), Refusal>> {
        futures::future::ready(Ok(())).boxed()
    }
}

/// How often and how much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Entries of one read, at most.
    pub batch: usize,
    /// Time between two looks at an outbox that had nothing new.
    pub interval: Duration,
    /// Wait after the first failed try; it doubles with each.
    pub retry_base: Duration,
    /// How long entries of the fleet's audit stream are kept, in milliseconds.
    pub audit_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch: 50,
            interval: Duration::from_millis(200),
            retry_base: Duration::from_secs(1),
            audit_ms: super::retention::Retention::default().audit_ms,
        }
    }
}

/// Everything that following a partition takes. Clones share it.
#[derive(Clone)]
pub struct Dispatcher {
    client: Client,
    settings: Settings,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.subscribers.iter().map(|s| s.name()).collect();
        f.debug_struct("Dispatcher").field("settings", &self.settings).field("subscribers", &names).finish()
    }
}

impl Dispatcher {
    /// For these subscribers.
    pub fn new(client: Client, settings: Settings, subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        Self { client, settings, subscribers: subscribers.into() }
    }

    /// Follows the outbox of a partition until `stop`; then keeps the cursors and returns.
    pub async fn follow(self, partition: PartitionId, metrics: Metrics, stop: CancellationToken) {
        // Whoever owns partition 0 looks after the fleet's stream.
        let fleet = async {
            if partition == PartitionId(0) {
                let tending = stop.run_until_cancelled(self.tend(&metrics));
                futures::join!(self.follow_feed(Feed::Fleet, &metrics, &stop), tending);
            }
        };
        futures::join!(self.follow_feed(partition.into(), &metrics, &stop), fleet);
    }

    async fn follow_feed(&self, feed: Feed, metrics: &Metrics, stop: &CancellationToken) {
        let followers = self.subscribers.iter().map(|subscriber| {
            let (client, settings) = (self.client.clone(), self.settings);
            follower::Follower::new(client, settings, subscriber.clone(), feed, metrics.outbox.clone()).run(stop)
        });
        join_all(followers).await;
    }

    /// Trims the fleet's audit stream, which no owner can reach, and writes the entries of changes whose process has died.
    async fn tend(&self, metrics: &Metrics) {
        loop {
            match self.client.settle_intents(LEFT_MS).await {
                Ok(0) => {}
                Ok(settled) => tracing::warn!(settled, "audit entries were written for processes that died"),
                Err(error) => tracing::debug!(%error, "changes that were left half-way could not be looked at"),
            }
            match self.client.server_time_ms().await {
                Ok(now_ms) => {
                    let oldest_ms = now_ms.saturating_sub(self.settings.audit_ms);
                    match self.client.trim_fleet_audit(oldest_ms).await {
                        Ok(0) => {}
                        // There may be more.
                        Ok(trimmed) => {
                            metrics.expired.audit.inc_by(trimmed);
                            continue;
                        }
                        Err(error) => tracing::debug!(%error, "the fleet's audit stream could not be trimmed"),
                    }
                }
                Err(error) => tracing::debug!(%error, "the server's time could not be read"),
            }
            tokio::time::sleep(TEND_EVERY).await;
        }
    }
}
