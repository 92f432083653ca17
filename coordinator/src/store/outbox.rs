//! What the followers of the outbox read and write: events behind a cursor, the cursor, what was not delivered.
//!
//! A cursor is written by whoever follows a feed now. RACE: when the partition changes hands two may follow it for a
//! moment, and the later write wins, perhaps with an older cursor. What lies behind that one is then delivered again; nothing
//! is passed by, because each writes only what it has delivered itself or found written.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    codec::{self, VERSION},
    id::{PartitionId, StreamId},
    keys::{Keys, PartitionKeys, slot, slot_of},
};

use super::{
    ask,
    client::{Client, ClientError},
    read::{
        audit::{AuditId, Filter},
        streams::{Sifted, sift},
    },
    reply::{self, Fields},
};

/// Entries that a partition keeps of what was not delivered, the newest, about.
pub const UNDELIVERED_MAX: usize = 10_000;
/// Longest error that is kept, in bytes; the rest is cut.
pub const ERROR_BYTES_MAX: usize = 2_000;

/// How far a subscriber is in a partition, and what it has had. It is kept as a MessagePack map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Version of the message.
    pub v: u8,
    /// Everything up to this entry is delivered, set aside or was missed.
    pub entry: StreamId,
    /// How many entries that is, of all that the outbox ever had.
    pub seen: u64,
    /// Entries that it took.
    #[serde(default)]
    pub delivered: u64,
    /// Entries that were set aside.
    #[serde(default)]
    pub undelivered: u64,
    /// Entries that were trimmed before it had seen them.
    #[serde(default)]
    pub missed: u64,
}

impl Cursor {
    /// Before everything that an outbox still has of which `trimmed` entries are gone: what went before nobody followed was
    /// not missed.
    pub fn first(trimmed: u64) -> Self {
        Self { v: VERSION, entry: StreamId::ZERO, seen: trimmed, delivered: 0, undelivered: 0, missed: 0 }
    }
}

/// An outbox entry that a subscriber did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undelivered {
    /// Version of the message.
    pub v: u8,
    /// The subscriber.
    pub subscriber: String,
    /// The entry of the partition's outbox.
    pub entry: StreamId,
    /// What the last try ended with.
    pub error: String,
    /// How often it was tried; 0 if the entry cannot be read.
    pub attempts: u32,
}

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// The outbox of a partition: what was committed.
    Partition(PartitionId),
    /// The fleet's audit stream: what became of circuit breakers, queues, policies.
    Fleet,
}

impl From<PartitionId> for Feed {
    fn from(partition: PartitionId) -> Self {
        Self::Partition(partition)
    }
}

impl std::fmt::Display for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Partition(partition) => partition.fmt(f),
            Self::Fleet => f.write_str("fleet"),
        }
    }
}

/// The keys of a feed, all of one slot.
struct Places {
    slot: u16,
    events: String,
    cursors: String,
    undelivered: String,
    /// The partition's counters; the fleet has none, and what is counted is in its cursors.
    counters: Option<String>,
}

impl Places {
    fn of(keys: &Keys, feed: Feed) -> Self {
        match feed {
            Feed::Partition(partition) => {
                let keys = keys.partition(partition);
                Self {
                    slot: slot(partition),
                    events: keys.events(),
                    cursors: keys.cursors(),
                    undelivered: keys.undelivered(),
                    counters: Some(keys.counters()),
                }
            }
            Feed::Fleet => Self {
                slot: slot_of(keys.fleet_audit().as_bytes()),
                events: keys.fleet_audit(),
                cursors: keys.fleet_cursors(),
                undelivered: keys.fleet_undelivered(),
                counters: None,
            },
        }
    }

    fn keep(&self, pipe: &mut redis::Pipeline, subscriber: &str, cursor: &Cursor, missed: u64) {
        pipe.cmd("HSET").arg(&self.cursors).arg(subscriber).arg(codec::pack(cursor));
        if let Some(counters) = self.counters.as_ref().filter(|_| missed > 0) {
            pipe.cmd("HINCRBY").arg(counters).arg("missed_events").arg(missed);
        }
    }
}

/// A look at an outbox.
#[derive(Debug, Default)]
pub struct Events {
    /// What comes behind the cursor.
    pub entries: Vec<(StreamId, Fields)>,
    /// How many entries were trimmed so far.
    pub trimmed: u64,
}

