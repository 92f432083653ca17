//! What `doctor` looks at, and what it can put right. Everything is bounded; a look at a large fleet costs some
//! pipelines.

mod clockwork;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;
use stepfleet_connect::{Finding, preflight};
use stepfleet_protocol::{
    beat::CoordinatorBeat,
    id::PartitionId,
    keys::{GROUP, slot},
    name::Name,
};

pub use self::{
    clockwork::{LateTimers, Untimed},
    sweep::Sweep,
};
use super::{
    super::{admission::NodeMemory, client::Client},
    ClientError, count,
    fleet::Registered,
    partitions::Seen,
    queues::Queue,
    reply,
};
use crate::store::{ask::AskError, outbox::Following};

/// A consumer of an unknown worker is done with after so long, in milliseconds.
const LEFT_AFTER_MS: u64 = 60_000;

/// A job stream, or a consumer of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The partition.
    pub partition: PartitionId,
    /// The queue.
    pub queue: Name,
}

/// A consumer whose worker is not registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its stream.
    pub stream: Stream,
    /// Its name.
    pub worker: String,
    /// What is pending at it.
    pub pending: u64,
}

/// What the auditor's last walk over a partition found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walked {
    /// When it ended, in Unix milliseconds of the server; 0 for never.
    pub at_ms: u64,
    /// Runs it looked at.
    pub runs: u64,
    /// Steps that were in no place in its first look.
    pub suspects: u64,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default)]
pub struct Checkup {
    /// The server's time in Unix milliseconds, and this host's at the same moment.
    pub clocks_ms: (u64, u64),
    /// What is wrong with the servers' settings.
    pub servers: Vec<Finding>,
    /// Memory by node.
    pub memory: Vec<NodeMemory>,
    /// Partitions that pause, as their slots are on their way to other nodes. Nothing else here is about them.
    pub paused: BTreeSet<PartitionId>,
    /// Partitions.
    pub partitions: Vec<Seen>,
    /// The auditor's last walk, by partition.
    pub walks: BTreeMap<u16, Walked>,
    /// Coordinators that live, by name, with what each says of itself; an older program says nothing.
    pub coordinators: BTreeMap<String, Option<CoordinatorBeat>>,
    /// The newest version of the fleet's policies; 0 before there are any.
    pub policies: u64,
    /// Subscribers, of the outbox of every partition and of the fleet's feed.
    pub following: Vec<Following>,
    /// Partitions with timers that are late.
    pub late: Vec<LateTimers>,
    /// Workers.
    pub workers: Vec<Registered>,
    /// Queues.
    pub queues: BTreeMap<Name, Queue>,
    /// Job streams without the workers' group.
    pub without_group: Vec<Stream>,
    /// Consumers whose worker is not registered, for a minute at least.
    pub orphans: Vec<Orphan>,
    /// Open runs that no timer would end.
    pub untimed: Untimed,
}

impl Client {
    /// Looks at everything. `host_ms` is this host's time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkup(&self, host_ms: impl Fn() -> u64) -> Result<Checkup, ClientError> {
        let paused = self.paused().await?;
        let found = self.without(&paused).checkup_of_the_rest(host_ms).await?;
        Ok(Checkup { paused, ..found })
    }

    async fn checkup_of_the_rest(&self, host_ms: impl Fn() -> u64) -> Result<Checkup, ClientError> {
        let facts = self.redis.facts().await.map_err(|e| AskError::Unavailable(e.to_string()))?;
        let server_ms = self.server_time_ms().await?;
        let clocks_ms = (server_ms, host_ms());
        let partitions = self.see_partitions(0, u16::MAX).await?;
        let workers = self.workers().await?;
        let queues = self.queues().await?;
        let streams = self.streams().await?;
        let (without_group, orphans) = self.groups_and_orphans(&streams, &workers).await?;
        Ok(Checkup {
            clocks_ms,
            paused: BTreeSet::new(),
            servers: preflight(&facts, false),
            memory: self.memory(),
            walks: self.walks().await?,
            coordinators: self.coordinators(server_ms).await?,
            policies: self.policies_version().await?,
            following: self.subscribers().await?,
            late: self.late_timers(server_ms).await?,
            untimed: self.untimed(server_ms).await?,
            partitions,
            workers,
            queues,
            without_group,
            orphans,
        })
    }

    async fn streams(&self) -> Result<Vec<Stream>, ClientError> {
        let partitions = self.all_partitions().await?;
        let members = |p: &PartitionId| {
            let mut cmd = redis::cmd("SMEMBERS");
            cmd.arg(self.keys.partition(*p).queues());
            (slot(*p), cmd)
        };
        let replies = self.ask_all(partitions.iter().map(members).collect()).await?;
        let mut streams = Vec::new();
        for (partition, value) in partitions.into_iter().zip(&replies) {
            let names = reply::array(value).unwrap_or_default().iter().filter_map(reply::text);
            streams.extend(names.filter_map(|n| Name::new(n).ok()).map(|queue| Stream { partition, queue }));
        }
        Ok(streams)
    }

    async fn groups_and_orphans(
        &self,
        streams: &[Stream],
        workers: &[Registered],
    ) -> Result<(Vec<Stream>, Vec<Orphan>), ClientError> {
        let look = |stream: &Stream| {
            let key = self.keys.partition(stream.partition).jobs(&stream.queue);
            let (mut size, mut groups, mut consumers) = (redis::cmd("XLEN"), redis::cmd("XINFO"), redis::cmd("XINFO"));
            size.arg(&key);
            groups.arg("GROUPS").arg(&key);
            consumers.arg("CONSUMERS").arg(&key).arg(GROUP);
            [size, groups, consumers].map(|cmd| (slot(stream.partition), cmd))
        };
        let replies = self.ask_all(streams.iter().flat_map(look).collect()).await?;
        let (mut without, mut orphans) = (Vec::new(), Vec::new());
        for (stream, found) in streams.iter().zip(replies.chunks_exact(3)) {
            if count(found.first()) > 0 && reply::group(&found[1], GROUP).is_none() {
                without.push(stream.clone());
            }
            for consumer in reply::array(&found[2]).unwrap_or_default() {
                let name = reply::field(consumer, "name").and_then(reply::text).unwrap_or_default();
                let idle = count(reply::field(consumer, "idle"));
                if idle > LEFT_AFTER_MS && !workers.iter().any(|worker| worker.id.as_str() == name) {
                    let pending = count(reply::field(consumer, "pending"));
                    orphans.push(Orphan { stream: stream.clone(), worker: name.to_owned(), pending });
                }
            }
        }
        Ok((without, orphans))
    }

    async fn walks(&self) -> Result<BTreeMap<u16, Walked>, ClientError> {
        let partitions = self.all_partitions().await?;
        let look = |p: &PartitionId| {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(self.keys.partition(*p).audited()).arg("at_ms").arg("runs").arg("suspects");
            (slot(*p), cmd)
        };
        let replies = self.ask_all(partitions.iter().map(look).collect()).await?;
        let walked = |(partition, value): (PartitionId, &Value)| {
            let fields = reply::array(value).unwrap_or_default();
            let number = |at: usize| count(fields.get(at));
            (partition.0, Walked { at_ms: number(0), runs: number(1), suspects: number(2) })
        };
        Ok(partitions.into_iter().zip(&replies).map(walked).collect())
    }
}
