//! Who owns which partition: leases for liveness, never for correctness, which is the reign's.
//!
//! A lease holds for three seconds and is renewed by the owner loop alone, so that a hung loop loses it. A lapsed lease
//! may be retaken by its last owner at once; others wait a second and a random part, so that a pause of everybody does
//! not become an election of everybody. They wait while they can see that it is not renewed, so that a lease that
//! lapses with the death of its owner is mostly taken as soon as it has. A released lease is there, but empty, and
//! anybody takes it at once. Who has a fair share leaves the rest to others, but not for ever: what nobody claims is
//! taken all the same.

use std::{collections::HashMap, time::Duration};

use stepfleet_protocol::{
    beat::CoordinatorBeat,
    codec::{self, VERSION},
    id::PartitionId,
    keys::Keys,
};
use tokio::time::Instant;

use super::links::Links;
use crate::store::{
    link::{Dial, LinkError},
    partition::LEASE_MS,
    reply,
};

/// How long others wait before they take a lapsed lease, before the random part.
const LAPSED_WAIT: Duration = Duration::from_secs(1);
/// A lease that has so much left was not renewed when it should have been, in milliseconds: owners renew every second,
/// and notice half a second late at most that it is time to.
const OVERDUE_MS: i64 = 1_300;
/// A longer time between two looks at a lease is a pause, in which its owner may not have been able to renew it.
const LOOK_GAP: Duration = Duration::from_millis(1_500);
/// So many pauses while it stays free are none: the looks themselves are slow, as there are many partitions, or a node is
/// away. Without this bound a slow coordinator would never take anything.
const GAPS_MAX: u32 = 3;
/// How much longer a coordinator with its share leaves a lapsed lease to others. Short, as a dead owner still counts
/// for the share.
const LAPSED_SHARE_WAIT: Duration = Duration::from_millis(200);
/// How much longer a coordinator with its share waits for others to take a partition that was given away, or never had
/// an owner.
const UNCLAIMED_WAIT: Duration = Duration::from_secs(5);
/// After it took what nobody claimed a coordinator gives nothing away for this long: nobody would take it.
const UNCLAIMED_KEPT: Duration = Duration::from_secs(60);
/// A coordinator gives a partition away for balance at most so often.
const GIVE_EVERY: Duration = Duration::from_secs(5);
/// How long a coordinator's account of itself is kept, in milliseconds.
const BEAT_KEPT_MS: u64 = 60_000;
/// How long a released lease shows that it was released.
const RELEASED_MS: u64 = 60_000;
/// A coordinator that was not seen for this long does not count for balance.
const SEEN_MS: u64 = 5_000;
/// After a partition was given away its last owner does not take it back for this long.
const COOL_DOWN: Duration = Duration::from_secs(4);

/// What one look at a lease found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it lapsed, or never was.
    Nobody,
    /// Released: anybody may take it at once.
    Released,
    /// This coordinator.
    Me,
    /// Another one.
    Other(String),
}

/// The leases as one coordinator sees them.
pub struct Leases<D: Dial> {
    links: Links<D>,
    keys: Keys,
    name: String,
    /// Since when each was seen to be free, or about to be, and when that was last seen.
    free_since: HashMap<PartitionId, (Instant, Instant, u32)>,
    cooling: HashMap<PartitionId, Instant>,
    ever: HashMap<PartitionId, bool>,
    /// When one was last given away.
    gave: Option<Instant>,
    /// When one beyond the share was last taken, as nobody claimed it.
    unclaimed: Option<Instant>,
    jitter: Duration,
    /// The version of the fleet's policies that this coordinator tells with its beat.
    pub policies: u64,
}

impl<D: Dial> Leases<D> {
    /// For the coordinator `name`; `jitter` is its random part of the wait.
    pub fn new(dial: D, keys: Keys, name: String, jitter: Duration) -> Self {
        let (free_since, cooling, ever) = (HashMap::new(), HashMap::new(), HashMap::new());
        let links = Links::new(dial);
        Self { links, keys, name, free_since, cooling, ever, gave: None, unclaimed: None, jitter, policies: 0 }
    }

