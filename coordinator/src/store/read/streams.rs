//! Streams of all partitions as one, newest first.

use redis::Cmd;
use stepfleet_protocol::{
    id::{PartitionId, StreamId},
    keys::{PartitionKeys, slot},
};

use super::{super::client::Client, ClientError, PlacedId, reply};
use crate::store::reply::Fields;

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
