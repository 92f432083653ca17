//! Dead letters, newest first, over all partitions.

use stepfleet_protocol::keys::PartitionKeys;

use super::{
    super::client::Client,
    ClientError, PlacedId,
    streams::{LOOKS_AT_ONCE, Sifted, sift},
};
use crate::store::{
    letters::{Filter, decode},
    record::DeadLetter,
    reply::Fields,
};

impl Client {
    /// At most `limit` open letters behind `after`. Letters that cannot be read are left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letters(
        &self,
        filter: &Filter,
        after: Option<PlacedId>,
        limit: usize,
    ) -> Result<Sifted<PlacedId, DeadLetter>, ClientError> {
        let has_age = filter.older_than_ms.is_some() || filter.newer_than_ms.is_some();
        let now_ms = if has_age { self.server_time_ms().await? } else { 0 };
        let look = |after| self.merged(PartitionKeys::dead, after, LOOKS_AT_ONCE);
        let keep = |id, fields: &Fields| decode(fields).filter(|letter| filter.takes(now_ms, id, letter));
        sift(after, limit, look, keep).await
    }

    /// One open letter; none if it is not there (any more).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letter(&self, id: PlacedId) -> Result<Option<DeadLetter>, ClientError> {
        match self.entry(PartitionKeys::dead, id).await? {
            Some(fields) => decode(&fields).map(Some).ok_or(ClientError::Broken("a dead letter")),
            None => Ok(None),
        }
    }
}
