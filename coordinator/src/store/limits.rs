//! Limits of the fleet in Redis: the script by which partitions share them, and how they are read.

use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    codec,
    gate::Gate,
    id::{JobId, PartitionId, RunId},
    keys::Keys,
};

use super::{
    client::{Client, ClientError},
    reply,
};
use crate::machine::limits::Limit;

/// Source of the script.
pub const LIMIT: &str = include_str!("limit.lua");

/// After so long without a word what a partition has counts no more, in milliseconds; as in the script.
const GONE_MS: u64 = 60_000;

/// What a partition says about its part of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tell {
    /// The partition.
    pub partition: PartitionId,
    /// The counter of its reign.
    pub reign: u64,
    /// The number of the call in this reign; each is greater than the one before it.
    pub call: u64,
    /// Permits in use.
    pub used: u64,
    /// Permits that are wanted on top.
    pub want: u64,
}

/// What the script says to that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Granted {
    /// Permits in use, as they were told.
    pub used: u64,
    /// Permits on top.
    pub granted: u64,
    /// Permits that may be used for another job when theirs has ended; beyond them they go back to the fleet.
    pub keep: u64,
    /// Time until more may be granted, in milliseconds; 0 if that does not depend on time.
    pub due_ms: u64,
}

/// A job that counts against a limit until it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it counts against.
    pub gate: Gate,
    /// Its run.
    pub run: RunId,
    /// Its step's number.
    pub index: u32,
}

/// Reads the jobs that count, as commits have written them.
pub fn read_held(value: Value) -> Vec<(JobId, Held)> {
    let known = |(job, held): (bytes::Bytes, bytes::Bytes)| {
        Some((std::str::from_utf8(&job).ok()?.parse().ok()?, codec::unpack(&held).ok()?))
    };
    reply::pairs(value).into_iter().filter_map(known).collect()
}

impl Tell {
    /// The call of the script.
    pub fn call(&self, keys: &Keys, gate: &Gate, limit: &Limit) -> Cmd {
        let mut eval = redis::cmd("EVAL");
        eval.arg(LIMIT).arg(1).arg(keys.fleet_limit(gate)).arg(self.partition.0).arg(self.reign).arg(self.call);
        eval.arg(self.used).arg(self.want);
        eval.arg(limit.concurrency.unwrap_or(0)).arg(limit.interval_us).arg(limit.burst);
        eval
    }

    /// The script's answer; none if it was not heard.
    pub fn answer(&self, reply: &Value) -> Option<Granted> {
        let numbers: Vec<u64> =
            reply::array(reply)?.iter().filter_map(reply::number).map(|n| n.max(0) as u64).collect();
        let &[1, granted, keep, due_ms] = &numbers[..] else { return None };
        Some(Granted { used: self.used, granted, keep, due_ms })
    }
}

impl Client {
    /// Places of a limit that are in use, or at hand of an owner that is about to use them, as owners last said.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn limit_in_use(&self, gate: &Gate) -> Result<u64, ClientError> {
        let now_ms = self.server_time_ms().await?;
        let mut read = redis::cmd("HGETALL");
        read.arg(self.keys.fleet_limit(gate));
        let mut used_in_all = 0;
        for (field, value) in reply::pairs(self.fleet(read).await?) {
            let number = |bytes: &[u8]| bytes.try_into().map(f64::from_be_bytes).map_or(0, |n| n as u64);
            let numbers: Vec<u64> = value.chunks_exact(8).map(number).collect();
            if let (true, &[_, _, used, _, _, at_ms]) = (field.starts_with(b"p:"), &numbers[..])
                && now_ms.saturating_sub(at_ms) < GONE_MS
            {
                used_in_all += used;
            }
        }
        Ok(used_in_all)
    }
}
