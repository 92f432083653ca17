//! Retention of campaigns that have ended: their records and reports.

use std::time::Duration;

use stepfleet_protocol::id::PartitionId;
use tokio::time::Instant;
use uuid::Uuid;

use super::Campaigns;
use crate::store::{
    campaigns::{ACTIVE_MAX, KEPT_MAX, KEPT_MS, standing},
    link::{Dial, LinkError},
    reply,
};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The oldest campaigns that one look is about. Those that go on are fewer, so that they never hide the others.
const LOOKED_AT: u64 = ACTIVE_MAX + 20;

impl<D: Dial> Campaigns<D> {
    /// Deletes ended campaigns that are too old, or too many. Whoever owns partition 0 does it; a second one that does the same
    /// finds nothing.
    pub(super) async fn expire(&mut self) -> Result<(), LinkError> {
        let is_ours = self.owned.borrow().contains(&PartitionId(0));
        if !is_ours || self.expired.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.expired = Some(Instant::now());
        let key = self.keys.campaigns();
        let mut look = redis::pipe();
        look.cmd("ZRANGE").arg(&key).arg(0).arg(LOOKED_AT - 1).cmd("ZCARD").arg(&key).cmd("TIME");
        let found = self.links.trip(&key, &look).await?;
        let count = found.get(1).and_then(reply::number).unwrap_or(0).max(0) as u64;
        let Some(now_ms) = found.get(2).and_then(reply::time_ms) else { return Ok(()) };
        let ids = found.first().and_then(reply::array).unwrap_or_default().iter().filter_map(reply::text);
        let mut beyond = count.saturating_sub(KEPT_MAX);
        for id in ids.filter_map(|id| id.parse::<Uuid>().ok()) {
            let of = self.keys.campaign(id);
            let fields = reply::pairs(self.links.read(&of, redis::cmd("HGETALL").arg(&of).clone()).await?);
            let ended = match standing(&fields, 0) {
                // Of a newer program, which will know what it is.
                None if !fields.is_empty() => continue,
                Some(found) if !found.phase.is_final() => continue,
                // One without the time of its end is as old as its begin.
                Some(found) => found.ending_ms.max(found.campaign.at_ms),
                None => 0,
            };
            if beyond == 0 && now_ms.saturating_sub(ended) < KEPT_MS {
                continue;
            }
            beyond = beyond.saturating_sub(1);
            let mut gone = redis::pipe();
            gone.cmd("UNLINK").arg(&of).arg(self.keys.campaign_open(id)).arg(self.keys.campaign_items(id));
            gone.cmd("ZREM").arg(&key).arg(id.to_string());
            let replies = self.links.trip(&key, &gone).await?;
            self.metrics.campaigns_expired.inc_by(replies.get(1).and_then(reply::number).unwrap_or(0).max(0) as u64);
        }
        Ok(())
    }
}
