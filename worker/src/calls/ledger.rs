//! The records of external calls in Redis. While it does not answer it is asked again: the attempt's limit ends that.

use std::time::Instant;

use redis::Value;
use stepfleet_connect::Redis;
use stepfleet_protocol::{
    call::{CallId, CallRecord},
    codec,
    id::RunId,
    keys::{self, Keys},
    limits::{ATTEMPTS_MAX, CALLS_MAX},
};

use crate::{failure::Failure, limits::VALUE_RETRY, metrics::ExternalCalls};

const RECORD_CALL: &str = include_str!("record_call.lua");

/// Refusals that pass: the server is full, starts, moves or fails over.
const PASSING: [&str; 12] = [
    "OOM",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "MISCONF",
    "BUSY",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MOVED",
    "ASK",
    "UNKILLABLE",
];

/// Where the calls of a worker's attempts are recorded and counted.
pub(crate) struct Ledger {
    pub(crate) redis: Redis,
    pub(crate) keys: Keys,
    pub(crate) counts: ExternalCalls,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// A record as it was found or written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: CallId,
    pub(super) record: CallRecord,
    /// The bytes that are in Redis; none before it was written.
    seen: Vec<u8>,
}

/// Redis time, from one reading and the time since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    read_ms: u64,
    at: Instant,
}

impl Clock {
    pub(super) fn now_ms(self) -> u64 {
        self.read_ms + self.at.elapsed().as_millis() as u64
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Written,
    /// Another attempt has the call now.
    Taken,
}

impl Entry {
    pub(super) fn new(id: CallId, record: CallRecord) -> Self {
        Self { id, record, seen: Vec::new() }
    }

    /// In place of a record of the same id that was found.
    pub(super) fn over(self, found: &Self) -> Self {
        Self { seen: found.seen.clone(), ..self }
    }
}

impl Ledger {
    /// The records of this call by its attempt, as far as an earlier job of it left one, and by the attempts before, oldest
    /// first; 1,000 attempts in all.
    ///
    /// # Errors
    /// A record that cannot be read, or a lasting refusal of Redis.
    pub(super) async fn find(&self, run: RunId, id: CallId) -> Result<(Vec<Entry>, Clock), Failure> {
        let first = id.attempt.saturating_sub(ATTEMPTS_MAX) + 1;
        let ids: Vec<CallId> = (first..=id.attempt).map(|attempt| CallId { attempt, ..id }).collect();
        let mut pipe = redis::pipe();
        let get = pipe.cmd("HMGET").arg(self.keys.partition(run.partition()).calls(&run));
        for id in &ids {
            get.arg(id.to_string());
        }
        pipe.cmd("TIME");
        let (fields, (secs, micros)): (Vec<Option<Vec<u8>>>, (u64, u64)) = self.ask(run, &pipe).await?;
        let clock = Clock { read_ms: secs * 1_000 + micros / 1_000, at: Instant::now() };
        let mut found = Vec::new();
        for (id, seen) in ids.into_iter().zip(fields) {
            let Some(seen) = seen else { continue };
            let record = codec::unpack(&seen).map_err(|error| {
                Failure::system(format!("the record of call {id} cannot be read: {error}")).code("call_record_broken")
            })?;
            found.push(Entry { id, record, seen });
        }
        Ok((found, clock))
    }

    /// Writes a record in place of what was seen.
    ///
    /// # Errors
    /// The step has too many records, the run is gone, or a lasting refusal of Redis.
    pub(super) async fn put(&self, run: RunId, entry: &mut Entry) -> Result<Put, Failure> {
        let bytes = codec::pack(&entry.record);
        let keys = self.keys.partition(run.partition());
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(RECORD_CALL).arg(1).arg(keys.calls(&run));
        pipe.arg(entry.id.to_string()).arg(&entry.seen).arg(&bytes).arg(entry.id.counter()).arg(CALLS_MAX);
        pipe.arg(keys.run(&run));
        let (answer,): (String,) = self.ask(run, &pipe).await?;
        match answer.as_str() {
            "written" => {
                entry.seen = bytes;
                Ok(Put::Written)
            }
            "full" => {
                let step = &entry.record.step;
                let message = format!("step `{step}` has {CALLS_MAX} recorded calls; allowed: at most {CALLS_MAX}");
                Err(Failure::permanent(message).code("too_many_calls"))
            }
            "gone" => Err(Failure::permanent(format!("run {run} is gone: no call is recorded")).code("run_gone")),
            _ => Ok(Put::Taken),
        }
    }

    async fn ask<T: redis::FromRedisValue>(&self, run: RunId, pipe: &redis::Pipeline) -> Result<T, Failure> {
        let slot = keys::slot(run.partition());
        loop {
            let asked = match self.redis.pooled(slot).await {
                Ok(mut connection) => match pipe.query_async::<Value>(&mut connection).await {
                    Ok(value) => return Ok(redis::from_redis_value(value)?),
                    Err(error) => Err(error),
                },
                Err(error) => Ok(error.to_string()),
            };
            let why = match asked {
                Ok(why) => why,
                Err(error) if error.code().is_none_or(|code| PASSING.contains(&code)) => error.to_string(),
                Err(error) => {
                    let message = format!("an external call cannot be recorded: {error}");
                    return Err(Failure::system(message).code("call_not_recorded"));
                }
            };
            tracing::warn!(%run, %why, "an external call could not be recorded; trying again");
            let _as_it_was = self.redis.refresh().await;
            tokio::time::sleep(VALUE_RETRY).await;
        }
    }
}
