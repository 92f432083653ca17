//! What was written lately, kept for a server that comes back without it; and, for far longer, the ids alone of the jobs
//! whose results were written, so that none of them is done again while its owner lags.

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

    /// Whether it has the result of a job.
    pub(super) fn has(&self, job: &JobId) -> bool {
        self.entries.iter().any(|(_, entry)| entry.jobs.contains(job))
    }
}

/// Ids of the jobs whose results were written, oldest first, bounded by age and number.
pub(super) struct Written {
    order: VecDeque<(Instant, JobId)>,
    ids: HashSet<JobId>,
    keep_for: Duration,
    max: usize,
}

impl Written {
    pub(super) fn new(keep_for: Duration, max: usize) -> Self {
        Self { order: VecDeque::new(), ids: HashSet::new(), keep_for, max }
    }

    /// Remembers what was written at `now`. A result that is written again keeps its age.
    pub(super) fn push(&mut self, now: Instant, jobs: &[JobId]) {
        let fresh = jobs.iter().filter(|job| self.ids.insert(**job));
        self.order.extend(fresh.map(|job| (now, *job)));
        self.expire(now);
    }

    /// Forgets what is too old or too much.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((at, job)) = self.order.front() {
            if self.order.len() <= self.max && now.duration_since(*at) < self.keep_for {
                break;
            }
            self.ids.remove(job);
            self.order.pop_front();
        }
    }

    /// Whether the result of a job was written, as far as that is remembered.
    pub(super) fn has(&self, job: &JobId) -> bool {
        self.ids.contains(job)
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::id::Reign;

    use super::*;

    fn job(n: u32) -> JobId {
        JobId { reign: Reign { counter: 1, random: 2 }, seq: 3, n }
    }

    #[test]
    fn written_ids_are_known_until_there_are_too_many_or_they_are_too_old() {
        let (now, secs) = (Instant::now(), Duration::from_secs);
        let mut written = Written::new(secs(10), 3);
        written.push(now, &[job(1), job(2)]);
        written.push(now + secs(4), &[job(2), job(3)]);
        assert!((1..=3).all(|n| written.has(&job(n))) && !written.has(&job(4)));
        written.push(now + secs(5), &[job(4)]);
        assert!(!written.has(&job(1)) && written.has(&job(2)), "too many");
        written.expire(now + secs(10));
        assert!(!written.has(&job(2)) && written.has(&job(3)), "too old: written again is not younger");
        written.expire(now + secs(15));
        assert!(written.ids.is_empty() && written.order.is_empty());
    }
}
