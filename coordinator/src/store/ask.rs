//! Short questions and writes of clients: pooled connections, one pipeline a call, bounded time.
//!
//! Nothing here is the owner's: an owner has one plain connection of its own.

use std::{sync::LazyLock, time::Instant};

use prometheus::{Histogram, HistogramOpts};
use redis::{Pipeline, Value, aio::ConnectionLike};
use stepfleet_connect::Redis;
use stepfleet_metric::TRIP_SECONDS;
use stepfleet_protocol::keys::slot_of;

use super::reply;

/// The name of [`SECONDS`].
pub const SECONDS_NAME: &str = "stepfleet_redis_trip_seconds";
/// What [`SECONDS`] tells.
pub const SECONDS_HELP: &str = "Trips of the API and of subscribers to Redis, the wait for a connection included; owners have connections of their own";

/// How long questions took. Of the process, as its connections are.
pub static SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new(SECONDS_NAME, SECONDS_HELP).buckets(TRIP_SECONDS.to_vec());
    Histogram::with_opts(opts).expect("legal name and buckets")
});

/// Why Redis gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached, or did not answer in time. What it did with the commands is unknown.
    #[error("redis is unavailable: {0}")]
    Unavailable(String),
    /// A slot of a Cluster is on its way to another node; nothing was written there.
    #[error("slot {slot} is moving to another node of the cluster: its partition pauses until all of it is there")]
    Moving {
        /// The slot.
        slot: u16,
    },
    /// It refused, and nothing was written: full, read-only, no permission.
    #[error("redis refused: {0}")]
    Refused(String),
    /// So many durable submits wait for the disk or the replicas of this node that there is no connection for another one;
    /// nothing was written.
    #[error(
        "{} durable submits wait for the disk or a replica of `{node}` already",
        stepfleet_connect::limits::POOL_WAITS_MAX
    )]
    WaitsFull {
        /// The node.
        node: String,
    },
    /// A reply of an impossible shape.
    #[error("unexpected reply of redis to {0}")]
    Unexpected(&'static str),
}

/// Sends `pipe` to the primary of `slot`: one reply a command, refusals in their own place. `MULTI` and `EXEC` are commands
/// like any other. After a sign of a failover or a moved slot the topology is read again, so that the next call finds it.
///
/// # Errors
/// [`AskError::Unavailable`], [`AskError::Moving`].
pub(super) async fn ask(redis: &Redis, slot: u16, pipe: &Pipeline) -> Result<Vec<Value>, AskError> {
    if pipe.is_empty() {
        return Ok(Vec::new());
    }
    match attempt(redis, slot, pipe).await {
        Ok(replies) => {
            if let Some(slot) = replies.iter().find_map(|reply| moving(reply, slot)) {
                let _ = redis.refresh().await;
                return Err(AskError::Moving { slot });
            }
            if replies.iter().any(is_stale) {
                // A failure shows with the next call.
                let _ = redis.refresh().await;
                return Err(AskError::Unavailable("the primary has moved".into()));
            }
            Ok(replies)
        }
        Err(why) => {
            let _ = redis.refresh().await;
            Err(AskError::Unavailable(why))
        }
    }
}

/// The slot that is on its way, by what the node says that still has it; `asked` where it does not say which.
pub(super) fn moving(reply: &Value, asked: u16) -> Option<u16> {
    match reply {
        Value::ServerError(error) if error.code() == "ASK" => {
            let named = error.details().and_then(|text| text.split(' ').next()?.parse().ok());
            Some(named.unwrap_or(asked))
        }
        Value::ServerError(error) if error.code() == "TRYAGAIN" => Some(asked),
        Value::Array(items) => items.iter().find_map(|item| moving(item, asked)),
        _ => None,
    }
}

async fn attempt(redis: &Redis, slot: u16, pipe: &Pipeline) -> Result<Vec<Value>, String> {
    let begun = Instant::now();
    let mut connection = redis.pooled(slot).await.map_err(|e| e.to_string())?;
    let replies = connection.req_packed_commands(pipe, 0, pipe.len()).await.map_err(|e| e.to_string());
    SECONDS.observe(begun.elapsed().as_secs_f64());
    replies
}