/// A subscriber of one feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// The subscriber.
    pub subscriber: String,
    /// What it follows.
    pub feed: Feed,
    /// How far it is.
    pub cursor: Cursor,
    /// Entries behind the cursor.
    pub lag: u64,
    /// Age of the oldest of them, in milliseconds.
    pub lag_ms: Option<u64>,
}

impl Client {
    /// How far a subscriber is; none if it never ran.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cursor(&self, feed: impl Into<Feed>, subscriber: &str) -> Result<Option<Cursor>, ClientError> {
        let places = Places::of(&self.keys, feed.into());
        let mut get = redis::cmd("HGET");
        get.arg(&places.cursors).arg(subscriber);
        let found = ask::one(&self.redis, &places.cursors, get).await?;
        let broken = |_| ClientError::Broken("a cursor of the outbox");
        reply::bytes(&found).map(|bytes| codec::unpack(bytes).map_err(broken)).transpose()
    }

    /// At most `count` entries behind `after`, and how many were trimmed, of one moment.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events_behind(&self, feed: Feed, after: StreamId, count: usize) -> Result<Events, ClientError> {
        let Places { slot, events: key, .. } = Places::of(&self.keys, feed);
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI").cmd("XINFO").arg("STREAM").arg(&key);
        pipe.cmd("XRANGE").arg(&key).arg(format!("({after}")).arg("+").arg("COUNT").arg(count).cmd("EXEC");
        let mut replies = ask::all_good(ask::ask_twice(&self.redis, slot, &pipe).await?)?;
        let Some(redis::Value::Array(mut found)) = replies.pop() else { return Ok(Events::default()) };
        // An outbox without a first entry is no stream: XINFO refuses.
        let (Some(range), Some(info)) = (found.pop(), found.pop()) else { return Ok(Events::default()) };
        Ok(Events { entries: reply::entries(range), trimmed: added(&info).saturating_sub(length(&info)) })
    }

    /// Keeps a cursor, and counts what was missed since it was kept last.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn keep_cursor(
        &self,
        feed: Feed,
        subscriber: &str,
        cursor: &Cursor,
        missed: u64,
    ) -> Result<(), ClientError> {
        let places = Places::of(&self.keys, feed);
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        places.keep(&mut pipe, subscriber, cursor, missed);
        pipe.cmd("EXEC");
        self.execute(places.slot, &pipe).await
    }

    /// Sets an entry aside as not delivered, counts it, and keeps the cursor that passes it by.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_aside(
        &self,
        feed: Feed,
        undelivered: &Undelivered,
        cursor: &Cursor,
        missed: u64,
    ) -> Result<(), ClientError> {
        let places = Places::of(&self.keys, feed);
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI");
        pipe.cmd("XADD").arg(&places.undelivered).arg("MAXLEN").arg("~").arg(UNDELIVERED_MAX);
        pipe.arg("*").arg(codec::FIELD_PLAIN).arg(codec::pack(undelivered));
        if let Some(counters) = &places.counters {
            pipe.cmd("HINCRBY").arg(counters).arg("undelivered_events").arg(1);
        }
        places.keep(&mut pipe, &undelivered.subscriber, cursor, missed);
        pipe.cmd("EXEC");
        self.execute(places.slot, &pipe).await
    }

    async fn execute(&self, slot: u16, pipe: &redis::Pipeline) -> Result<(), ClientError> {
        let replies = ask::all_good(ask::ask(&self.redis, slot, pipe).await?)?;
        let executed = replies.last().and_then(reply::array).unwrap_or_default();
        Ok(ask::all_good(executed.to_vec()).map(drop)?)
    }

    /// Every subscriber that ever ran, in every partition and of the fleet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn subscribers(&self) -> Result<Vec<Following>, ClientError> {
        let mut feeds: Vec<Feed> = self.all_partitions().await?.into_iter().map(Feed::Partition).collect();
        feeds.push(Feed::Fleet);
        let looks = feeds.iter().flat_map(|feed| {
            let places = Places::of(&self.keys, *feed);
            let (mut cursors, mut info) = (redis::cmd("HGETALL"), redis::cmd("XINFO"));
            cursors.arg(places.cursors);
            info.arg("STREAM").arg(places.events);
            [(places.slot, cursors), (places.slot, info)]
        });
        let replies = self.ask_all(looks.collect()).await?;
        let mut out = Vec::new();
        for (feed, pair) in feeds.into_iter().zip(replies.chunks_exact(2)) {
            for (name, bytes) in reply::pairs(pair[0].clone()) {
                let Ok(cursor) = codec::unpack::<Cursor>(&bytes) else { continue };
                let subscriber = String::from_utf8_lossy(&name).into_owned();
                let lag = added(&pair[1]).saturating_sub(cursor.seen);
                out.push(Following { subscriber, feed, cursor, lag, lag_ms: None });
            }
        }
        self.date(&mut out).await?;
        Ok(out)
    }

    /// Finds out how old the first entry is that each has not seen.
    async fn date(&self, following: &mut [Following]) -> Result<(), ClientError> {
        let behind: Vec<&mut Following> = following.iter_mut().filter(|f| f.lag > 0).collect();
        if behind.is_empty() {
            return Ok(());
        }
        let next = |f: &&mut Following| {
            let mut cmd = redis::cmd("XRANGE");
            let places = Places::of(&self.keys, f.feed);
            cmd.arg(places.events).arg(format!("({}", f.cursor.entry));
            cmd.arg("+").arg("COUNT").arg(1);
            (places.slot, cmd)
        };
        let replies = self.ask_all(behind.iter().map(next).collect()).await?;
        let now_ms = self.server_time_ms().await?;
        for (following, found) in behind.into_iter().zip(replies) {
            let first = reply::entries(found).into_iter().next();
            following.lag_ms = first.map(|(id, _)| now_ms.saturating_sub(id.ms));
        }
        Ok(())
    }

    /// At most `limit` entries that were not delivered, behind `after`, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn undelivered(
        &self,
        subscriber: Option<&str>,
        after: Option<AuditId>,
        limit: usize,
    ) -> Result<Sifted<AuditId, Undelivered>, ClientError> {
        let all = Filter::default();
        let look = |after| self.everywhere((PartitionKeys::undelivered, self.keys.fleet_undelivered()), &all, after);
        let keep = |_, fields: &Fields| {
            let (field, bytes) = fields.first()?;
            let read = codec::decode::<Undelivered>(field, bytes).ok();
            read.filter(|item| subscriber.is_none_or(|wanted| wanted == item.subscriber))
        };
        sift(after, limit, look, keep).await
    }
}

