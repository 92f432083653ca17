//! What was written lately, kept for a server that comes back without it.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use stepfleet_protocol::id::{JobId, PartitionId};

use super::entry::Entry;

/// Written entries of the last moments, oldest first, bounded by age and bytes.
pub(super) struct Recent {
    entries: VecDeque<(Instant, Arc<Entry>)>,
    bytes: usize,
    keep_for: Duration,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(keep_for: Duration, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, keep_for, bytes_max }
    }

    /// Remembers what was written at `now`.
    pub(super) fn push(&mut self, now: Instant, entry: Arc<Entry>) {
        self.bytes += entry.bytes;
        self.entries.push_back((now, entry));
        self.expire(now);
    }

    /// Forgets what is too old or too much.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((at, _)) = self.entries.front() {
            if self.bytes <= self.bytes_max && now.duration_since(*at) < self.keep_for {
                break;
            }
            if let Some((_, entry)) = self.entries.pop_front() {
                self.bytes -= entry.bytes;
            }
        }
    }

    /// Takes out what was written to these partitions, oldest first.
    pub(super) fn take(&mut self, of: impl Fn(PartitionId) -> bool) -> Vec<Arc<Entry>> {
        let (taken, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.entries).into_iter().partition(|(_, entry)| of(entry.partition));
        self.bytes = kept.iter().map(|(_, entry)| entry.bytes).sum();
        self.entries = kept;
        taken.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The partitions it has entries of.
    pub(super) fn partitions(&self) -> HashSet<PartitionId> {
        self.entries.iter().map(|(_, entry)| entry.partition).collect()
    }

    /// The jobs whose results it has.
    pub(super) fn jobs(&self) -> HashSet<JobId> {
        self.entries.iter().flat_map(|(_, entry)| entry.jobs.iter().copied()).collect()
    }
}
