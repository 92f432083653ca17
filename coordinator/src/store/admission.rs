//! Whether a server has room for more: clients are refused before it is full, so that what was accepted can end.
//!
//! At `maxmemory` a server refuses every write, the owner's commits too, and before Redis 7.2 everything inside
//! MULTI, even what frees memory. So new runs are refused at [`SUBMITS_BELOW`] and commands at [`COMMANDS_BELOW`].
//! Results, `started` and `lost` do not come through here: they always pass. A cancel is a command: it frees memory
//! in the end, but first it needs some, and what it frees is little beside what was submitted.
//!
//! What a process writes between two looks is added to the last one, so that a flood cannot fill a small server in
//! between.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use futures::future::join_all;
use redis::Value;
use stepfleet_protocol::{
    id::PartitionId,
    keys::{slot, slot_of},
};

use super::{
    ask,
    client::{Client, ClientError, lock},
    reply,
};

/// New runs are taken below this share of `maxmemory`.
pub const SUBMITS_BELOW: f64 = 0.8;
/// Commands are taken below this share of `maxmemory`.
pub const COMMANDS_BELOW: f64 = 0.9;
/// Time between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look that is older says nothing: the server does not answer, and will say itself what it refuses.
const LOOK_AGE_MAX: Duration = Duration::from_secs(10);
/// Bytes of memory that a byte of a message costs: the log entry, and the state that comes of it.
const COST_OF_A_BYTE: u64 = 2;
/// Time between two samples for the forecast, and how many are kept: ten minutes.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const SAMPLES_KEPT: usize = 60;
/// A forecast from less time is none.
const FORECAST_FROM: Duration = Duration::from_secs(30);

/// What somebody wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// New runs.
    Submit,
    /// A command, or the registration of a workflow.
    Command,
}

impl Load {
    fn below(self) -> f64 {
        match self {
            Self::Submit => SUBMITS_BELOW,
            Self::Command => COMMANDS_BELOW,
        }
    }
}

/// The memory of one node, as last looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeMemory {
    /// The node's address.
    pub node: String,
    /// Bytes in use that count against the limit, with what this process has written since.
    pub used: u64,
    /// The limit in bytes; 0 is none.
    pub limit: u64,
    /// How it keeps what it is told, and whether it throws any of it away.
    pub safety: Safety,
    /// Hours until it is full if it goes on as in the last minutes; none if it does not grow, has no limit, or is not
    /// known for long enough.
    pub hours_to_full: Option<f64>,
}

/// What a node says about keeping its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Safety {
    /// Keys that it has evicted: must stay 0.
    pub evicted_keys: u64,
    /// It may evict keys when it is full: `maxmemory-policy` is not `noeviction`.
    pub evicts: bool,
    /// It has no append-only file, or could not write to it the last time.
    pub forgets: bool,
}

impl NodeMemory {
    /// The share of the limit that is used; 0 without a limit.
    pub fn ratio(&self) -> f64 {
        if self.limit == 0 { 0.0 } else { self.used as f64 / self.limit as f64 }
    }
}

/// Looks at the memory of every node.
#[derive(Debug, Default)]
pub(super) struct Memories(std::sync::Mutex<HashMap<String, Memory>>);

#[derive(Debug)]
struct Memory {
    at: Instant,
    used: u64,
    limit: u64,
    safety: Safety,
    written: u64,
    samples: VecDeque<(Instant, u64)>,
}

impl Memory {
    fn new(at: Instant) -> Self {
        Self { at, used: 0, limit: 0, safety: Safety::default(), written: 0, samples: VecDeque::new() }
    }

    fn look(&mut self, at: Instant, (used, limit, safety): (u64, u64, Safety)) {
        (self.at, self.used, self.limit, self.safety, self.written) = (at, used, limit, safety, 0);
        if self.samples.back().is_none_or(|(last, _)| at.duration_since(*last) >= SAMPLE_EVERY) {
            self.samples.push_back((at, used));
            if self.samples.len() > SAMPLES_KEPT {
                self.samples.pop_front();
            }
        }
    }

