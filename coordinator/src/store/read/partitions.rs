//! Partitions as operators see them.

use std::collections::BTreeMap;

use stepfleet_protocol::{
    id::{PartitionId, Reign, StreamId},
    keys::slot,
    state::State,
};

use super::{super::client::Client, ClientError, count, reply};

/// A partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub id: u16,
    /// Who owns it now.
    pub owner: Option<String>,
    /// Its present reign.
    pub reign: Reign,
    /// Commits so far.
    pub seq: u64,
    /// Version of the policies that it was last decided by.
    pub rules: u64,
    /// Everything up to here is decided.
    pub offset: StreamId,
    /// Log entries that are not decided, at most; exact when it is 0.
    pub log_lag: u64,
    /// Timers that are set.
    pub timers: u64,
    /// Work items.
    pub todo: u64,
    /// Open dead letters.
    pub dead: u64,
    /// Entries in quarantine.
    pub quarantine: u64,
    /// Runs that go on.
    pub active: u64,
    /// Counters of what was dropped or repaired.
    pub counters: BTreeMap<String, i64>,
}

/// Commands for each partition.
const LOOKS: usize = 10;

impl Client {
    /// Partitions `from .. from + limit`, as many as there are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn see_partitions(&self, from: u16, limit: u16) -> Result<Vec<Seen>, ClientError> {
        let wanted = from..from.saturating_add(limit);
        let ids: Vec<PartitionId> =
            self.all_partitions().await?.into_iter().filter(|id| wanted.contains(&id.0)).collect();
        let commands = ids.iter().flat_map(|id| self.partition_looks(*id)).collect();
        let replies = self.ask_all(commands).await?;
        Ok(ids.iter().zip(replies.chunks_exact(LOOKS)).map(|(id, found)| read(*id, found)).collect())
    }

    /// Partitions without an owner.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unowned(&self) -> Result<Vec<u16>, ClientError> {
        let ids = self.all_partitions().await?;
        let lease = |id: &PartitionId| {
            let mut cmd = redis::cmd("GET");
            cmd.arg(self.keys.partition(*id).lease());
            (slot(*id), cmd)
        };
        let replies = self.ask_all(ids.iter().map(lease).collect()).await?;
        Ok(ids.iter().zip(&replies).filter(|(_, v)| owner(v).is_none()).map(|(id, _)| id.0).collect())
    }

    /// Timers that were due at `by_ms` (Unix milliseconds) and are not decided.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn overdue_timers(&self, by_ms: u64) -> Result<u64, ClientError> {
        let due = |id: &PartitionId| {
            let mut cmd = redis::cmd("ZCOUNT");
            cmd.arg(self.keys.partition(*id).timers()).arg("-inf").arg(by_ms);
            (slot(*id), cmd)
        };
        let commands = self.all_partitions().await?.iter().map(due).collect();
        Ok(self.ask_all(commands).await?.iter().map(|found| count(Some(found))).sum())
    }

    fn partition_looks(&self, id: PartitionId) -> Vec<(u16, redis::Cmd)> {
        let keys = self.keys.partition(id);
        let asks: [(&str, String); LOOKS] = [
            ("GET", keys.lease()),
            ("HMGET", keys.head()),
            ("XINFO", keys.log()),
            ("XLEN", keys.log()),
            ("ZCARD", keys.timers()),
            ("LLEN", keys.todo()),
            ("XLEN", keys.dead()),
            ("XLEN", keys.quarantine()),
            ("ZCARD", keys.runs(State::Processing)),
            ("HGETALL", keys.counters()),
        ];
        let command = |(name, key): (&str, String)| {
            let mut cmd = redis::cmd(name);
            match name {
                "HMGET" => cmd.arg(key).arg("reign").arg("seq").arg("offset").arg("rules"),
                "XINFO" => cmd.arg("STREAM").arg(key),
                _ => cmd.arg(key),
            };
            (slot(id), cmd)
        };
        asks.into_iter().map(command).collect()
    }
}

/// A released lease is there, but empty.
fn owner(lease: &redis::Value) -> Option<&str> {
    reply::text(lease).filter(|name| !name.is_empty())
}

fn read(id: PartitionId, found: &[redis::Value]) -> Seen {
    let head = reply::array(&found[1]).unwrap_or_default();
    let offset = head.get(2).and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or_default();
    let last: StreamId = reply::field(&found[2], "last-generated-id")
        .and_then(reply::text)
        .and_then(|t| t.parse().ok())
        .unwrap_or_default();
    let counters = reply::pairs(found[9].clone()).into_iter().filter_map(|(name, value)| {
        let value = std::str::from_utf8(&value).ok()?.parse().ok()?;
        Some((String::from_utf8_lossy(&name).into_owned(), value))
    });
    Seen {
        id: id.0,
        owner: owner(&found[0]).map(str::to_owned),
        reign: head.first().and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or_default(),
        seq: count(head.get(1)),
        rules: count(head.get(3)),
        offset,
        // Decided entries are trimmed a little later: the length is an upper bound.
        log_lag: if last <= offset { 0 } else { count(found.get(3)) },
        timers: count(found.get(4)),
        todo: count(found.get(5)),
        dead: count(found.get(6)),
        quarantine: count(found.get(7)),
        active: count(found.get(8)),
        counters: counters.collect(),
    }
}