    /// How many partitions there are; `default` is written if nobody has said so yet.
    ///
    /// # Errors
    /// The link's.
    pub async fn partitions(&mut self, default: u16) -> Result<u16, LinkError> {
        let key = self.keys.meta();
        let mut pipe = redis::pipe();
        pipe.cmd("HSETNX").arg(&key).arg("partitions").arg(default);
        pipe.cmd("HGET").arg(&key).arg("partitions");
        let replies = self.links.trip(&key, &pipe).await?;
        let count = replies.get(1).and_then(reply::number).and_then(|n| u16::try_from(n).ok());
        count.ok_or_else(|| LinkError::Lost("no list of partitions".into()))
    }

    /// Who holds the lease.
    ///
    /// # Errors
    /// The link's.
    pub async fn holder(&mut self, partition: PartitionId) -> Result<Holder, LinkError> {
        let key = self.keys.partition(partition).lease();
        let mut get = redis::cmd("GET");
        get.arg(&key);
        let value = self.links.one(&key, get).await?;
        Ok(self.holder_of(&value))
    }

    /// Who holds the lease, and what is left of it in milliseconds.
    async fn seen(&mut self, partition: PartitionId) -> Result<(Holder, i64), LinkError> {
        let key = self.keys.partition(partition).lease();
        let mut look = redis::pipe();
        look.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
        let replies = self.links.trip(&key, &look).await?;
        let left_ms = replies.get(1).and_then(reply::number).unwrap_or(0);
        Ok((self.holder_of(replies.first().unwrap_or(&redis::Value::Nil)), left_ms))
    }

    fn holder_of(&self, value: &redis::Value) -> Holder {
        match reply::text(value) {
            None => Holder::Nobody,
            Some("") => Holder::Released,
            Some(name) if name == self.name => Holder::Me,
            Some(name) => Holder::Other(name.into()),
        }
    }

    /// Takes the lease if it is time to; one that `has_share` leaves it to others for a while. True when it is this
    /// coordinator's now.
    ///
    /// # Errors
    /// The link's.
    pub async fn try_take(&mut self, partition: PartitionId, has_share: bool) -> Result<bool, LinkError> {
        if self.cooling.get(&partition).is_some_and(|since| since.elapsed() < COOL_DOWN) {
            return Ok(false);
        }
        let (holder, left_ms) = self.seen(partition).await?;
        let first_look = !std::mem::replace(self.ever.entry(partition).or_default(), true);
        let (how, wait, lapsed) = match holder {
            Holder::Me => return Ok(true),
            Holder::Other(_) => {
                if left_ms > OVERDUE_MS {
                    self.free_since.remove(&partition);
                } else {
                    // The server answers and its owner does not renew it: the wait begins here.
                    self.waited(partition, LOOK_GAP);
                }
                return Ok(false);
            }
            Holder::Released => ("XX", Duration::ZERO, false),
            Holder::Nobody if first_look && self.never_owned(partition).await? => ("NX", Duration::ZERO, false),
            Holder::Nobody => ("NX", LAPSED_WAIT + self.jitter, true),
        };
        let (gap, share_wait) = if lapsed { (LOOK_GAP, LAPSED_SHARE_WAIT) } else { (Duration::MAX, UNCLAIMED_WAIT) };
        let wait = if has_share { wait + share_wait } else { wait };
        if self.waited(partition, gap) < wait {
            return Ok(false);
        }
        let taken = self.set(partition, how).await?;
        if taken && has_share {
            // A dead owner counts for the share a little longer; nothing is given to it meanwhile.
            let keep = if lapsed { &mut self.gave } else { &mut self.unclaimed };
            *keep = Some(Instant::now());
        }
        Ok(taken)
    }

