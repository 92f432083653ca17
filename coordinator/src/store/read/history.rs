//! The history of a run, page by page: whole chunks as they were appended, each the transitions of one commit.

use stepfleet_protocol::id::RunId;

use super::{super::client::Client, ClientError, count, reply};
use crate::{
    machine::decision::Transition,
    store::{history, kept, pack::Reader},
};

/// Bytes that are read at once. No chunk is larger, because a decision is bounded.
const BYTES_PER_READ: u64 = 2 << 20;

/// Where a page of history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The byte at which a chunk begins, counted over all chunks wherever they are kept.
    pub offset: u64,
    /// Transitions of that chunk to leave out.
    pub skip: usize,
}

/// A page of history.
#[derive(Debug, Default)]
pub struct Page {
    /// Transitions, oldest first.
    pub transitions: Vec<Transition>,
    /// Where the next page begins; none at the end.
    pub next: Option<Place>,
}

impl Client {
    /// At most `limit` transitions of a run from `place` on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(&self, run: RunId, place: Place, limit: usize) -> Result<Page, ClientError> {
        let keys = self.keys.partition(run.partition());
        let (key, mut size) = (keys.history(&run), redis::cmd("STRLEN"));
        size.arg(&key);
        // RACE: with the owner. Once there is a string the hash takes no more chunks, so the string's length is asked for first.
        let in_string = count(Some(&self.ask_partition(run.partition(), size).await?));
        let mut first = redis::cmd("HMGET");
        first.arg(keys.run(&run));
        for chunk in 0..kept::CHUNKS_MAX {
            first.arg(kept::field(chunk));
        }
        let found = self.ask_partition(run.partition(), first).await?;
        let chunks = reply::array(&found).unwrap_or_default().iter().map_while(reply::bytes);
        let mut bytes: Vec<u8> = chunks.flatten().copied().collect();
        let in_hash = bytes.len() as u64;
        bytes.drain(..bytes.len().min(place.offset as usize));
        if in_string > 0 {
            let (mut get, begin) = (redis::cmd("GETRANGE"), place.offset.saturating_sub(in_hash));
            get.arg(&key).arg(begin).arg(begin + BYTES_PER_READ - 1);
            let found = self.ask_partition(run.partition(), get).await?;
            bytes.extend_from_slice(reply::bytes(&found).unwrap_or_default());
        }
        let total = in_hash + in_string;
        Ok(page(&bytes, place, limit, total))
    }

    /// The history of a run as far as it fits one read, and whether that is all of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn recent_history(&self, run: RunId) -> Result<(Vec<Transition>, bool), ClientError> {
        let page = self.history(run, Place::default(), usize::MAX).await?;
        Ok((page.transitions, page.next.is_none()))
    }
}

fn page(bytes: &[u8], place: Place, limit: usize, total: u64) -> Page {
    let mut out = Page::default();
    let (mut at, mut skip) = (0, place.skip);
    while at < bytes.len() {
        let Some(length) = chunk_length(&bytes[at..]) else { break };
        let transitions = history::unpack(&bytes[at..at + length]);
        let room = limit - out.transitions.len();
        if transitions.len().saturating_sub(skip) > room {
            out.transitions.extend(transitions.into_iter().skip(skip).take(room));
            out.next = Some(Place { offset: place.offset + at as u64, skip: skip + room });
            return out;
        }
        out.transitions.extend(transitions.into_iter().skip(skip));
        at += length;
        skip = 0;
    }
    let end = place.offset + at as u64;
    // A broken tail ends the reading: a place that does not move would be read for ever.
    out.next = (end < total && at > 0).then_some(Place { offset: end, skip: 0 });
    out
}

/// Length of the chunk at the beginning, if it is whole.
fn chunk_length(bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(bytes);
    reader.byte()?;
    reader.text()?;
    Some(bytes.len() - reader.left.len())
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::state::State;

    use super::*;
    use crate::machine::decision::Why;

    fn transition(n: u32) -> Transition {
        Transition {
            step: Some(n),
            from: State::Created,
            to: State::Queued,
            at_ms: 1_000,
            attempt: 0,
            why: Why::NeedsMet,
            worker: None,
            actor: None,
            note: None,
        }
    }

    #[test]
    fn pages_of_any_size_show_every_transition_once() {
        let chunks = [0..3u32, 3..4, 4..9].map(|range| history::pack(&range.map(transition).collect::<Vec<_>>()));
        let all = chunks.concat();
        for limit in 1..10 {
            let (mut place, mut seen) = (Some(Place::default()), Vec::new());
            while let Some(at) = place {
                let found = page(&all[at.offset as usize..], at, limit, all.len() as u64);
                assert!(found.transitions.len() <= limit);
                seen.extend(found.transitions.iter().filter_map(|t| t.step));
                place = found.next;
            }
            assert_eq!(seen, (0..9).collect::<Vec<u32>>(), "limit {limit}");
        }
        let broken = page(&all[..all.len() - 1], Place::default(), 100, all.len() as u64);
        assert_eq!((broken.transitions.len(), broken.next.is_some()), (4, true));
    }
}
