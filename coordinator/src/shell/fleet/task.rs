//! The task of one partition: reign after reign, for as long as this coordinator has its lease.

use std::time::Duration;

use rand::RngExt;
use stepfleet_protocol::id::PartitionId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Config, Slots};
use crate::{
    shell::{
        gates,
        lease::Leases,
        metrics::Metrics,
        owner::{Memory, Owner, OwnerError},
        policies::{self, Known},
        told::Teller,
    },
    store::{
        link::{Dial, LinkError},
        partition::{Partition, TurnError},
        room,
    },
};

/// Waits of an owner whose connection is gone.
const BACKOFF: [u64; 6] = [0, 20, 50, 100, 250, 500];

/// How an owner task ended.
pub(super) struct Ended {
    pub(super) partition: PartitionId,
    pub(super) left_alone: bool,
}

/// One partition while this coordinator has its lease.
pub(super) struct Task<D: Dial> {
    pub(super) dial: D,
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) slots: watch::Receiver<Slots>,
    pub(super) gates: gates::Link,
    pub(super) known: watch::Receiver<Known>,
    pub(super) partition: PartitionId,
    pub(super) stop: CancellationToken,
    pub(super) leases: Leases<D>,
    /// The partition's slot is on its way to another node.
    pub(super) is_paused: bool,
}

impl<D: Dial> Task<D> {
    pub(super) async fn run(mut self) -> Ended {
        tracing::info!(partition = %self.partition, "taking the partition");
        let (mut memory, mut failures, mut left_alone) = (Memory::default(), 0usize, false);
        while !self.stop.is_cancelled() {
            let (error, used, kept) = self.reign(memory).await;
            memory = kept;
            failures = if used { 0 } else { failures + 1 };
            let Some(error) = error else { break };
            self.pause(pauses(&error));
            left_alone = self.judge(&error, &mut memory);
            if left_alone {
                break;
            }
            if matches!(&error, OwnerError::Turn(turn) if turn.is_full()) {
                self.make_room().await;
            }
            let wait = BACKOFF[failures.min(BACKOFF.len() - 1)];
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            self.dial.refresh().await;
            match self.leases.retake(self.partition).await {
                Ok(true) => {}
                Ok(false) => {
                    self.pause(false);
                    tracing::info!(partition = %self.partition, "another coordinator has the partition now");
                    return Ended { partition: self.partition, left_alone };
                }
                // Nothing is known: the next reign will show.
                Err(error) => tracing::debug!(%error, "the lease could not be read"),
            }
        }
        self.pause(false);
        if let Err(error) = self.leases.release(self.partition).await {
            tracing::debug!(%error, "the lease will lapse by itself");
        }
        tracing::info!(partition = %self.partition, "gave the partition away");
        Ended { partition: self.partition, left_alone }
    }

    /// One reign: why it ended (none for a shutdown), whether it got anywhere, and what the next has to know.
    async fn reign(&mut self, memory: Memory) -> (Option<OwnerError>, bool, Memory) {
        let random = rand::rng().random();
        let partition = match Partition::take(&self.dial, &self.config.keys, self.partition, random).await {
            Ok(partition) => partition,
            Err(error) => return (Some(error.into()), false, memory),
        };
        let Some(rules) = policies::not_older(&mut self.known, partition.head.rules).await else {
            let why = LinkError::Lost("the fleet's policies cannot be read".into());
            return (Some(TurnError::from(why).into()), false, memory);
        };
        let mut owner = match Owner::begin(partition, &self.config.name, memory.clone()).await {
            Ok(owner) => owner,
            Err(error) => return (Some(error), false, memory),
        };
        owner.configure(self.dial.is_cluster(), self.config.retention);
        owner.attach(self.gates.clone());
        owner.trace(self.config.spans.is_on());
        // Every owner begins without; what this task has seen before is no news to the receiver.
        owner.set_slots(self.slots.borrow_and_update().clone());
        owner.set_rules(rules);
        let mut before = owner.done;
        let mut teller = Teller::new(self.metrics.work.clone(), self.config.spans.clone());
        while !self.stop.is_cancelled() || !owner.is_settled() {
            if self.slots.has_changed().unwrap_or(false) {
                owner.set_slots(self.slots.borrow_and_update().clone());
            }
            if self.known.has_changed().unwrap_or(false) {
                owner.set_rules(self.known.borrow_and_update().rules.clone());
            }
            let turned = owner.turn(self.stop.is_cancelled()).await;
            // Its commit may have applied whatever came after it.
            if let Some(committed) = owner.committed.take() {
                teller.tell(committed);
            }
            if let Err(error) = turned {
                return (Some(error), owner.done.commits > 0, owner.memory());
            }
            self.pause(false);
            self.count(&mut before, owner.done);
        }
        (None, true, owner.memory())
    }

