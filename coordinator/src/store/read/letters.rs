//! Dead letters, newest first, over all partitions.

use stepfleet_protocol::keys::PartitionKeys;

use super::{super::client::Client, ClientError, PlacedId};
use crate::store::{
    letters::{Filter, decode},
    record::DeadLetter,
};

/// Letters that are looked at together.
const LOOKS_AT_ONCE: usize = 100;
/// Letters that are looked at for one page, at most; beyond it the page ends with a cursor, full or not.
const LOOKS_MAX: usize = 1_000;

/// A page of letters.
#[derive(Debug, Default)]
pub struct Page {
    /// The letters.
    pub letters: Vec<(PlacedId, DeadLetter)>,
    /// Where the next page begins; none at the end.
    pub next: Option<PlacedId>,
}

impl Client {
    /// At most `limit` open letters behind `after`. Letters that cannot be read are left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letters(
        &self,
        filter: &Filter,
        mut after: Option<PlacedId>,
        limit: usize,
    ) -> Result<Page, ClientError> {
        let mut page = Page::default();
        let mut looked = 0;
        let has_age = filter.older_than_ms.is_some() || filter.newer_than_ms.is_some();
        let now_ms = if has_age { self.server_time_ms().await? } else { 0 };
        while looked < LOOKS_MAX {
            let found = self.merged(PartitionKeys::dead, after, LOOKS_AT_ONCE).await?;
            let (count, more) = (found.len(), found.len() == LOOKS_AT_ONCE);
            looked += count;
            for (n, (id, fields)) in found.into_iter().enumerate() {
                after = Some(id);
                let Some(letter) = decode(&fields).filter(|l| filter.takes(now_ms, id, l)) else { continue };
                page.letters.push((id, letter));
                if page.letters.len() == limit {
                    page.next = (more || n + 1 < count).then_some(id);
                    return Ok(page);
                }
            }
            if !more {
                return Ok(page);
            }
        }
        page.next = after;
        Ok(page)
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
