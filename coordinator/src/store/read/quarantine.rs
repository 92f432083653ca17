//! Log entries that could not be decided.

use bytes::Bytes;
use stepfleet_protocol::keys::{GROUP, PartitionKeys, slot};

use super::{super::client::Client, ClientError, PlacedId, count};
use crate::store::{ask, reply::Fields};

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

    /// Takes an entry out of quarantine for good, and counts it. One that a worker found on a job stream is acked there: until
    /// now it was pending at that worker. False if it was not there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn discard_quarantined(&self, id: PlacedId) -> Result<bool, ClientError> {
        let Some(fields) = self.entry(PartitionKeys::quarantine, id).await? else { return Ok(false) };
        let keys = self.keys.partition(id.partition);
        let mut pipe = redis::pipe();
        if let (Some(stream), Some(entry)) = (text(&fields, "from"), text(&fields, "entry")) {
            // Only streams of this partition; another key would be another slot.
            let stem = keys.log();
            if stream.starts_with(stem.trim_end_matches("log")) {
                pipe.cmd("XACK").arg(stream).arg(GROUP).arg(entry);
            }
        }
        pipe.cmd("XDEL").arg(keys.quarantine()).arg(id.entry.to_string());
        let replies = ask::all_good(ask::ask(&self.redis, slot(id.partition), &pipe).await?)?;
        if count(replies.last()) == 0 {
            return Ok(false);
        }
        let mut tally = redis::cmd("HINCRBY");
        tally.arg(keys.counters()).arg(COUNTER_DISCARDED).arg(1);
        self.ask_partition(id.partition, tally).await?;
        Ok(true)
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
