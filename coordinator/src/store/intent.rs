//! Changes of keys that are in another slot than the fleet's audit stream, none of them without its audit entry.
//!
//! Three steps: the intent is noted beside the audit stream; the change is written in one transaction with the audit entry,
//! which becomes a field of the changed hash; the entry is moved to the stream. A process that dies in between leaves the intent,
//! and [`Client::settle_intents`] finds by it what became of the change: an entry in the hash is moved, and where there is none
//! the hash gets a mark by which a late transaction gives up. So there is exactly one entry for a change, and one that says
//! "given up" for an intent that came to nothing.

use redis::{Pipeline, Value};
use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    audit::AuditEntry,
    codec::{self, VERSION},
};
use uuid::Uuid;

use super::{
    ask::{self, AskError, Swap},
    client::{Client, ClientError},
    reply,
};

/// In the place of an audit entry: whoever finds it gives up. It is no MessagePack map.
const GIVEN_UP: &[u8] = b"-";
/// Why an intent came to nothing, as its audit entry says.
pub const WHY_GIVEN_UP: &str =
    "it was given up before anything was changed: the process that was asked died or lost redis";

/// What somebody is about to change. It is kept as a MessagePack map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Version of the message.
    pub v: u8,
    /// The hash that is to be changed.
    pub key: String,
    /// When, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// The entry as far as it is known before the change.
    pub entry: AuditEntry,
}

/// What is to be done with what was found.
pub(super) enum Change<T> {
    /// There is nothing to change.
    None(T),
    /// These commands, and this audit entry for them.
    Write(Pipeline, Box<AuditEntry>, T),
}

impl Client {
    /// Changes the hash `key` by what its field `field` holds now, together with the audit entry for the change. `entry` is
    /// what is known of that entry before.
    ///
    /// # Errors
    /// [`ClientError`]. After `Unavailable` it is unknown whether it was changed; the entry follows if it was.
    pub(super) async fn change_hash<T>(
        &self,
        (key, field): (&str, &str),
        entry: &AuditEntry,
        mut decide: impl FnMut(&Value) -> Change<T>,
    ) -> Result<T, ClientError> {
        let id = Uuid::new_v4().simple().to_string();
        let at_ms = self.server_time_ms().await?;
        let intent = Intent { v: VERSION, key: key.to_owned(), at_ms, entry: entry.clone() };
        self.note(&id, &intent).await?;
        let mark = mark(&id);
        let mut read = redis::cmd("HMGET");
        read.arg(key).arg(field).arg(&mark);
        let mut written = None;
        let value = ask::swap(&self.redis, key, &read, |found| {
            let found = reply::array(found).unwrap_or_default();
            let (present, marked) = (found.first().unwrap_or(&Value::Nil), found.get(1).and_then(reply::bytes));
            // RACE: somebody took this process for dead and has said so in the audit.
            if marked.is_some() {
                return Swap::Keep(None);
            }
            match decide(present) {
                Change::None(value) => {
                    written = None;
                    Swap::Keep(Some(value))
                }
                Change::Write(mut write, entry, value) => {
                    write.cmd("HSET").arg(key).arg(&mark).arg(codec::pack(&*entry));
                    written = Some(*entry);
                    Swap::Write(write, Some(value))
                }
            }
        })
        .await?;
        let value = value.ok_or_else(|| AskError::Unavailable("it took too long and was given up".into()))?;
        self.settle(&id, written.as_ref()).await?;
        if written.is_some() {
            self.unmark(key, &id).await?;
        }
        Ok(value)
    }

    /// Finds out what became of intents that are older than `older_ms`, and writes their audit entries. Returns how many
    /// there were.
    ///
    /// # Errors
    /// [`ClientError`]; what was settled before stays so.
    pub async fn settle_intents(&self, older_ms: u64) -> Result<u64, ClientError> {
        let intents = self.keys.fleet_intents();
        let mut read = redis::cmd("HGETALL");
        read.arg(&intents);
        let found = reply::pairs(ask::one(&self.redis, &intents, read).await?);
        if found.is_empty() {
            return Ok(0);
        }
        let now_ms = self.server_time_ms().await?;
        let mut settled = 0;
        for (id, bytes) in found {
            let id = String::from_utf8_lossy(&id).into_owned();
            let Ok(intent) = codec::unpack::<Intent>(&bytes) else {
                tracing::error!(id, "an intent cannot be read; its audit entry waits for a program that can");
                continue;
            };
            if now_ms.saturating_sub(intent.at_ms) < older_ms {
                continue;
            }
            let mut claim = redis::cmd("HSETNX");
            claim.arg(&intent.key).arg(mark(&id)).arg(GIVEN_UP);
            let claimed = reply::number(&ask::one(&self.redis, &intent.key, claim).await?) == Some(1);
            let mut get = redis::cmd("HGET");
            get.arg(&intent.key).arg(mark(&id));
            let found = ask::one(&self.redis, &intent.key, get).await?;
            let written = reply::bytes(&found).and_then(|bytes| codec::unpack::<AuditEntry>(bytes).ok());
            let entry = written.clone().unwrap_or_else(|| intent.entry.refused(Some(WHY_GIVEN_UP.to_owned())));
            let done = self.settle(&id, Some(&entry)).await?;
            settled += u64::from(done);
            // A mark of one that was given up stays: its transaction may still be on the way. One that was settled by whoever
            // changed it, after the intents were read, needs none.
            if written.is_some() || (claimed && !done) {
                self.unmark(&intent.key, &id).await?;
            }
        }
        Ok(settled)
    }

    async fn note(&self, id: &str, intent: &Intent) -> Result<(), ClientError> {
        let key = self.keys.fleet_intents();
        let mut write = redis::cmd("HSET");
        write.arg(&key).arg(id).arg(codec::pack(intent));
        ask::one(&self.redis, &key, write).await?;
        Ok(())
    }

    /// Takes the intent away and appends its entry, if there is one to append, once. Whether it was still there.
    async fn settle(&self, id: &str, entry: Option<&AuditEntry>) -> Result<bool, ClientError> {
        let key = self.keys.fleet_intents();
        let mut read = redis::cmd("HEXISTS");
        read.arg(&key).arg(id);
        let settled = ask::swap(&self.redis, &key, &read, |found| {
            if reply::number(found) != Some(1) {
                return Swap::Keep(false);
            }
            let mut write = redis::pipe();
            write.cmd("HDEL").arg(&key).arg(id);
            if let Some(entry) = entry {
                let audit = self.keys.fleet_audit();
                write.cmd("XADD").arg(audit).arg("*").arg(codec::FIELD_PLAIN).arg(codec::pack(entry));
            }
            Swap::Write(write, true)
        });
        Ok(settled.await?)
    }

    async fn unmark(&self, key: &str, id: &str) -> Result<(), ClientError> {
        let mut delete = redis::cmd("HDEL");
        delete.arg(key).arg(mark(id));
        ask::one(&self.redis, key, delete).await?;
        Ok(())
    }
}

/// Field of the changed hash with the audit entry, until it is in the stream.
fn mark(id: &str) -> String {
    format!("audit:{id}")
}
