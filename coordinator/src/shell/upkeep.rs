//! What an owner does beside deciding: the lease, trimming, resynchronising its mirrors, releasing ready steps, reading
//! timers ahead. Each is a cheap command that rides on a turn, outside the transaction.
//!
//! Trimming needs no fence: it touches only what a commit that this connection has seen applied has left behind.

use redis::{Cmd, Value, cmd};
use stepfleet_protocol::{gate::Gate, id::StreamId, keys::GROUP, keys::PartitionKeys, name::Name};

use super::{
    gates::Book,
    retention::Retention,
    schedule::{HORIZON_MS, Queue, Schedule, TIMERS_PER_READ},
};
use crate::store::{partition::LEASE_MS, reply};

/// Time between two renewals of the lease, and between two looks at a queue.
const EVERY_MS: u64 = 1_000;
/// A pending entry that has been the oldest for this long makes acked entries behind it go one by one.
const LONG_HEAD_MS: u64 = 30_000;
/// Entries that one XTRIM takes: large ones cost up to 2 us each. Without a limit of its own it would take 10,000 a second, which
/// a loaded queue outruns.
const TRIM_CHUNK: i64 = 2_000;
/// Entries that one XDEL takes, in ascending order: 1.1 us each, where single ones cost 9.
const DELETE_CHUNK: usize = 500;

/// A command that rode on a turn, to be finished with its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// The lease was renewed.
    Lease,
    /// The lease was taken again after it had lapsed.
    Retake,
    /// Something was trimmed; nobody minds how much.
    Trim,
    /// The log was trimmed.
    TrimLog,
    /// The stream of a queue was trimmed.
    TrimJobs(Name),
    /// The outbox was trimmed.
    TrimEvents,
    /// Ready steps of a queue, to be released.
    Release(Name),
    /// Steps that are parked at a gate, to be released.
    Unpark(Gate),
    /// How many steps are parked at a gate.
    Parked(Gate),
    /// How much is on a queue's stream.
    Groups(Name),
    /// The lowest pending entry of a queue's stream.
    Pending(Name),
    /// How much is in a queue's ready set.
    Ready(Name),
    /// The earliest timers.
    Timers {
        /// Up to here they were asked for.
        to_ms: u64,
    },
}

impl Chore {
    /// Whether its reply says nothing about what a batch changes that is being decided meanwhile.
    pub fn tells_no_mirror(&self) -> bool {
        match self {
            Self::Lease | Self::Trim | Self::TrimLog | Self::TrimJobs(_) | Self::TrimEvents => true,
            Self::Release(_) | Self::Unpark(_) => true,
            Self::Retake
            | Self::Groups(_)
            | Self::Pending(_)
            | Self::Ready(_)
            | Self::Parked(_)
            | Self::Timers { .. } => false,
        }
    }
}

/// When each duty is due.
#[derive(Debug)]
pub struct Upkeep {
    name: String,
    keys: PartitionKeys,
    /// The partition is on Cluster.
    pub cluster: bool,
    /// Entries of the outbox that are kept, about.
    pub events_max: u64,
    next_lease_ms: u64,
    next_look_ms: u64,
    retake: bool,
    trimmed_to: StreamId,
    /// The last trim of the log left some of it.
    trims_log: bool,
    delivered: Option<(Name, StreamId)>,
    /// Outbox entries that were trimmed and are not counted yet.
    pub events_dropped: u64,
}

impl Upkeep {
    /// Duties of the owner `name` from now on.
    pub fn new(name: &str, keys: PartitionKeys, now_ms: u64) -> Self {
        Self {
            name: name.into(),
            keys,
            cluster: false,
            events_max: Retention::default().events_max,
            next_lease_ms: now_ms,
            next_look_ms: now_ms,
            retake: false,
            trimmed_to: StreamId::ZERO,
            trims_log: false,
            delivered: None,
            events_dropped: 0,
        }
    }

    /// Whether there is more to trim at once.
    pub fn is_behind(&self, schedule: &Schedule) -> bool {
        self.trims_log || schedule.queues.values().any(|queue| queue.trims)
    }

