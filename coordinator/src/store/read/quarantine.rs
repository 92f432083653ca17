//! Log entries that could not be decided.

use bytes::Bytes;
use stepfleet_protocol::{
    audit::AuditEntry,
    codec,
    keys::{GROUP, PartitionKeys},
};

use super::{super::client::Client, ClientError, PlacedId};
use crate::store::{
    ask::{self, Swap},
    reply::{self, Fields},
};

/// Counter of entries that an operator took out of quarantine.
pub const COUNTER_DISCARDED: &str = "quarantine_discarded";

/// An entry in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its id.
    pub id: PlacedId,
    /// Why it is there.
    pub why: String,
    /// Its bytes as they stood in the log.
    pub bytes: Bytes,
}

impl Client {
    /// At most `limit` entries behind `after`, newest first; where the next page begins.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn quarantine(
        &self,
        after: Option<PlacedId>,
        limit: usize,
    ) -> Result<(Vec<Quarantined>, Option<PlacedId>), ClientError> {
        let found = self.merged(PartitionKeys::quarantine, after, limit).await?;
        let next = found.last().map(|(id, _)| *id).filter(|_| found.len() == limit);
        Ok((found.into_iter().map(|(id, fields)| read(id, &fields)).collect(), next))
    }

    /// One entry; none if it is not there (any more).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn quarantined(&self, id: PlacedId) -> Result<Option<Quarantined>, ClientError> {
        Ok(self.entry(PartitionKeys::quarantine, id).await?.map(|fields| read(id, &fields)))
    }

    /// Takes an entry out of quarantine for good, counts it, and writes the audit entry, all in one. What a worker found on a
    /// job stream is acked there: until now it was pending at that worker. False if it was not there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn discard_quarantined(&self, id: PlacedId, audit: &AuditEntry) -> Result<bool, ClientError> {
        let keys = self.keys.partition(id.partition);
        let (key, entry) = (keys.quarantine(), id.entry.to_string());
        let mut read = redis::cmd("XRANGE");
        read.arg(&key).arg(&entry).arg(&entry);
        let discarded = ask::swap(&self.redis, &key, &read, |found| {
            let Some((_, fields)) = reply::entries(found.clone()).into_iter().next() else { return Swap::Keep(false) };
            let mut write = redis::pipe();
            if let (Some(stream), Some(entry)) = (text(&fields, "from"), text(&fields, "entry")) {
                // Only streams of this partition; another key would be another slot.
                let stem = keys.log();
                if stream.starts_with(stem.trim_end_matches("log")) {
                    write.cmd("XACK").arg(stream).arg(GROUP).arg(entry);
                }
            }
            write.cmd("XDEL").arg(&key).arg(&entry);
            write.cmd("HINCRBY").arg(keys.counters()).arg(COUNTER_DISCARDED).arg(1);
            write.cmd("XADD").arg(keys.audit()).arg("*").arg(codec::FIELD_PLAIN).arg(codec::pack(audit));
            Swap::Write(write, true)
        });
        Ok(discarded.await?)
    }
}

/// A field as text; none if it is not there.
fn text(fields: &Fields, name: &str) -> Option<String> {
    let (_, value) = fields.iter().find(|(field, _)| field == name.as_bytes())?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn read(id: PlacedId, fields: &Fields) -> Quarantined {
    let get =
        |name: &str| fields.iter().find(|(f, _)| f == name.as_bytes()).map(|(_, v)| v.clone()).unwrap_or_default();
    Quarantined { id, why: String::from_utf8_lossy(&get("why")).into_owned(), bytes: get("m") }
}
