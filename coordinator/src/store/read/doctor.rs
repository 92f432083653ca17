//! What `doctor` looks at, and what it can put right. Everything is bounded; a look at a large fleet costs some
//! pipelines.

use std::collections::BTreeMap;

use redis::Value;
use stepfleet_connect::{Finding, preflight};
use stepfleet_protocol::{
    beat::Coordinator,
    codec,
    id::{PartitionId, RunId},
    keys::{GROUP, slot, slot_of},
    name::Name,
    state::State,
};

use super::{
    super::{admission::NodeMemory, client::Client},
    ClientError, count,
    fleet::Registered,
    partitions::Seen,
    queues::Queue,
    reply,
};
use crate::{
    machine::event::Timer,
    store::{ask::AskError, outbox::Following, policies, record::pack_timer},
};

/// The oldest open runs of a partition that are looked at.
const RUNS_PER_PARTITION: usize = 50;
/// Open runs that are looked at in all partitions together.
const RUNS_MAX: usize = 1_000;
/// A timer that was due so long ago is late: its owner hangs, or has very much to do.
const LATE_MS: u64 = 30_000;
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
    /// Partitions.
    pub partitions: Vec<Seen>,
    /// The auditor's last walk, by partition.
    pub walks: BTreeMap<u16, Walked>,
    /// Coordinators that were seen lately, by name, with when, in Unix milliseconds of the server.
    pub coordinators: Vec<(String, u64)>,
    /// What each of them says of itself; those of an older version say nothing.
    pub programs: BTreeMap<String, Coordinator>,
    /// Version of the fleet's policies; 0 for none.
    pub policies: u64,
    /// How late the first timer of a partition is, in milliseconds, by partition; those that are not late are left out.
    pub late_ms: BTreeMap<u16, u64>,
    /// Subscribers of events.
    pub followings: Vec<Following>,
    /// Workers.
    pub workers: Vec<Registered>,
    /// Queues.
    pub queues: BTreeMap<Name, Queue>,
    /// Job streams without the workers' group.
    pub without_group: Vec<Stream>,
    /// Consumers whose worker is not registered, for a minute at least.
    pub orphans: Vec<Orphan>,
    /// Open runs whose time-out is not armed.
    pub unarmed: Vec<RunId>,
}

impl Client {
    /// Looks at everything. `host_ms` is this host's time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkup(&self, host_ms: impl Fn() -> u64) -> Result<Checkup, ClientError> {
        let facts = self.redis.facts().await.map_err(|e| AskError::Unavailable(e.to_string()))?;
        let server_ms = self.server_time_ms().await?;
        let clocks_ms = (server_ms, host_ms());
        let partitions = self.see_partitions(0, u16::MAX).await?;
        let workers = self.workers().await?;
        let queues = self.queues().await?;
        let streams = self.streams().await?;
        let (without_group, orphans) = self.groups_and_orphans(&streams, &workers).await?;
        let coordinators = self.coordinators().await?;
        Ok(Checkup {
            programs: self.programs(&coordinators).await?,
            policies: count(Some(&self.fleet(policies::version(&self.keys)).await?)),
            late_ms: self.late_timers(server_ms).await?,
            followings: self.subscribers().await?,
            clocks_ms,
            servers: preflight(&facts, false),
            memory: self.memory(),
            walks: self.walks().await?,
            coordinators,
            unarmed: self.unarmed(server_ms).await?,
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

    async fn coordinators(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let key = self.keys.coordinators();
        let mut range = redis::cmd("ZRANGE");
        range.arg(&key).arg(0).arg(-1).arg("WITHSCORES");
        let found = self.ask_all(vec![(slot_of(key.as_bytes()), range)]).await?;
        let items = found.first().and_then(reply::array).unwrap_or_default();
        let pair = |pair: &[Value]| Some((reply::text(&pair[0])?.to_owned(), reply::score(&pair[1])?));
        Ok(items.chunks_exact(2).filter_map(pair).collect())
    }

    async fn programs(&self, names: &[(String, u64)]) -> Result<BTreeMap<String, Coordinator>, ClientError> {
        let look = |(name, _): &(String, u64)| {
            let key = self.keys.coordinator(name);
            let mut get = redis::cmd("GET");
            get.arg(&key);
            (slot_of(key.as_bytes()), get)
        };
        let replies = self.ask_all(names.iter().map(look).collect()).await?;
        let read = |value: &Value| codec::unpack(reply::bytes(value)?).ok();
        Ok(names.iter().zip(&replies).filter_map(|((name, _), value)| Some((name.clone(), read(value)?))).collect())
    }

    async fn late_timers(&self, now_ms: u64) -> Result<BTreeMap<u16, u64>, ClientError> {
        let partitions = self.all_partitions().await?;
        let look = |p: &PartitionId| {
            let mut range = redis::cmd("ZRANGE");
            range.arg(self.keys.partition(*p).timers()).arg(0).arg(0).arg("WITHSCORES");
            (slot(*p), range)
        };
        let replies = self.ask_all(partitions.iter().map(look).collect()).await?;
        let due = |value: &Value| reply::score(reply::array(value)?.get(1)?);
        let late = |(p, value): (PartitionId, &Value)| Some((p.0, now_ms.checked_sub(due(value)?)?));
        Ok(partitions.into_iter().zip(&replies).filter_map(late).filter(|(_, late)| *late > LATE_MS).collect())
    }

    /// Open runs that are older than their time-out and have no timer for it: nothing would ever end them.
    async fn unarmed(&self, now_ms: u64) -> Result<Vec<RunId>, ClientError> {
        let (mut out, mut looked_at) = (Vec::new(), 0);
        for partition in self.all_partitions().await? {
            if looked_at >= RUNS_MAX {
                break;
            }
            let keys = self.keys.partition(partition);
            let mut range = redis::cmd("ZRANGE");
            range.arg(keys.runs(State::Processing)).arg(0).arg(RUNS_PER_PARTITION - 1);
            let found = self.ask_partition(partition, range).await?;
            for member in reply::array(&found).unwrap_or_default() {
                let Some(id) = reply::bytes(member).and_then(RunId::from_bytes) else { continue };
                looked_at += 1;
                let Some(run) = self.run(id).await? else { continue };
                let limit = run.workflow.as_ref().map_or(0, |workflow| workflow.timeout.0);
                if limit == 0 || now_ms.saturating_sub(id.created_ms()) < limit || run.record.ending.is_some() {
                    continue;
                }
                let mut score = redis::cmd("ZSCORE");
                score.arg(keys.timers()).arg(pack_timer(id, Timer::Run));
                if self.ask_partition(partition, score).await? == Value::Nil && !run.record.state.is_finished() {
                    out.push(id);
                }
            }
        }
        Ok(out)
    }
}