    /// For how long a partition was seen to be free, or to be about to be. A longer time than `gap` between two looks
    /// was a pause of the server or of this process, and perhaps of the owner, too: it begins anew.
    fn waited(&mut self, partition: PartitionId, gap: Duration) -> Duration {
        let now = Instant::now();
        let (since, last, gaps) = self.free_since.entry(partition).or_insert((now, now, 0));
        if now - *last > gap {
            (*since, *gaps) = (now, *gaps + 1);
        }
        *last = now;
        if *gaps >= GAPS_MAX { Duration::MAX } else { now - *since }
    }

    /// Whether a lease is about to be free, or is: then it is worth while to look again soon.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.free_since.values().any(|(_, last, _)| last.elapsed() < LOOK_GAP)
    }

    /// Nobody has ever reigned: there is nobody to wait for.
    async fn never_owned(&mut self, partition: PartitionId) -> Result<bool, LinkError> {
        let key = self.keys.partition(partition).head();
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&key);
        Ok(reply::number(&self.links.one(&key, exists).await?) == Some(0))
    }

    async fn set(&mut self, partition: PartitionId, how: &str) -> Result<bool, LinkError> {
        let key = self.keys.partition(partition).lease();
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&self.name).arg(how).arg("PX").arg(LEASE_MS);
        let taken = self.links.one(&key, set).await?;
        self.free_since.remove(&partition);
        Ok(matches!(taken, redis::Value::Okay | redis::Value::SimpleString(_)))
    }

    /// Takes a lease that this coordinator held until a moment ago: at once if it lapsed. False when it is another's.
    ///
    /// # Errors
    /// The link's.
    pub async fn retake(&mut self, partition: PartitionId) -> Result<bool, LinkError> {
        match self.holder(partition).await? {
            Holder::Me => Ok(true),
            Holder::Nobody => self.set(partition, "NX").await,
            Holder::Released | Holder::Other(_) => Ok(false),
        }
    }

    /// Leaves a partition that was given away to others for a moment.
    pub fn cool(&mut self, partition: PartitionId) {
        self.cooling.insert(partition, Instant::now());
    }

    /// Gives the lease up, so that others need not wait for it to lapse.
    ///
    /// # Errors
    /// The link's; then it lapses by itself.
    pub async fn release(&mut self, partition: PartitionId) -> Result<(), LinkError> {
        if self.holder(partition).await? == Holder::Me {
            let key = self.keys.partition(partition).lease();
            let mut set = redis::cmd("SET");
            set.arg(&key).arg("").arg("PX").arg(RELEASED_MS);
            self.links.one(&key, set).await?;
        }
        Ok(())
    }

    /// Says that this coordinator lives. Returns how many do.
    ///
    /// # Errors
    /// The link's.
    pub async fn beat(&mut self) -> Result<u64, LinkError> {
        let key = self.keys.coordinators();
        let time = self.links.one(&key, redis::cmd("TIME")).await?;
        let now_ms = reply::time_ms(&time).unwrap_or_default();
        let mut pipe = redis::pipe();
        pipe.cmd("ZADD").arg(&key).arg(now_ms).arg(&self.name);
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
        Ok(replies.get(3).and_then(reply::number).unwrap_or(1).max(1) as u64)
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

    /// Whether this coordinator should give a partition away, as it has more than its share, and others want it.
    pub fn has_too_many(&mut self, owned: usize, partitions: u16, coordinators: u64) -> bool {
        let lately = |at: Option<Instant>, span| at.is_some_and(|at| at.elapsed() < span);
        let busy = lately(self.gave, GIVE_EVERY) || lately(self.unclaimed, UNCLAIMED_KEPT);
        let give = owned as u64 > share(partitions, coordinators) && !busy;
        if give {
            self.gave = Some(Instant::now());
        }
        give
    }
}

/// Partitions of one coordinator when all have about as many.
pub fn share(partitions: u16, coordinators: u64) -> u64 {
    u64::from(partitions).div_ceil(coordinators.max(1))
}