    fn hours_to_full(&self) -> Option<f64> {
        let (since, before) = *self.samples.front()?;
        let watched = self.at.duration_since(since);
        let grown = self.used.checked_sub(before).filter(|grown| *grown > 0)?;
        (self.limit > 0 && watched >= FORECAST_FROM).then(|| {
            let per_hour = grown as f64 * 3_600.0 / watched.as_secs_f64();
            self.limit.saturating_sub(self.used) as f64 / per_hour
        })
    }

    fn seen(&self, node: &str) -> NodeMemory {
        let used = self.used.saturating_add(self.written.saturating_mul(COST_OF_A_BYTE));
        let hours_to_full = self.hours_to_full();
        NodeMemory { node: node.to_owned(), used, limit: self.limit, safety: self.safety, hours_to_full }
    }
}

impl Client {
    /// Looks at the memory of every node, once a second, until it is dropped.
    pub async fn watch_memory(&self) {
        loop {
            self.look_at_memory().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One look. A node that does not answer is left as it was, and others are not kept waiting.
    async fn look_at_memory(&self) {
        let Ok(partitions) = self.all_partitions().await else { return };
        let mut nodes: HashMap<String, u16> = HashMap::new();
        for slot in partitions.into_iter().map(slot) {
            if let Ok(node) = self.redis.node_of(slot) {
                nodes.entry(node.to_string()).or_insert(slot);
            }
        }
        lock(&self.shared.memories.0).retain(|node, _| nodes.contains_key(node));
        join_all(nodes.into_iter().map(|(node, slot)| self.look_at(node, slot))).await;
    }

    async fn look_at(&self, node: String, slot: u16) {
        let mut pipe = redis::pipe();
        pipe.cmd("INFO").arg(&["memory", "stats", "persistence"]);
        let asked = tokio::time::timeout(LOOK_AGE_MAX, ask::ask(&self.redis, slot, &pipe)).await;
        let found = asked.ok().and_then(Result::ok).unwrap_or_default();
        let Some(read) = found.first().and_then(read) else { return };
        let now = Instant::now();
        let mut memories = lock(&self.shared.memories.0);
        memories.entry(node).or_insert_with(|| Memory::new(now)).look(now, read);
    }

    /// The memory of every node that was looked at, by address.
    pub fn memory(&self) -> Vec<NodeMemory> {
        let memories = lock(&self.shared.memories.0);
        let mut all: Vec<NodeMemory> = memories.iter().map(|(node, memory)| memory.seen(node)).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// Whether the partition's node has room.
    pub(super) fn admit(&self, partition: PartitionId, load: Load) -> Result<(), ClientError> {
        self.admit_slot(slot(partition), load)
    }

    /// Whether the node of the key has room.
    pub(super) fn admit_key(&self, key: &str, load: Load) -> Result<(), ClientError> {
        self.admit_slot(slot_of(key.as_bytes()), load)
    }

    fn admit_slot(&self, slot: u16, load: Load) -> Result<(), ClientError> {
        let Ok(node) = self.redis.node_of(slot) else { return Ok(()) };
        let node = node.to_string();
        let memories = lock(&self.shared.memories.0);
        let Some(memory) = memories.get(&node).filter(|memory| memory.at.elapsed() < LOOK_AGE_MAX) else {
            return Ok(());
        };
        let ratio = memory.seen(&node).ratio();
        if ratio < load.below() {
            return Ok(());
        }
        let what = match load {
            Load::Submit => "new runs",
            Load::Command => "commands",
        };
        let percent = |share: f64| (share * 100.0) as u32;
        Err(ClientError::ServerFull { node, percent: percent(ratio), what, below: percent(load.below()) })
    }

    /// So many bytes are on their way to the partition's node.
    pub(super) fn note_written(&self, partition: PartitionId, bytes: usize) {
        let Ok(node) = self.redis.node_of(slot(partition)) else { return };
        if let Some(memory) = lock(&self.shared.memories.0).get_mut(&node.to_string()) {
            memory.written = memory.written.saturating_add(bytes as u64);
        }
    }
}

/// Bytes in use and the limit, and how the node keeps its keys. What the server itself leaves out when it compares the two
/// is left out.
fn read(info: &Value) -> Option<(u64, u64, Safety)> {
    let text = reply::text(info)?;
    let fields: HashMap<&str, &str> = text.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let number = |name: &str| fields.get(name).and_then(|value| value.parse::<u64>().ok());
    let is = |name: &str, value: &str| fields.get(name).is_none_or(|found| *found == value);
    let safety = Safety {
        evicted_keys: number("evicted_keys").unwrap_or(0),
        evicts: !is("maxmemory_policy", "noeviction"),
        forgets: !is("aof_enabled", "1") || !is("aof_last_write_status", "ok"),
    };
    let used = number("used_memory")?.saturating_sub(number("mem_not_counted_for_evict").unwrap_or(0));
    Some((used, number("maxmemory")?, safety))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_does_not_count_is_not_counted() {
        let info =
            "# Memory\r\nused_memory:1000\r\nused_memory_rss:5\r\nmaxmemory:2000\r\nmem_not_counted_for_evict:100\r\n";
        assert_eq!(read(&Value::BulkString(info.into())), Some((900, 2_000, Safety::default())));
        assert_eq!(read(&Value::BulkString("# Memory\r\n".into())), None);
    }

    #[test]
    fn a_node_that_evicts_or_cannot_write_its_file_says_so() {
        let told = |text: &str| {
            let info = format!("used_memory:1\r\nmaxmemory:2\r\n{text}");
            read(&Value::BulkString(info.into_bytes())).map(|(_, _, safety)| safety)
        };
        let good = "maxmemory_policy:noeviction\r\nevicted_keys:0\r\naof_enabled:1\r\naof_last_write_status:ok\r\n";
        assert_eq!(told(good), Some(Safety::default()));
        let evicts = good.replace("noeviction", "allkeys-lru").replace("keys:0", "keys:7");
        assert_eq!(told(&evicts), Some(Safety { evicted_keys: 7, evicts: true, forgets: false }));
        for broken in [good.replace("enabled:1", "enabled:0"), good.replace("status:ok", "status:err")] {
            assert_eq!(told(&broken), Some(Safety { forgets: true, ..Safety::default() }), "{broken}");
        }
    }

    #[test]
    fn a_flood_between_two_looks_counts() {
        let now = Instant::now();
        let mut memory = Memory::new(now);
        memory.look(now, (700, 1_000, Safety::default()));
        memory.written = 100;
        assert!((memory.seen("n").ratio() - 0.9).abs() < 1e-9);
        memory.look(now, (750, 1_000, Safety::default()));
        assert!((memory.seen("n").ratio() - 0.75).abs() < 1e-9);
    }

    #[test]
    fn the_forecast_is_the_rest_at_the_present_rate_and_none_without_growth_limit_or_time() {
        let begun = Instant::now();
        let hours = |looks: &[(u64, u64)], limit: u64| {
            let mut memory = Memory::new(begun);
            for (secs, used) in looks {
                memory.look(begun + Duration::from_secs(*secs), (*used, limit, Safety::default()));
            }
            memory.hours_to_full().map(|hours| hours.round() as u64)
        };
        // 100 bytes a minute, 6,000 an hour.
        assert_eq!(hours(&[(0, 100), (60, 200)], 60_200), Some(10));
        assert_eq!(hours(&[(0, 100), (20, 200)], 60_200), None);
        assert_eq!(hours(&[(0, 100), (60, 100)], 60_200), None);
        assert_eq!(hours(&[(0, 100), (60, 200)], 0), None);
    }
}
