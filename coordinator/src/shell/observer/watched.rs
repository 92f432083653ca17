//! What one process knows of one worker: when its beat last moved, what it holds, and what it seems never to have received.

use std::collections::HashMap;

use stepfleet_protocol::{
    beat::Beat,
    id::{PartitionId, StreamId},
    name::Name,
};
use tokio::time::Instant;

/// What is known of one worker.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) count: Option<i64>,
    /// When the beat last moved, or the count was started again.
    pub(super) moved: Instant,
    pub(super) beat: Option<Beat>,
    /// Jobs were pending at it at the last look.
    pub(super) holds: bool,
    /// Entries that were pending and not held, and the beat when that was first seen.
    unheard: HashMap<(PartitionId, Name, StreamId), i64>,
}

impl Watched {
    pub(super) fn new(now: Instant) -> Self {
        Self { count: None, moved: now, beat: None, holds: false, unheard: HashMap::new() }
    }

    /// Of entries pending at a live worker, those that two of its beats did not name.
    pub(super) fn keep_unheard(&mut self, partition: PartitionId, queue: &Name, entries: &mut Vec<StreamId>) {
        let (Some(count), Some(beat)) = (self.count, &self.beat) else { return entries.clear() };
        let held = |entry: &StreamId| {
            beat.held.iter().any(|h| h.partition == partition && h.queue == *queue && h.entry == *entry)
        };
        let mut still = HashMap::new();
        entries.retain(|entry| {
            if held(entry) {
                return false;
            }
            let place = (partition, queue.clone(), *entry);
            let since = self.unheard.get(&place).copied().unwrap_or(count);
            still.insert(place, since);
            count > since
        });
        self.unheard.retain(|(p, q, _), _| *p != partition || q != queue);
        self.unheard.extend(still);
    }
}
