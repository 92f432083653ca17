//! Queues: how much waits, how long, and how much is being done.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use redis::{Cmd, Value};
use stepfleet_protocol::{
    id::{PartitionId, StreamId},
    keys::{GROUP, slot},
    name::Name,
    workflow::PRIORITY_MAX,
};

use super::{super::client::Client, ClientError, count, reply};
use crate::store::record::ready_score;

/// A queue over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// Steps in ready sets.
    pub ready: u64,
    /// Jobs on streams that nobody has taken.
    pub on_streams: u64,
    /// Jobs that workers have.
    pub pending: u64,
    /// Since when the oldest of what nobody has taken waits, in Unix milliseconds of the server.
    pub oldest_ms: Option<u64>,
    /// Jobs that workers have ever taken, as far as the server counts.
    pub taken: u64,
    /// How long what waits will take at the rate at which jobs were taken of late, in milliseconds. None while nothing is taken,
    /// and at the first look.
    pub drain_ms: Option<u64>,
}

/// How fast the queues go, from looks that are at least [`PACE_MS`] apart.
#[derive(Debug, Default)]
pub(crate) struct Paces(Mutex<BTreeMap<Name, [Look; 2]>>);

/// How many jobs of a queue had been taken by then.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    taken: u64,
}

/// The shortest time that says something about a rate, in milliseconds; two looks in mind are so far apart at least.
const PACE_MS: u128 = 1_000;

impl Paces {
    /// Sets how long each queue will take.
    fn look(&self, queues: &mut BTreeMap<Name, Queue>, at: Instant) {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paces.retain(|name, _| queues.contains_key(name));
        for (name, queue) in queues {
            let now = Look { at, taken: queue.taken };
            let [older, newer] = paces.entry(name.clone()).or_insert([now; 2]);
            // A stream that was made anew is counted anew.
            if now.taken < newer.taken {
                (*older, *newer) = (now, now);
            }
            let (ms, taken) = ((at - older.at).as_millis(), now.taken - older.taken);
            if (at - newer.at).as_millis() >= PACE_MS {
                (*older, *newer) = (*newer, now);
            }
            let depth = u128::from(queue.depth());
            queue.drain_ms = match taken {
                _ if depth == 0 => Some(0),
                taken if taken > 0 && ms >= PACE_MS => u64::try_from(depth * ms / u128::from(taken)).ok(),
                _ => None,
            };
        }
    }
}

impl Queue {
    /// What nobody has taken.
    pub fn depth(&self) -> u64 {
        self.ready + self.on_streams
    }
}

/// Commands for each queue of a partition in the first round.
const LOOKS: usize = 3 + PRIORITY_MAX as usize + 1;

