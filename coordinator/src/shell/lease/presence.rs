//! Which coordinators there are: each says so with every look at the leases.

use stepfleet_protocol::{
    beat::CoordinatorBeat,
    codec::{self, VERSION},
};

use super::Leases;
use crate::store::{
    link::{Dial, LinkError},
    reply,
};

/// How long a coordinator's account of itself is kept, in milliseconds.
const BEAT_KEPT_MS: u64 = 60_000;
/// A coordinator that was not seen for this long does not count for balance.
const SEEN_MS: u64 = 5_000;

impl<D: Dial> Leases<D> {
    /// Says that this coordinator lives, unless it is passed over. Returns how many do that count for balance.
    ///
    /// # Errors
    /// The link's.
    pub async fn beat(&mut self) -> Result<u64, LinkError> {
        let key = self.keys.coordinators();
        let time = self.links.one(&key, redis::cmd("TIME")).await?;
        let now_ms = reply::time_ms(&time).unwrap_or_default();
        let mut pipe = redis::pipe();
        if self.is_passed_over() {
            pipe.cmd("ZREM").arg(&key).arg(&self.name);
        } else {
            pipe.cmd("ZADD").arg(&key).arg(now_ms).arg(&self.name);
        }
        pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now_ms.saturating_sub(20 * SEEN_MS));
        // Who was seen in the future was seen before the server's clock was set back; who lives says so again at once.
        pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg(now_ms + SEEN_MS).arg("+inf");
        pipe.cmd("ZCOUNT").arg(&key).arg(now_ms.saturating_sub(SEEN_MS)).arg("+inf");
        let beat =
            CoordinatorBeat { v: VERSION, version: env!("CARGO_PKG_VERSION").to_owned(), policies: self.policies };
        let mut say = redis::cmd("SET");
        say.arg(self.keys.coordinator(&self.name)).arg(codec::pack(&beat)).arg("PX").arg(BEAT_KEPT_MS);
        pipe.add_command(say);
        let replies = self.links.trip(&key, &pipe).await?;
        let others = replies.get(3).and_then(reply::number).unwrap_or(1).max(0) as u64;
        if others == 0 {
            // There is nobody else to leave the partitions to.
            self.lapsed = None;
        }
        Ok(others.max(1))
    }

    /// This coordinator leaves.
    ///
    /// # Errors
    /// The link's.
    pub async fn leave(&mut self) -> Result<(), LinkError> {
        let key = self.keys.coordinators();
        let mut leave = redis::cmd("ZREM");
        leave.arg(&key).arg(&self.name);
        self.links.one(&key, leave).await?;
        let mut silence = redis::cmd("UNLINK");
        silence.arg(self.keys.coordinator(&self.name));
        self.links.one(&key, silence).await.map(drop)
    }
}
