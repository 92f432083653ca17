//! Dead letters, newest first, over all partitions.

use stepfleet_protocol::{codec, failure::Category, keys::PartitionKeys};

use super::{super::client::Client, ClientError, PlacedId};
use crate::store::{record::DeadLetter, reply::Fields};

/// Letters that are looked at together.
const LOOKS_AT_ONCE: usize = 100;
/// Letters that are looked at for one page, at most; beyond it the page ends with a cursor, full or not.
const LOOKS_MAX: usize = 1_000;

/// Which letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this workflow.
    pub workflow: Option<String>,
    /// Of this handler.
    pub handler: Option<String>,
    /// Of this queue.
    pub queue: Option<String>,
    /// Of this category.
    pub category: Option<Category>,
}

/// A page of letters.
#[derive(Debug, Default)]
pub struct Page {
    /// The letters.
    pub letters: Vec<(PlacedId, DeadLetter)>,
    /// Where the next page begins; none at the end.
    pub next: Option<PlacedId>,
}

impl Filter {
    fn takes(&self, letter: &DeadLetter) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        fits(&self.workflow, letter.workflow.as_str())
            && fits(&self.handler, letter.handler.as_str())
            && fits(&self.queue, letter.queue.as_str())
            && self.category.is_none_or(|c| c == letter.category)
    }
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
        while looked < LOOKS_MAX {
            let found = self.merged(PartitionKeys::dead, after, LOOKS_AT_ONCE).await?;
            let (count, more) = (found.len(), found.len() == LOOKS_AT_ONCE);
            looked += count;
            for (n, (id, fields)) in found.into_iter().enumerate() {
                after = Some(id);
                let Some(letter) = read(&fields).filter(|l| filter.takes(l)) else { continue };
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
            Some(fields) => read(&fields).map(Some).ok_or(ClientError::Broken("a dead letter")),
            None => Ok(None),
        }
    }
}

fn read(fields: &Fields) -> Option<DeadLetter> {
    let (field, bytes) = fields.first()?;
    codec::decode(field, bytes).ok()
}
