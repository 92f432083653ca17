//! Who owns which partition: leases for liveness, never for correctness, which is the reign's.
//!
//! A lease holds for three seconds and is renewed by the owner loop alone, so that a hung loop loses it. A lapsed lease
//! may be retaken by its last owner at once; others wait a second and a random part, so that a pause of everybody does
//! not become an election of everybody. They wait while they can see that it is not renewed, so that a lease that
//! lapses with the death of its owner is mostly taken as soon as it has. A released lease is there, but empty, and
//! anybody takes it at once. Who has a fair share leaves the rest to others, but not for ever: what nobody claims is
//! taken all the same.

mod presence;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use stepfleet_protocol::{id::PartitionId, keys::Keys};
use tokio::time::Instant;

use super::links::{Answer, Ask, Links};
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
/// How long a released lease shows that it was released.
const RELEASED_MS: u64 = 60_000;
/// Looks at leases that share a trip: three cheap commands each.
const LOOKS_PER_TRIP: usize = 256;
/// A coordinator from which others took a partition has been too slow, or hung: for so long it gets none for balance, and
/// does not count for it.
const PASSED_OVER: Duration = Duration::from_secs(60);
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

/// What one look at a free lease found.
struct Look {
    holder: Holder,
    /// What is left of it, in milliseconds.
    left_ms: i64,
    /// Nobody has ever reigned: there is nobody to wait for.
    never_owned: bool,
}

/// What is to be done about a lease after a look.
enum Next {
    /// It is this coordinator's already.
    Mine,
    /// It is taken.
    Take(Claim),
    /// It is left alone for now.
    Wait,
}

/// A lease that is to be taken.
struct Claim {
    partition: PartitionId,
    /// `NX` for one that is gone, `XX` for one that was released.
    how: &'static str,
    /// It lapsed.
    lapsed: bool,
    /// The coordinator has its share already.
    beyond: bool,
}

/// The leases as one coordinator sees them.
pub struct Leases<D: Dial> {
    links: Links<D>,
    keys: Keys,
    name: String,
    /// Since when each was seen to be free, or about to be, and when that was last seen.
    free_since: HashMap<PartitionId, (Instant, Instant, u32)>,
    cooling: HashMap<PartitionId, Instant>,
    /// Those that were looked at.
    ever: HashSet<PartitionId>,
    /// When one was last given away.
    gave: Option<Instant>,
    /// When one beyond the share was last taken, as nobody claimed it.
    unclaimed: Option<Instant>,
    /// When it was last seen that others had taken what is owned here.
    lapsed: Option<Instant>,
    jitter: Duration,
    /// The version of the fleet's policies that this coordinator tells with its beat.
    pub policies: u64,
}