/// Sends `pipe` once, and leaves it to the caller what refusals mean.
///
/// # Errors
/// [`AskError::Unavailable`].
pub(super) async fn ask_plainly(redis: &Redis, slot: u16, pipe: &Pipeline) -> Result<Vec<Value>, AskError> {
    attempt(redis, slot, pipe).await.map_err(AskError::Unavailable)
}

/// As [`ask`], once more after a failure: for reads, and for writes that may be repeated.
///
/// # Errors
/// [`AskError::Unavailable`].
pub(super) async fn ask_twice(redis: &Redis, slot: u16, pipe: &Pipeline) -> Result<Vec<Value>, AskError> {
    match ask(redis, slot, pipe).await {
        Err(AskError::Unavailable(_)) => ask(redis, slot, pipe).await,
        other => other,
    }
}

/// Reads with one command on the primary of `key`. A refusal is an error.
///
/// # Errors
/// [`AskError`].
pub(super) async fn one(redis: &Redis, key: &str, command: redis::Cmd) -> Result<Value, AskError> {
    let mut pipe = redis::pipe();
    pipe.add_command(command);
    let value =
        ask_twice(redis, slot_of(key.as_bytes()), &pipe).await?.pop().ok_or(AskError::Unexpected("a command"))?;
    match reply::error(&value) {
        Some(text) => Err(AskError::Refused(text)),
        None => Ok(value),
    }
}

/// What [`swap`] does with what it read.
pub(super) enum Swap<T> {
    /// Nothing has to be written.
    Keep(T),
    /// These commands, if the key is still the same.
    Write(Pipeline, T),
}

/// Tries of [`swap`] against others that write at the same time.
const SWAPS_MAX: usize = 20;

/// Compare and swap: reads with `read` under a WATCH of `key` and writes what `decide` makes of it, until nobody came in between.
///
/// # Errors
/// [`AskError`]; after `Unavailable` it is unknown whether the write was done.
pub(super) async fn swap<T>(
    redis: &Redis,
    key: &str,
    read: &redis::Cmd,
    mut decide: impl FnMut(&Value) -> Swap<T>,
) -> Result<T, AskError> {
    let lost = |e: redis::RedisError| AskError::Unavailable(e.to_string());
    // The connection is ours alone until it is dropped, and its next user begins with UNWATCH.
    let mut connection =
        redis.pooled(slot_of(key.as_bytes())).await.map_err(|e| AskError::Unavailable(e.to_string()))?;
    for _ in 0..SWAPS_MAX {
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(key);
        look.add_command(read.clone());
        let found = all_good(connection.req_packed_commands(&look, 0, look.len()).await.map_err(lost)?)?;
        let (write, value) = match decide(found.get(1).ok_or(AskError::Unexpected("a read"))?) {
            Swap::Keep(value) => return Ok(value),
            Swap::Write(write, value) => (write, value),
        };
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        for cmd in write.cmd_iter() {
            pipe.add_command(cmd.clone());
        }
        pipe.cmd("EXEC");
        let replies = all_good(connection.req_packed_commands(&pipe, 0, pipe.len()).await.map_err(lost)?)?;
        match replies.last() {
            Some(Value::Nil) | None => {}
            Some(results) => {
                all_good(reply::array(results).unwrap_or_default().to_vec())?;
                return Ok(value);
            }
        }
    }
    Err(AskError::Unavailable("too many others write the same key".into()))
}

/// The first refusal among replies, as an error.
///
/// # Errors
/// [`AskError::Refused`].
pub(super) fn all_good(replies: Vec<Value>) -> Result<Vec<Value>, AskError> {
    match replies.iter().find_map(reply::error) {
        Some(text) => Err(AskError::Refused(text)),
        None => Ok(replies),
    }
}

fn is_stale(value: &Value) -> bool {
    let inside = |items: &[Value]| items.iter().any(is_stale);
    match value {
        Value::ServerError(e) => {
            matches!(e.code(), "MOVED" | "READONLY" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING")
        }
        Value::Array(items) => inside(items),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_that_moves_is_named_by_the_node_that_still_has_it() {
        let refusal = |text: &str| redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).expect("a reply");
        assert_eq!(moving(&refusal("ASK 8192 127.0.0.1:7001"), 1), Some(8_192));
        assert_eq!(moving(&Value::Array(vec![Value::Okay, refusal("TRYAGAIN Multiple keys")]), 7), Some(7));
        assert_eq!(moving(&refusal("MOVED 8192 127.0.0.1:7001"), 1), None);
    }
}
