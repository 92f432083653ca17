//! What can happen to a fleet, in what order, and what became of it.

use std::fmt;
use std::time::Duration;

use rand::{Rng, RngExt};
use serde::Serialize;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing yet: the time before the first fault.
    Calm,
    /// A worker is killed with -9.
    WorkerKilled,
    /// A worker is stopped for a while and goes on.
    WorkerFrozen,
    /// A worker is asked to leave.
    WorkerLeaves,
    /// A coordinator is killed with -9.
    CoordinatorKilled,
    /// A coordinator is stopped for a while and goes on.
    CoordinatorFrozen,
    /// A coordinator is asked to leave.
    CoordinatorLeaves,
    /// A primary is killed with -9.
    RedisKilled,
    /// A primary is stopped for a while and goes on.
    RedisFrozen,
    /// A primary is asked to end, and started again.
    RedisRestarted,
    /// A program is cut off from everything.
    Partition,
    /// A replica is cut off from its primary.
    ReplicaCut,
    /// A primary is cut off from whoever would tell it that another took its place; programs still reach it.
    SplitBrain,
    /// The way to the server is slow.
    Latency,
    /// Packets on the way to the server are lost.
    Loss,
    /// Connections are reset on the way to the server.
    Resets,
    /// The disk of the servers is full.
    DiskFull,
    /// `maxmemory` is reached.
    MemoryFull,
    /// A thousand connections are killed by the server.
    ClientsKilled,
    /// Every program is replaced by another version, one after the other.
    RollingRestart,
}

impl Kind {
    /// Every fault.
    pub const FAULTS: [Self; 19] = [
        Self::WorkerKilled,
        Self::WorkerFrozen,
        Self::WorkerLeaves,
        Self::CoordinatorKilled,
        Self::CoordinatorFrozen,
        Self::CoordinatorLeaves,
        Self::RedisKilled,
        Self::RedisFrozen,
        Self::RedisRestarted,
        Self::Partition,
        Self::ReplicaCut,
        Self::SplitBrain,
        Self::Latency,
        Self::Loss,
        Self::Resets,
        Self::DiskFull,
        Self::MemoryFull,
        Self::ClientsKilled,
        Self::RollingRestart,
    ];

    /// Its word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::WorkerKilled => "worker_killed",
            Self::WorkerFrozen => "worker_frozen",
            Self::WorkerLeaves => "worker_leaves",
            Self::CoordinatorKilled => "coordinator_killed",
            Self::CoordinatorFrozen => "coordinator_frozen",
            Self::CoordinatorLeaves => "coordinator_leaves",
            Self::RedisKilled => "redis_killed",
            Self::RedisFrozen => "redis_frozen",
            Self::RedisRestarted => "redis_restarted",
            Self::Partition => "partition",
            Self::ReplicaCut => "replica_cut",
            Self::SplitBrain => "split_brain",
            Self::Latency => "latency",
            Self::Loss => "loss",
            Self::Resets => "resets",
            Self::DiskFull => "disk_full",
            Self::MemoryFull => "memory_full",
            Self::ClientsKilled => "clients_killed",
            Self::RollingRestart => "rolling_restart",
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Calm => "before the first fault",
            Self::WorkerKilled => "worker kill -9",
            Self::WorkerFrozen => "worker SIGSTOP, SIGCONT",
            Self::WorkerLeaves => "worker SIGTERM",
            Self::CoordinatorKilled => "coordinator kill -9",
            Self::CoordinatorFrozen => "coordinator SIGSTOP, SIGCONT",
            Self::CoordinatorLeaves => "coordinator SIGTERM",
            Self::RedisKilled => "Redis primary kill -9",
            Self::RedisFrozen => "Redis primary SIGSTOP, SIGCONT",
            Self::RedisRestarted => "Redis primary SIGTERM, restart",
            Self::Partition => "partition of a program's host",
            Self::ReplicaCut => "replica cut from its primary",
            Self::SplitBrain => "split brain: primary cut from the others",
            Self::Latency => "latency to Redis",
            Self::Loss => "loss to Redis",
            Self::Resets => "resets to Redis",
            Self::DiskFull => "disk full",
            Self::MemoryFull => "`maxmemory` reached",
            Self::ClientsKilled => "`CLIENT KILL` storm",
            Self::RollingRestart => "rolling restart",
        }
    }

    /// What its recovery shall stay below, of all its samples.
    #[must_use]
    pub fn aim(self) -> Option<Duration> {
        match self {
            Self::WorkerKilled => Some(Duration::from_secs(8)),
            Self::CoordinatorKilled => Some(Duration::from_secs(4)),
            Self::WorkerLeaves | Self::CoordinatorLeaves => Some(Duration::from_secs(1)),
            Self::RedisKilled
            | Self::RedisFrozen
            | Self::RedisRestarted
            | Self::SplitBrain
            | Self::DiskFull
            | Self::MemoryFull
            | Self::ClientsKilled => Some(Duration::from_secs(5)),
            Self::Calm
            | Self::WorkerFrozen
            | Self::CoordinatorFrozen
            | Self::Partition
            | Self::ReplicaCut
            | Self::Latency
            | Self::Loss
            | Self::Resets
            | Self::RollingRestart => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What was done, and how long it took until all was well again.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// The kind.
    pub kind: Kind,
    /// To whom, and anything more.
    pub what: String,
    /// Nanoseconds of 1970, when it began.
    pub began_ns: u64,
    /// How long it lasted, in milliseconds.
    pub lasted_ms: u64,
    /// Milliseconds until work went on: one for each partition's owner, or for each job that was lost.
    pub recovery_ms: Vec<u64>,
    /// Work did not go on while it was waited for.
    pub stuck: bool,
}

/// Deals every kind of a list once, in random order, and then again.
#[derive(Debug)]
pub struct Deck {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    /// A deck of these kinds, of which there must be one.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn new(kinds: &[Kind]) -> Self {
        assert!(!kinds.is_empty(), "a deck has cards");
        Self { kinds: kinds.to_vec(), left: Vec::new() }
    }

    /// The next one.
    pub fn deal(&mut self, random: &mut impl Rng) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let place = random.random_range(0..self.left.len());
        self.left.swap_remove(place)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn the_word_of_a_kind_is_that_of_its_json() {
        for kind in Kind::FAULTS {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
    }

    #[test]
    fn a_deck_deals_every_kind_once_before_any_twice_and_the_same_with_the_same_seed() {
        let deal = |seed| {
            let (mut deck, mut random) = (Deck::new(&Kind::FAULTS), StdRng::seed_from_u64(seed));
            (0..2 * Kind::FAULTS.len()).map(|_| deck.deal(&mut random)).collect::<Vec<_>>()
        };
        let (first, again, other) = (deal(1), deal(1), deal(2));
        assert_eq!(first, again);
        assert_ne!(first, other);
        for half in [&first[..Kind::FAULTS.len()], &first[Kind::FAULTS.len()..]] {
            let mut sorted = half.to_vec();
            sorted.sort();
            assert_eq!(sorted, Kind::FAULTS);
        }
    }
}