impl Client {
    /// Every queue that was ever used, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queues(&self) -> Result<BTreeMap<Name, Queue>, ClientError> {
        let partitions = self.all_partitions().await?;
        let members = |p: &PartitionId| {
            let mut cmd = redis::cmd("SMEMBERS");
            cmd.arg(self.keys.partition(*p).queues());
            (slot(*p), cmd)
        };
        let replies = self.ask_all(partitions.iter().map(members).collect()).await?;
        let mut places: Vec<(PartitionId, Name)> = Vec::new();
        for (partition, value) in partitions.into_iter().zip(&replies) {
            let names = reply::array(value).unwrap_or_default().iter().filter_map(reply::text);
            places.extend(names.filter_map(|n| Name::new(n).ok()).map(|n| (partition, n)));
        }
        let replies = self.ask_all(places.iter().flat_map(|(p, q)| self.looks(*p, q)).collect()).await?;
        let mut queues: BTreeMap<Name, Queue> = BTreeMap::new();
        let mut streams = Vec::new();
        for ((partition, name), found) in places.iter().zip(replies.chunks_exact(LOOKS)) {
            let queue = queues.entry(name.clone()).or_default();
            queue.ready += count(found.first());
            for (priority, oldest) in (0..=PRIORITY_MAX).zip(&found[3..]) {
                queue.older(ready_since(priority, oldest));
            }
            let group = group(&found[1]);
            queue.pending += group.pending;
            queue.taken += group.taken;
            let waiting = group.lag.unwrap_or_else(|| count(found.get(2)).saturating_sub(group.pending));
            queue.on_streams += waiting;
            if waiting > 0 {
                streams.push((*partition, name.clone(), group.delivered));
            }
        }
        let oldest = |(p, name, delivered): &(PartitionId, Name, StreamId)| {
            let mut cmd = redis::cmd("XRANGE");
            cmd.arg(self.keys.partition(*p).jobs(name)).arg(format!("({delivered}")).arg("+").arg("COUNT").arg(1);
            (slot(*p), cmd)
        };
        let replies = self.ask_all(streams.iter().map(oldest).collect()).await?;
        for ((_, name, _), value) in streams.iter().zip(replies) {
            let since = reply::entries(value).first().map(|(id, _)| id.ms);
            queues.entry(name.clone()).or_default().older(since);
        }
        self.shared.paces.look(&mut queues, Instant::now());
        Ok(queues)
    }

    fn looks(&self, partition: PartitionId, queue: &Name) -> Vec<(u16, Cmd)> {
        let keys = self.keys.partition(partition);
        let mut cmds = vec![redis::cmd("ZCARD"), redis::cmd("XINFO"), redis::cmd("XLEN")];
        cmds[0].arg(keys.ready(queue));
        cmds[1].arg("GROUPS").arg(keys.jobs(queue));
        cmds[2].arg(keys.jobs(queue));
        for priority in 0..=PRIORITY_MAX {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            let (low, high) = (ready_score(priority, 0), ready_score(priority, SCORE_MS_MAX));
            cmd.arg(keys.ready(queue)).arg(low).arg(high).arg("WITHSCORES").arg("LIMIT").arg(0).arg(1);
            cmds.push(cmd);
        }
        cmds.into_iter().map(|cmd| (slot(partition), cmd)).collect()
    }
}

/// The latest time that the score of one priority can hold.
const SCORE_MS_MAX: u64 = (1 << 44) - 1;

fn ready_since(priority: u8, found: &Value) -> Option<u64> {
    let score = reply::array(found)?.get(1).and_then(reply::text)?.parse::<f64>().ok()?;
    Some((score as u64).saturating_sub(ready_score(priority, 0)))
}

impl Queue {
    fn older(&mut self, since: Option<u64>) {
        self.oldest_ms = match (self.oldest_ms, since) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

#[derive(Default)]
struct Group {
    pending: u64,
    taken: u64,
    /// None when the server has lost count.
    lag: Option<u64>,
    delivered: StreamId,
}

/// The workers' group of a stream; an empty one if there is no stream yet.
fn group(found: &Value) -> Group {
    let groups = reply::array(found).unwrap_or_default();
    let ours = groups.iter().find(|g| reply::field(g, "name").and_then(reply::text) == Some(GROUP));
    ours.map_or_else(
        || Group { lag: groups.is_empty().then_some(0), ..Group::default() },
        |g| Group {
            pending: count(reply::field(g, "pending")),
            taken: count(reply::field(g, "entries-read")),
            lag: reply::field(g, "lag").and_then(reply::number).map(|n| n.max(0) as u64),
            delivered: reply::field(g, "last-delivered-id")
                .and_then(reply::text)
                .and_then(|t| t.parse().ok())
                .unwrap_or_default(),
        },
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_waits_takes_as_long_as_the_last_seconds_say() {
        let (paces, name, begun) = (Paces::default(), Name::new("q").expect("a legal name"), Instant::now());
        let look = |secs: u64, ready: u64, taken: u64| {
            let queue = Queue { ready, taken, ..Queue::default() };
            let mut queues = BTreeMap::from([(name.clone(), queue)]);
            paces.look(&mut queues, begun + Duration::from_secs(secs));
            queues[&name].drain_ms
        };
        assert_eq!(look(0, 100, 50), None, "one look is no rate");
        assert_eq!(look(10, 100, 150), Some(10_000), "ten in a second");
        assert_eq!(look(20, 40, 150), Some(8_000), "a hundred in twenty seconds");
        assert_eq!(look(30, 40, 150), None, "nothing is taken any more");
        assert_eq!(look(40, 0, 150), Some(0));
        assert_eq!(look(50, 10, 3), None, "the stream was made anew");
        assert_eq!(look(60, 10, 13), Some(10_000));
    }
}