/// Entries that a stream ever had, from XINFO STREAM.
fn added(info: &redis::Value) -> u64 {
    reply::field(info, "entries-added").and_then(reply::number).map_or(0, |n| n.max(0) as u64)
}

/// Entries that it has.
fn length(info: &redis::Value) -> u64 {
    reply::field(info, "length").and_then(reply::number).map_or(0, |n| n.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write};

    use serde::de::DeserializeOwned;
    use stepfleet_protocol::audit::AuditEntry;

    use super::*;
    use crate::store::intent::Intent;

    #[track_caller]
    fn keeps<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, golden: &str) {
        let bytes = codec::pack(value);
        let mut hex = String::new();
        bytes.iter().for_each(|byte| write!(hex, "{byte:02x}").expect("a string takes everything"));
        assert_eq!(hex, golden, "other bytes than those of version 1");
        assert_eq!(codec::unpack::<T>(&bytes).as_ref(), Ok(value));
    }

    #[test]
    fn what_is_kept_between_two_programs_keeps_its_bytes() {
        let entry = StreamId { ms: 1_800_000_000_123, seq: 1 };
        let cursor = Cursor { v: 1, entry, seen: 300, delivered: 7, undelivered: 2, missed: 1 };
        keeps(
            &cursor,
            concat!(
                "86a17601a5656e747279af313830303030303030303132332d31a47365656ecd012ca964656c69766572656407ab756e",
                "64656c69766572656402a66d697373656401"
            ),
        );
        let (subscriber, error) = ("hook".to_owned(), "503".to_owned());
        keeps(
            &Undelivered { v: 1, subscriber, entry, error, attempts: 5 },
            concat!(
                "85a17601aa73756273637269626572a4686f6f6ba5656e747279af313830303030303030303132332d31a56572726f72",
                "a3353033a8617474656d70747305"
            ),
        );
        let entry = AuditEntry::new("ann", "partitions.add", "partitions:8".into(), 7);
        keeps(
            &Intent { v: 1, key: "sf:meta".into(), at_ms: 9, entry },
            concat!(
                "84a17601a36b6579a773663a6d657461a561745f6d7309a5656e74727986a17601a56163746f72a3616e6ea661637469",
                "6f6eae706172746974696f6e732e616464a6746172676574ac706172746974696f6e733a38a76f7574636f6d65a4646f",
                "6e65a561745f6d7307"
            ),
        );
    }
}
