//! Which streams a read names, and how many entries of each: COUNT of XREADGROUP is for each stream, so that a read of n
//! streams with COUNT c brings up to n times c jobs. A plan never brings more than there are free slots, but for the
//! last resort of `Plan::blocked`.

use stepfleet_protocol::{
    id::PartitionId,
    keys::{GROUP, Keys},
    name::Name,
};

/// One job stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) key: String,
    pub(super) partition: PartitionId,
    pub(super) queue: Name,
}

/// All streams of a reader: for each queue, most urgent first, those of all its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Streams {
    all: Vec<Stream>,
    partitions: usize,
    /// On Cluster a read names one stream only: each partition is a slot of its own.
    apart: bool,
}

/// One XREADGROUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    /// Positions of the streams.
    pub(super) streams: Vec<usize>,
    /// Entries of each stream, at most.
    pub(super) count: usize,
}

impl Streams {
    pub(super) fn new(keys: &Keys, queues: &[Name], partitions: &[PartitionId], apart: bool) -> Self {
        let all = queues.iter().flat_map(|queue| {
            partitions.iter().map(|partition| Stream {
                key: keys.partition(*partition).jobs(queue),
                partition: *partition,
                queue: queue.clone(),
            })
        });
        Self { all: all.collect(), partitions: partitions.len(), apart }
    }

    pub(super) fn all(&self) -> &[Stream] {
        &self.all
    }

    pub(super) fn queues(&self) -> usize {
        self.all.len().checked_div(self.partitions).unwrap_or(0)
    }

    /// A read of one queue that brings at most `free` jobs. It names the partitions after the first `done`, counted from
    /// another one each `turn`: all of them where there are slots enough, else as many as there are slots. None when all
    /// are done.
    pub(super) fn of_queue(&self, queue: usize, done: usize, free: usize, turn: usize) -> Option<Read> {
        let most = if self.apart { 1 } else { free };
        let named = self.partitions.saturating_sub(done).min(free).min(most);
        if named == 0 {
            return None;
        }
        let first = queue * self.partitions;
        let streams = (done..done + named).map(|n| first + (turn + n) % self.partitions).collect();
        Some(Read { streams, count: free / named })
    }

    /// A read to wait with, over all streams, when all were empty. With fewer free slots than streams it may bring more
    /// jobs than slots, one a stream; what is too much is handed back.
    pub(super) fn blocked(&self, free: usize) -> Read {
        let streams: Vec<usize> = (0..self.all.len()).collect();
        let count = (free / streams.len().max(1)).max(1);
        Read { streams, count }
    }

    /// Reads of every stream that bring nothing: whoever looks at any of them sees that the worker reads.
    pub(super) fn proofs(&self) -> Vec<Read> {
        let all: Vec<usize> = (0..self.all.len()).collect();
        let most = if self.apart { 1 } else { all.len().max(1) };
        all.chunks(most).map(|streams| Read { streams: streams.to_vec(), count: 1 }).collect()
    }

    /// Whether the waiting read can be the first: it takes nothing from a more urgent queue, and no more than is free.
    pub(super) fn may_wait_first(&self, free: usize) -> bool {
        self.queues() == 1 && free >= self.all.len()
    }

    /// The command of a read. `block_ms` of none does not wait. From `>`, the entries that nobody has; or this worker's
    /// own pending ones after an id.
    pub(super) fn command(&self, read: &Read, consumer: &str, block_ms: Option<u128>, from: &str) -> redis::Cmd {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(read.count);
        if let Some(ms) = block_ms {
            command.arg("BLOCK").arg(ms.to_string());
        }
        command.arg("STREAMS");
        for at in &read.streams {
            command.arg(&self.all[*at].key);
        }
        for _ in &read.streams {
            command.arg(from);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(queues: usize, partitions: u16) -> Streams {
        let queues: Vec<Name> = (0..queues).map(|n| Name::new(&format!("q{n}")).expect("a legal name")).collect();
        let partitions: Vec<PartitionId> = (0..partitions).map(PartitionId).collect();
        Streams::new(&Keys::default(), &queues, &partitions, false)
    }

    #[test]
    fn a_read_of_a_queue_never_brings_more_than_is_free() {
        let streams = streams(3, 8);
        for free in 1..100 {
            for queue in 0..3 {
                let (mut done, mut seen) = (0, Vec::new());
                while let Some(read) = streams.of_queue(queue, done, free, 5) {
                    assert!(read.count >= 1 && read.streams.len() * read.count <= free, "{free}: {read:?}");
                    done += read.streams.len();
                    seen.extend(read.streams);
                }
                seen.sort_unstable();
                assert_eq!(seen, (queue * 8..queue * 8 + 8).collect::<Vec<_>>(), "every partition once");
            }
        }
    }

    #[test]
    fn every_partition_gets_its_turn() {
        let streams = streams(1, 8);
        let first: Vec<usize> = (0..8).filter_map(|turn| Some(streams.of_queue(0, 0, 1, turn)?.streams[0])).collect();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn only_one_queue_with_slots_enough_waits_at_once() {
        assert!(streams(1, 8).may_wait_first(8));
        assert!(!streams(1, 8).may_wait_first(7));
        assert!(!streams(2, 1).may_wait_first(64));
        assert_eq!(streams(1, 1).blocked(64).count, 64);
        assert_eq!(streams(3, 8).blocked(4), Read { streams: (0..24).collect(), count: 1 });
    }

    #[test]
    fn a_proof_names_every_stream_on_cluster_one_by_one() {
        assert_eq!(streams(3, 8).proofs(), [Read { streams: (0..24).collect(), count: 1 }]);
        let apart = Streams { apart: true, ..streams(1, 3) };
        assert_eq!(apart.proofs(), [0, 1, 2].map(|at| Read { streams: vec![at], count: 1 }));
        assert_eq!(streams(1, 0).proofs(), []);
    }
}