    /// Trims what is done with, so that a full server takes commits again.
    async fn make_room(&mut self) {
        match room::make(&self.dial, &self.config.keys, self.partition).await {
            Ok(entries) => tracing::warn!(partition = %self.partition, entries, "the server is full; trimmed streams"),
            Err(error) => tracing::debug!(%error, "nothing could be trimmed"),
        }
    }

    fn count(&self, before: &mut crate::shell::owner::Done, now: crate::shell::owner::Done) {
        if now.commits > before.commits {
            self.metrics.batch_items.observe((now.items - before.items) as f64);
        }
        self.metrics.commits.inc_by(now.commits - before.commits);
        self.metrics.ahead.inc_by(now.ahead - before.ahead);
        self.metrics.decided.inc_by(now.items - before.items);
        self.metrics.limit_leaks.inc_by(now.leaked - before.leaked);
        self.metrics.quarantined.inc_by(now.quarantined - before.quarantined);
        self.metrics.expired.count(before.expired, now.expired);
        *before = now;
    }

    fn pause(&mut self, pauses: bool) {
        if pauses == self.is_paused {
            return;
        }
        self.is_paused = pauses;
        if pauses {
            tracing::warn!(partition = %self.partition, "the slot is moving to another node; the partition pauses");
            self.metrics.paused.inc();
        } else {
            tracing::info!(partition = %self.partition, "the partition pauses no more");
            self.metrics.paused.dec();
        }
    }

    /// Learns from the end of a reign. True when the partition has to be left alone.
    fn judge(&self, error: &OwnerError, memory: &mut Memory) -> bool {
        let partition = self.partition;
        let alone = memory.batch_items == 1;
        memory.learn(error);
        match error {
            OwnerError::Turn(TurnError::Fenced) => self.metrics.fenced.inc(),
            OwnerError::Turn(TurnError::Refused(why)) => {
                tracing::error!(%partition, why, "the server refused a commit");
                self.metrics.doubts.inc();
            }
            OwnerError::Turn(TurnError::Link(why)) => {
                tracing::warn!(%partition, %why, "connection in doubt; taking a new reign");
                self.metrics.doubts.inc();
            }
            OwnerError::Turn(why @ (TurnError::Torn(_) | TurnError::Unexpected(_))) => {
                tracing::error!(%partition, %why, "ALERT: the partition stops");
                self.metrics.torn.inc();
                return true;
            }
            OwnerError::Poison(poison) => {
                tracing::error!(%partition, ?poison, "an entry made the program panic; it will be quarantined");
            }
            OwnerError::Panicked => {
                let items = memory.batch_items;
                tracing::error!(%partition, items, "a batch made the program panic; looking for the entry");
                // It was no entry: nothing that this program does would help.
                return alone && memory.batch_items == 1;
            }
            OwnerError::Newer(version) => {
                tracing::error!(%partition, version, "ALERT: a newer program has written here; leaving it to others");
                return true;
            }
        }
        false
    }
}

/// Whether a reign ended because keys of the partition are on their way to another node.
fn pauses(error: &OwnerError) -> bool {
    match error {
        OwnerError::Turn(TurnError::Refused(why)) => is_redirect(why),
        OwnerError::Turn(TurnError::Link(error)) => is_moving(error),
        _ => false,
    }
}

/// Whether a node has no answer because the slot is on its way to another one.
pub(super) fn is_moving(error: &LinkError) -> bool {
    matches!(error, LinkError::Lost(why) if is_redirect(why))
}

fn is_redirect(why: &str) -> bool {
    why.starts_with("ASK") || why.starts_with("TRYAGAIN")
}
