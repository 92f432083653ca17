//! Submits that wait for the disk or a replica, on connections of their own: while those hang, plain submits go on.

use std::time::{Duration, Instant};

use redis::{Pipeline, RedisError, Value, aio::ConnectionLike};
use stepfleet_connect::Error;
use stepfleet_protocol::{
    id::{PartitionId, StreamId},
    keys::slot,
};

use super::{
    super::{ask::AskError, client::Client, reply},
    executed,
};

/// How long a durable submit waits for the disk, and then for a replica; below the time-out of a pooled connection.
const WAIT_MAX: Duration = Duration::from_secs(4);

/// What a durable submit got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The log entry is on the disk of its server, and on no replica within four seconds, if there is one.
    Fsync,
    /// A replica has the log entry, so that it survives a fail-over.
    Replica,
    /// Neither within four seconds: the server has no append-only file and no replica, or they are slow.
    None,
}

impl Client {
    /// As a plain submit, then waits on the same connection, because WAIT is about a connection's own writes.
    pub(super) async fn append_durably(
        &self,
        partition: PartitionId,
        pipe: &Pipeline,
    ) -> Result<(StreamId, Durability), AskError> {
        let lost = |e: RedisError| AskError::Unavailable(e.to_string());
        let lent = self.redis.pooled_for_wait(slot(partition)).await;
        let mut connection = lent.map_err(|error| match error {
            Error::Busy { node } => AskError::WaitsFull { node },
            error => AskError::Unavailable(error.to_string()),
        })?;
        let entry = executed(connection.req_packed_commands(pipe, 0, pipe.len()).await.map_err(lost)?)?;
        let begun = Instant::now();
        let mut wait = redis::pipe();
        // Unknown before 7.2, and an error without an append-only file.
        wait.cmd("WAITAOF").arg(1).arg(0).arg(WAIT_MAX.as_millis() as u64);
        wait.cmd("ROLE");
        let replies = connection.req_packed_commands(&wait, 0, wait.len()).await.map_err(lost)?;
        let synced = replies.first().and_then(reply::array).and_then(|a| a.first()).and_then(reply::number);
        let on_disk = if synced.is_some_and(|n| n > 0) { Durability::Fsync } else { Durability::None };
        let role = replies.get(1).and_then(reply::array).unwrap_or_default();
        let replicas = role.get(2).and_then(reply::array).map_or(0, <[Value]>::len);
        if replicas == 0 {
            return Ok((entry, on_disk));
        }
        // What is on the disk of a primary is lost all the same when a replica that lacks it takes its place.
        let mut wait = redis::pipe();
        wait.cmd("WAIT").arg(1).arg(left_ms(begun.elapsed()));
        let replies = connection.req_packed_commands(&wait, 0, 1).await.map_err(lost)?;
        let reached = replies.first().and_then(reply::number).unwrap_or(0);
        Ok((entry, if reached > 0 { Durability::Replica } else { on_disk }))
    }
}

/// How long to wait for a replica after so long a wait for the disk, in milliseconds. It had that time, too; never 0, which
/// would wait for ever.
fn left_ms(waited: Duration) -> u64 {
    WAIT_MAX.saturating_sub(waited).as_millis().max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_waits_together_take_four_seconds_and_none_is_for_ever() {
        let ms = |waited_ms| left_ms(Duration::from_millis(waited_ms));
        assert_eq!([ms(0), ms(1_000), ms(3_999), ms(4_000), ms(9_000)], [4_000, 3_000, 1, 1, 1]);
    }
}
