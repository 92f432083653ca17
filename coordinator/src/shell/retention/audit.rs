//! Audit entries beyond their age. They are trimmed as logs are, outside of the commit that counts them: an old entry is
//! nobody's, so no fence is needed. The fleet's own stream is trimmed next to partition 0's, see `dispatcher`.

use super::Sweep;
use crate::store::{link::Link, partition::TurnError, reply};

/// Entries that one look trims, at most. They are read first, so that one trim is bounded whatever their number is.
const TRIMMED_PER_LOOK: usize = 200;

impl<L: Link> Sweep<'_, L> {
    /// Trims entries.
    pub(super) async fn audit(&mut self) -> Result<(), TurnError> {
        let key = self.partition.keys.audit();
        let too_old = self.now_ms.saturating_sub(self.retention.audit_ms).saturating_sub(1);
        let mut look = redis::pipe();
        look.cmd("XRANGE").arg(&key).arg("-").arg(too_old).arg("COUNT").arg(TRIMMED_PER_LOOK);
        let found = self.partition.load(&look).await?.into_iter().next().map(reply::entries).unwrap_or_default();
        let Some((last, _)) = found.last() else { return Ok(()) };
        let mut trim = redis::pipe();
        trim.cmd("XTRIM").arg(&key).arg("MINID").arg(last.next().to_string());
        let trimmed = self.partition.load(&trim).await?;
        self.out.expired.audit += trimmed.first().and_then(reply::number).unwrap_or(0) as u64;
        self.out.more |= found.len() == TRIMMED_PER_LOOK;
        Ok(())
    }
}