impl<D: Dial> Leases<D> {
    /// For the coordinator `name`; `jitter` is its random part of the wait.
    pub fn new(dial: D, keys: Keys, name: String, jitter: Duration) -> Self {
        let (free_since, cooling, ever) = (HashMap::new(), HashMap::new(), HashSet::new());
        let links = Links::impatient(dial);
        Self {
            links,
            keys,
            name,
            free_since,
            cooling,
            ever,
            gave: None,
            unclaimed: None,
            lapsed: None,
            jitter,
            policies: 0,
        }
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

    fn holder_of(&self, value: &redis::Value) -> Holder {
        match reply::text(value) {
            None => Holder::Nobody,
            Some("") => Holder::Released,
            Some(name) if name == self.name => Holder::Me,
            Some(name) => Holder::Other(name.into()),
        }
    }

    /// Looks at the leases of `wanted` at once, and takes those that it is time to take; when there are `room` more, this
    /// coordinator has its share, and leaves the rest to others for a while. Says for each whether it is its own now, or
    /// why that is not known; those that it gave away a moment ago are left out.
    pub async fn take(&mut self, wanted: &[PartitionId], mut room: u64) -> Vec<(PartitionId, Result<bool, LinkError>)> {
        room = if self.is_passed_over() { 0 } else { room };
        let cools = |partition: &PartitionId| self.cooling.get(partition).is_some_and(|at| at.elapsed() < COOL_DOWN);
        let wanted: Vec<PartitionId> = wanted.iter().filter(|partition| !cools(partition)).copied().collect();
        let asks = wanted.iter().map(|partition| self.look(*partition)).collect();
        let answers = self.links.gather(asks, LOOKS_PER_TRIP).await;
        let (mut found, mut claims) = (Vec::with_capacity(wanted.len()), Vec::new());
        for (partition, answer) in wanted.into_iter().zip(answers) {
            let next =
                answer.and_then(Answer::accepted).map(|answer| self.next(partition, &self.seen(&answer), room == 0));
            found.push((partition, next.as_ref().map(|next| matches!(next, Next::Mine)).map_err(Clone::clone)));
            room = room.saturating_sub(u64::from(matches!(next, Ok(Next::Mine | Next::Take(_)))));
            if let Ok(Next::Take(claim)) = next {
                claims.push((found.len() - 1, claim));
            }
        }
        let asks = claims.iter().map(|(_, claim)| self.claim(claim)).collect();
        let answers = self.links.gather(asks, LOOKS_PER_TRIP).await;
        for ((at, claim), answer) in claims.into_iter().zip(answers) {
            found[at].1 = answer.map(|answer| self.claimed(&claim, &answer));
        }
        found
    }

    /// Looks whether others have taken one of these, whose owners here do not know yet: they hang. Then balance passes this
    /// coordinator over for a minute, as it would lose again what it got.
    pub async fn check(&mut self, owned: &[PartitionId]) {
        let asks = owned.iter().map(|partition| self.look(*partition)).collect();
        for (partition, answer) in owned.iter().zip(self.links.gather(asks, LOOKS_PER_TRIP).await) {
            if let Ok(Holder::Other(by)) = answer.and_then(Answer::accepted).map(|answer| self.seen(&answer).holder) {
                tracing::warn!(%partition, by, "another coordinator took a partition of this one, which was too slow");
                self.lapsed = Some(Instant::now());
            }
        }
    }

    fn is_passed_over(&self) -> bool {
        self.lapsed.is_some_and(|at| at.elapsed() < PASSED_OVER)
    }

    fn look(&self, partition: PartitionId) -> Ask {
        let keys = self.keys.partition(partition);
        let (mut get, mut left, mut owned) = (redis::cmd("GET"), redis::cmd("PTTL"), redis::cmd("EXISTS"));
        get.arg(keys.lease());
        left.arg(keys.lease());
        owned.arg(keys.head());
        Ask::new(&keys.lease(), vec![get, left, owned])
    }

    fn seen(&self, answer: &Answer) -> Look {
        let number = |at: usize| answer.replies.get(at).and_then(reply::number);
        Look {
            holder: self.holder_of(answer.replies.first().unwrap_or(&redis::Value::Nil)),
            left_ms: number(1).unwrap_or(0),
            never_owned: number(2) == Some(0),
        }
    }

    fn next(&mut self, partition: PartitionId, look: &Look, has_share: bool) -> Next {
        let first_look = self.ever.insert(partition);
        let (how, wait, lapsed) = match look.holder {
            Holder::Me => return Next::Mine,
            Holder::Other(_) => {
                if look.left_ms > OVERDUE_MS {
                    self.free_since.remove(&partition);
                } else {
                    // The server answers and its owner does not renew it: the wait begins here.
                    self.waited(partition, LOOK_GAP);
                }
                return Next::Wait;
            }
            Holder::Released => ("XX", Duration::ZERO, false),
            Holder::Nobody if first_look && look.never_owned => ("NX", Duration::ZERO, false),
            Holder::Nobody => ("NX", LAPSED_WAIT + self.jitter, true),
        };
        let (gap, share_wait) = if lapsed { (LOOK_GAP, LAPSED_SHARE_WAIT) } else { (Duration::MAX, UNCLAIMED_WAIT) };
        let wait = if has_share { wait + share_wait } else { wait };
        if self.waited(partition, gap) < wait {
            return Next::Wait;
        }
        Next::Take(Claim { partition, how, lapsed, beyond: has_share })
    }

    fn claim(&self, claim: &Claim) -> Ask {
        let key = self.keys.partition(claim.partition).lease();
        Ask::new(&key, vec![self.set(&key, claim.how)])
    }

    fn claimed(&mut self, claim: &Claim, answer: &Answer) -> bool {
        self.free_since.remove(&claim.partition);
        let taken = answer.replies.first().is_some_and(is_ok);
        if taken && claim.beyond {
            // A dead owner counts for the share a little longer; nothing is given to it meanwhile.
            let keep = if claim.lapsed { &mut self.gave } else { &mut self.unclaimed };
            *keep = Some(Instant::now());
        }
        taken
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

    fn set(&self, key: &str, how: &str) -> redis::Cmd {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(&self.name).arg(how).arg("PX").arg(LEASE_MS);
        set
    }

    /// Takes a lease that this coordinator held until a moment ago: at once if it lapsed. False when it is another's.
    ///
    /// # Errors
    /// The link's.
    pub async fn retake(&mut self, partition: PartitionId) -> Result<bool, LinkError> {
        match self.holder(partition).await? {
            Holder::Me => Ok(true),
            Holder::Nobody => {
                let key = self.keys.partition(partition).lease();
                let set = self.set(&key, "NX");
                Ok(is_ok(&self.links.one(&key, set).await?))
            }
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

fn is_ok(value: &redis::Value) -> bool {
    matches!(value, redis::Value::Okay | redis::Value::SimpleString(_))
}
