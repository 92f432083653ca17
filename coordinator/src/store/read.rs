//! What clients look at: runs, listings, dead letters, workers, queues, partitions. Nothing here writes.
//!
//! Every read is bounded; whatever may be long comes in pages. A page is no snapshot: what moves while somebody turns the
//! pages may be missed or seen twice.

pub mod audit;
pub mod calls;
pub mod doctor;
pub mod explain;
pub mod fleet;
pub mod followed;
mod gates;
pub mod groups;
pub mod history;
pub mod letters;
pub mod listing;
pub mod metrics;
pub mod partitions;
pub mod quarantine;
pub mod queues;
pub mod runs;
pub(in crate::store) mod streams;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use redis::{Cmd, Value};
use stepfleet_connect::Topology;
use stepfleet_protocol::{
    codec,
    id::{PartitionId, StreamId},
    keys::slot,
    workflow::Workflow,
};

use super::{
    ask,
    client::{Client, ClientError, lock},
    reply,
};

/// Commands of one pipeline.
const COMMANDS_PER_TRIP: usize = 500;
/// Plans kept in mind for readers.
const PLANS_KEPT: usize = 200;
/// Largest compressed plan that is kept in mind.
const PLAN_BYTES_KEPT: usize = 1 << 20;

/// An entry of a stream of some partition: `<partition>-<milliseconds>-<sequence>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlacedId {
    /// Its place in the stream.
    pub entry: StreamId,
    /// The partition.
    pub partition: PartitionId,
}

impl std::fmt::Display for PlacedId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.partition, self.entry)
    }
}

impl std::str::FromStr for PlacedId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (partition, entry) = text.split_once('-').ok_or(())?;
        Ok(Self { partition: PartitionId(partition.parse().map_err(|_| ())?), entry: entry.parse().map_err(|_| ())? })
    }
}

impl serde::Serialize for PlacedId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PlacedId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = |()| serde::de::Error::custom(format!("`{text}` is not `<partition>-<milliseconds>-<sequence>`"));
        text.parse().map_err(bad)
    }
}

impl Client {
    /// Sends commands to the primaries of their slots, those of one server together. One reply each, in order, refusals in
    /// their own place.
    pub(in crate::store) async fn ask_all(&self, commands: Vec<(u16, Cmd)>) -> Result<Vec<Value>, ClientError> {
        Ok(self.ask_by_node(commands, false).await?)
    }

    /// As [`Self::ask_all`]; `plainly`, what tells of moved and moving slots is a reply like any other.
    async fn ask_by_node(&self, commands: Vec<(u16, Cmd)>, plainly: bool) -> Result<Vec<Value>, ask::AskError> {
        let mut groups: HashMap<String, (u16, Vec<(usize, Cmd)>)> = HashMap::new();
        let count = commands.len();
        for (place, (slot, cmd)) in commands.into_iter().enumerate() {
            let node = self.redis.node_of(slot).map_or_else(|_| format!("slot {slot}"), |n| n.to_string());
            groups.entry(node).or_insert_with(|| (slot, Vec::new())).1.push((place, cmd));
        }
        let mut out = vec![Value::Nil; count];
        for (slot, group) in groups.into_values() {
            for part in group.chunks(COMMANDS_PER_TRIP) {
                let mut pipe = redis::pipe();
                for (_, cmd) in part {
                    pipe.add_command(cmd.clone());
                }
                let replies = if plainly {
                    ask::ask_plainly(&self.redis, slot, &pipe).await?
                } else {
                    ask::ask_twice(&self.redis, slot, &pipe).await?
                };
                for ((place, _), value) in part.iter().zip(replies) {
                    out[*place] = value;
                }
            }
        }
        Ok(out)
    }

    /// Reads with one command on a partition. A refusal is an error.
    pub(in crate::store) async fn ask_partition(&self, partition: PartitionId, cmd: Cmd) -> Result<Value, ClientError> {
        let mut pipe = redis::pipe();
        pipe.add_command(cmd);
        let mut replies = ask::all_good(ask::ask_twice(&self.redis, slot(partition), &pipe).await?)?;
        Ok(replies.pop().unwrap_or(Value::Nil))
    }

    /// Every partition that is not left out.
    pub(in crate::store) async fn all_partitions(&self) -> Result<Vec<PartitionId>, ClientError> {
        let all = (0..self.partitions().await?).map(PartitionId);
        Ok(all.filter(|partition| !self.left_out.contains(partition)).collect())
    }

    /// Partitions that pause, as their slots are on their way to other nodes.
    pub(in crate::store) async fn paused(&self) -> Result<BTreeSet<PartitionId>, ClientError> {
        if self.redis.topology() != Topology::Cluster {
            return Ok(BTreeSet::new());
        }
        let all = self.all_partitions().await?;
        // A node from which a slot is moving refuses keys that it has not. There never is a key with the name of a channel.
        let look = |partition: &PartitionId| {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(self.keys.partition(*partition).control());
            (slot(*partition), exists)
        };
        let replies = self.ask_by_node(all.iter().map(look).collect(), true).await?;
        let moving = |(partition, reply): &(PartitionId, &Value)| ask::moving(reply, slot(*partition)).is_some();
        Ok(all.into_iter().zip(&replies).filter(moving).map(|(partition, _)| partition).collect())
    }

    /// The same client, which leaves these partitions out of looks at all of them.
    pub(in crate::store) fn without(&self, partitions: &BTreeSet<PartitionId>) -> Self {
        Self { left_out: Arc::new(partitions.clone()), ..self.clone() }
    }

    /// The workflow under a plan key; none if it is gone.
    pub(in crate::store) async fn plan(
        &self,
        partition: PartitionId,
        hash: &str,
    ) -> Result<Option<Arc<Workflow>>, ClientError> {
        if let Some(found) = lock(&self.shared.read_plans).get(hash) {
            return Ok(Some(found.clone()));
        }
        let mut get = redis::cmd("GET");
        get.arg(self.keys.partition(partition).plan(hash));
        let found = self.ask_partition(partition, get).await?;
        let Some(bytes) = reply::bytes(&found) else { return Ok(None) };
        let broken = |_| ClientError::Broken("a plan");
        let plain = codec::decompress(bytes).map_err(broken)?;
        let workflow: Arc<Workflow> = Arc::new(codec::unpack(&plain).map_err(broken)?);
        if bytes.len() <= PLAN_BYTES_KEPT {
            let mut plans = lock(&self.shared.read_plans);
            if plans.len() >= PLANS_KEPT {
                plans.clear();
            }
            plans.insert(hash.to_owned(), workflow.clone());
        }
        Ok(Some(workflow))
    }

    /// The server's time in Unix milliseconds.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn server_time_ms(&self) -> Result<u64, ClientError> {
        let time = self.ask_partition(PartitionId(0), redis::cmd("TIME")).await?;
        reply::time_ms(&time).ok_or(ClientError::Broken("the time"))
    }
}

/// A number that cannot be negative; 0 if it is not there.
fn count(value: Option<&Value>) -> u64 {
    value.and_then(reply::number).map_or(0, |n| n.max(0) as u64)
}