    /// Commands that are due, each with what to do with its reply.
    pub fn due(
        &mut self,
        schedule: &mut Schedule,
        gates: &mut Book,
        now_ms: u64,
        offset: StreamId,
    ) -> (Vec<Chore>, Vec<Cmd>) {
        let (mut chores, mut cmds) = (Vec::new(), Vec::new());
        let mut push = |chore, cmd: Cmd| {
            chores.push(chore);
            cmds.push(cmd);
        };
        if self.retake {
            self.retake = false;
            let mut take = cmd("SET");
            take.arg(self.keys.lease()).arg(&self.name).arg("NX").arg("PX").arg(LEASE_MS);
            push(Chore::Retake, take);
        }
        if is_due(self.next_lease_ms, EVERY_MS, now_ms) {
            self.next_lease_ms = now_ms + EVERY_MS;
            let mut renew = cmd("PEXPIRE");
            renew.arg(self.keys.lease()).arg(LEASE_MS);
            push(Chore::Lease, renew);
        }
        for (queue, room) in schedule.releasable() {
            let mut take = cmd("ZRANGE");
            take.arg(self.keys.ready(&queue)).arg(0).arg(room.min(super::owner::BATCH_ITEMS_MAX as u64) - 1);
            push(Chore::Release(queue), take);
        }
        for (gate, count) in gates.passable(now_ms) {
            let mut take = cmd("ZRANGE");
            take.arg(self.keys.parked(&gate)).arg(0).arg(count - 1);
            push(Chore::Unpark(gate), take);
        }
        if schedule.timers.wants_more(now_ms) {
            let to_ms = now_ms + HORIZON_MS;
            push(Chore::Timers { to_ms }, self.timers(to_ms));
        }
        if is_due(self.next_look_ms, EVERY_MS, now_ms) {
            self.next_look_ms = now_ms + EVERY_MS;
            self.look(schedule, now_ms, offset, &mut push);
            for (gate, _) in gates.parked() {
                let mut count = cmd("ZCARD");
                count.arg(self.keys.parked(gate));
                push(Chore::Parked(gate.clone()), count);
            }
        }
        self.trim(schedule, offset, &mut push);
        (chores, cmds)
    }

    /// Trims a chunk of each stream that has some to trim: since the last look, or as the last trim left some.
    fn trim(&mut self, schedule: &mut Schedule, offset: StreamId, push: &mut impl FnMut(Chore, Cmd)) {
        if std::mem::take(&mut self.trims_log) {
            push(Chore::TrimLog, trim_below(&self.keys.log(), offset));
        }
        for (name, queue) in schedule.queues.iter_mut().filter(|(_, queue)| queue.trims) {
            queue.trims = false;
            if let Some((floor, _)) = queue.head {
                push(Chore::TrimJobs(name.clone()), trim_below(&self.keys.jobs(name), floor));
            }
        }
    }

    fn look(&mut self, schedule: &mut Schedule, now_ms: u64, offset: StreamId, push: &mut impl FnMut(Chore, Cmd)) {
        if offset > self.trimmed_to {
            self.trimmed_to = offset;
            self.trims_log = true;
        }
        let mut trim = cmd("XTRIM");
        trim.arg(self.keys.events()).arg("MAXLEN").arg("~").arg(self.events_max);
        push(Chore::TrimEvents, trim);
        for (name, queue) in &mut schedule.queues {
            queue.trims = true;
            for delete in Self::delete_behind(&self.keys, name, queue, now_ms) {
                push(Chore::Trim, delete);
            }
            let mut groups = cmd("XINFO");
            groups.arg("GROUPS").arg(self.keys.jobs(name));
            push(Chore::Groups(name.clone()), groups);
            let mut pending = cmd("XPENDING");
            pending.arg(self.keys.jobs(name)).arg(GROUP);
            push(Chore::Pending(name.clone()), pending);
            let mut ready = cmd("ZCARD");
            ready.arg(self.keys.ready(name));
            push(Chore::Ready(name.clone()), ready);
        }
    }

    /// Reads the earliest timers that are due up to `to_ms`, a page of them. It begins with the earliest again and not where
    /// the last page ended: behind a commit the earliest ones are exactly those that were not decided.
    pub fn timers(&self, to_ms: u64) -> Cmd {
        let mut range = cmd("ZRANGEBYSCORE");
        range.arg(self.keys.timers()).arg("-inf").arg(to_ms).arg("WITHSCORES");
        range.arg("LIMIT").arg(0).arg(TIMERS_PER_READ);
        range
    }

