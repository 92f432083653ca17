//! Streams of all partitions as one, newest first.

use redis::Cmd;
use stepfleet_protocol::{
    id::{PartitionId, StreamId},
    keys::{PartitionKeys, slot},
};

use super::{super::client::Client, ClientError, PlacedId, reply};
use crate::store::reply::Fields;

/// Entries that are looked at together.
pub(in crate::store) const LOOKS_AT_ONCE: usize = 100;
/// Entries that are looked at for one page, at most; beyond it the page ends with a cursor, full or not.
const LOOKS_MAX: usize = 2_000;

/// A page of those entries that a filter lets through.
#[derive(Debug)]
pub struct Sifted<I, T> {
    /// What was kept.
    pub items: Vec<(I, T)>,
    /// Where the next page begins; none at the end.
    pub next: Option<I>,
}

/// Looks at entries behind `after`, [`LOOKS_AT_ONCE`] at a time, until `limit` of them are kept.
///
/// # Errors
/// Those of `look`.
pub(in crate::store) async fn sift<I: Copy, T, F: Future<Output = Result<Vec<(I, Fields)>, ClientError>>>(
    mut after: Option<I>,
    limit: usize,
    look: impl Fn(Option<I>) -> F,
    keep: impl Fn(I, &Fields) -> Option<T>,
) -> Result<Sifted<I, T>, ClientError> {
    let (mut items, mut looked) = (Vec::new(), 0);
    while looked < LOOKS_MAX {
        let found = look(after).await?;
        let (count, more) = (found.len(), found.len() == LOOKS_AT_ONCE);
        looked += count;
        for (n, (id, fields)) in found.into_iter().enumerate() {
            after = Some(id);
            items.extend(keep(id, &fields).map(|item| (id, item)));
            if items.len() == limit {
                return Ok(Sifted { items, next: (more || n + 1 < count).then_some(id) });
            }
        }
        if !more {
            return Ok(Sifted { items, next: None });
        }
    }
    Ok(Sifted { items, next: after })
}

impl Client {
    /// At most `limit` entries behind `after` over the streams `key` of all partitions, newest first.
    pub(in crate::store) async fn merged(
        &self,
        key: fn(&PartitionKeys) -> String,
        after: Option<PlacedId>,
        limit: usize,
    ) -> Result<Vec<(PlacedId, Fields)>, ClientError> {
        let partitions = self.all_partitions().await?;
        let read = |p: &PartitionId| {
            let mut cmd: Cmd = redis::cmd("XREVRANGE");
            cmd.arg(key(&self.keys.partition(*p)));
            match after {
                None => cmd.arg("+"),
                Some(a) if *p < a.partition => cmd.arg(a.entry.to_string()),
                // The smallest id has nothing before it, and Redis refuses to look.
                Some(a) if a.entry == StreamId::ZERO => cmd.arg("0-0"),
                Some(a) => cmd.arg(format!("({}", a.entry)),
            };
            cmd.arg("-").arg("COUNT").arg(limit);
            (slot(*p), cmd)
        };
        let replies = self.ask_all(partitions.iter().map(read).collect()).await?;
        let mut out = Vec::new();
        for (partition, value) in partitions.into_iter().zip(replies) {
            out.extend(
                reply::entries(value).into_iter().map(|(entry, fields)| (PlacedId { entry, partition }, fields)),
            );
        }
        out.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        out.truncate(limit);
        Ok(out)
    }

    /// One entry of such a stream.
    pub(super) async fn entry(
        &self,
        key: fn(&PartitionKeys) -> String,
        id: PlacedId,
    ) -> Result<Option<Fields>, ClientError> {
        if !self.knows(id.partition).await? {
            return Ok(None);
        }
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(key(&self.keys.partition(id.partition))).arg(id.entry.to_string()).arg(id.entry.to_string());
        let found = self.ask_partition(id.partition, cmd).await?;
        Ok(reply::entries(found).into_iter().next().map(|(_, fields)| fields))
    }
}
