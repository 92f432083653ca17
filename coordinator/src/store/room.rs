//! Making room on a full server: plain commands outside MULTI, which a server out of memory accepts, and which need no
//! fence because they take only what is done with.
//!
//! Before Redis 7.2 everything queued in MULTI is refused at `maxmemory`, even XTRIM, so no commit can ever free the space
//! that it needs.

use redis::Value;
use stepfleet_protocol::{
    id::{PartitionId, StreamId},
    keys::{GROUP, Keys, slot},
    name::Name,
};

use super::{
    link::{Dial, Link, LinkError},
    partition::RESPONSE_MARGIN,
    reply,
};
use crate::mutants::mutant;

/// Trims the log below the committed offset, and every job stream below the lowest entry that somebody may still need, on
/// one connection of its own. Returns how many entries went.
///
/// # Errors
/// The link's.
pub async fn make<D: Dial>(dial: &D, keys: &Keys, partition: PartitionId) -> Result<u64, LinkError> {
    let mut link = dial.dial(slot(partition), RESPONSE_MARGIN).await?;
    let keys = keys.partition(partition);
    let mut look = redis::pipe();
    look.cmd("HGET").arg(keys.head()).arg("offset").cmd("SMEMBERS").arg(keys.queues());
    let replies = link.trip(&look).await?;
    let offset: Option<StreamId> = replies.first().and_then(reply::text).and_then(|t| t.parse().ok());
    let names = replies.get(1).and_then(reply::array).unwrap_or_default();
    let queues: Vec<Name> = names.iter().filter_map(reply::text).filter_map(|t| Name::new(t).ok()).collect();
    let mut trim = redis::pipe();
    let offset =
        if mutant("room_made_of_the_undecided") { Some(StreamId { ms: u64::MAX >> 1, seq: 0 }) } else { offset };
    if let Some(offset) = offset {
        trim.cmd("XTRIM").arg(keys.log()).arg("MINID").arg(offset.next().to_string());
    }
    let mut look = redis::pipe();
    for queue in &queues {
        look.cmd("XINFO").arg("GROUPS").arg(keys.jobs(queue));
        look.cmd("XPENDING").arg(keys.jobs(queue)).arg(GROUP);
    }
    let found = if queues.is_empty() { Vec::new() } else { link.trip(&look).await? };
    for (queue, pair) in queues.iter().zip(found.chunks_exact(2)) {
        if let Some(floor) = floor(&pair[0], &pair[1]) {
            trim.cmd("XTRIM").arg(keys.jobs(queue)).arg("MINID").arg(floor.to_string());
        }
    }
    if trim.is_empty() {
        return Ok(0);
    }
    let replies = link.trip(&trim).await?;
    Ok(replies.iter().filter_map(reply::number).map(|n| n as u64).sum())
}

/// The lowest entry of a job stream that is still needed: the lowest pending one, else what follows the last delivered one.
///
/// RACE: what is delivered between the two looks is above `last-delivered-id`, so the floor is never too high.
fn floor(groups: &Value, pending: &Value) -> Option<StreamId> {
    let lowest = reply::array(pending).and_then(|p| p.get(1)).and_then(reply::text).and_then(|t| t.parse().ok());
    let delivered: Option<StreamId> = reply::group(groups, GROUP)
        .and_then(|g| reply::field(g, "last-delivered-id").and_then(reply::text))
        .and_then(|t| t.parse().ok());
    lowest.or(delivered.map(StreamId::next))
}