    /// Deletes what is acked behind a long job, entry by entry.
    fn delete_behind(keys: &PartitionKeys, name: &Name, queue: &mut Queue, now_ms: u64) -> Vec<Cmd> {
        let Some((floor, since)) = queue.head else { return Vec::new() };
        queue.behind.retain(|id| *id >= floor);
        let mut out = Vec::new();
        if now_ms.saturating_sub(since) < LONG_HEAD_MS {
            return out;
        }
        let mut acked = std::mem::take(&mut queue.behind);
        acked.sort_unstable();
        for chunk in acked.chunks(DELETE_CHUNK) {
            let mut delete = cmd("XDEL");
            delete.arg(keys.jobs(name));
            for id in chunk {
                delete.arg(id.to_string());
            }
            out.push(delete);
        }
        out
    }

    /// Does what a reply asks for. Releases and timers are the owner's own.
    pub fn finish(&mut self, chore: Chore, value: &Value, schedule: &mut Schedule, now_ms: u64) {
        match chore {
            Chore::Lease => self.retake = reply::number(value) == Some(0),
            Chore::TrimLog => self.trims_log = is_more(value),
            Chore::TrimJobs(name) => schedule.queue(&name).trims = is_more(value),
            Chore::TrimEvents => self.events_dropped += reply::number(value).unwrap_or(0) as u64,
            Chore::Groups(name) => {
                // RACE: jobs that this batch dispatches come on top; the owner adds them after this.
                if let Some(outstanding) = outstanding(value) {
                    schedule.queue(&name).outstanding = outstanding;
                }
                let delivered =
                    reply::group(value, GROUP).and_then(|g| reply::field(g, "last-delivered-id").and_then(reply::text));
                self.delivered = delivered.and_then(|t| t.parse().ok()).map(|id| (name, id));
            }
            Chore::Pending(name) => {
                let lowest = reply::array(value).and_then(|p| p.get(1)).and_then(reply::text);
                let lowest: Option<StreamId> = lowest.and_then(|t| t.parse().ok());
                let delivered = self.delivered.take().filter(|(n, _)| *n == name).map(|(_, id)| id.next());
                let queue = schedule.queue(&name);
                queue.head = match (lowest.or(delivered), queue.head) {
                    (Some(floor), Some((old, since))) if floor == old => Some((old, since)),
                    (Some(floor), _) => Some((floor, now_ms)),
                    (None, _) => None,
                };
            }
            Chore::Ready(name) => {
                if let Some(ready) = reply::number(value) {
                    let queue = schedule.queue(&name);
                    queue.ready = ready as u64;
                    if ready == 0 {
                        queue.urgent = 0;
                    }
                }
            }
            Chore::Trim
            | Chore::Retake
            | Chore::Release(_)
            | Chore::Unpark(_)
            | Chore::Parked(_)
            | Chore::Timers { .. } => {}
        }
    }
}

/// Trims a stream below an entry, whole nodes of it.
fn trim_below(key: &str, floor: StreamId) -> Cmd {
    let mut trim = cmd("XTRIM");
    trim.arg(key).arg("MINID").arg("~").arg(floor.to_string()).arg("LIMIT").arg(TRIM_CHUNK);
    trim
}

/// Whether a trim took as much as it may, about: it takes whole nodes.
fn is_more(trimmed: &Value) -> bool {
    reply::number(trimmed).is_some_and(|entries| entries > TRIM_CHUNK / 2)
}

/// Whether something that is done every `every_ms` is due. The clock is the server's, which may be set back: then what would
/// be further away than a whole period is due.
pub fn is_due(next_ms: u64, every_ms: u64, now_ms: u64) -> bool {
    now_ms >= next_ms || next_ms - now_ms > every_ms
}

/// Entries of a stream that are not acked: undelivered and pending ones, from XINFO GROUPS.
pub fn outstanding(value: &Value) -> Option<u64> {
    let group = reply::group(value, GROUP)?;
    let lag = reply::number(reply::field(group, "lag")?)?;
    let pending = reply::number(reply::field(group, "pending")?)?;
    Some((lag + pending) as u64)
}
