//! Whether time does its work: timers that are late, runs that no timer would end, coordinators and what they decide with.

use std::collections::BTreeMap;

use redis::Value;
use stepfleet_protocol::{
    beat::CoordinatorBeat,
    codec,
    id::{PartitionId, RunId},
    keys::{slot, slot_of},
    state::State,
};

use super::super::{super::client::Client, ClientError, count, reply};
use crate::{
    machine::{event::Timer, run::Undoing},
    store::{ask, policies, record::pack_timer, young},
};

/// The oldest open runs of a partition that are looked at.
const RUNS_PER_PARTITION: usize = 50;
/// Open runs that are looked at in all partitions together.
const RUNS_MAX: usize = 1_000;
/// A run without a time-out that has been open for longer is worth a word, in milliseconds.
const LONG_MS: u64 = 3_600_000;
/// A timer that was due so long ago is late, in milliseconds: an owner that takes over needs a few seconds.
const LATE_MS: u64 = 10_000;
/// A coordinator that was not seen for longer does not live, in milliseconds.
const SEEN_MS: u64 = 5_000;

/// Timers of a partition that should have been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateTimers {
    /// The partition.
    pub partition: PartitionId,
    /// How many are late by ten seconds or more.
    pub count: u64,
    /// How late the oldest is, in milliseconds.
    pub late_ms: u64,
}

/// Open runs that no timer would end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Untimed {
    /// They have a time-out that should be among the timers, and it is not.
    pub lost: Vec<RunId>,
    /// They have none, and are open for more than an hour.
    pub endless: Vec<RunId>,
}

impl Client {
    /// Partitions with timers that are late at `now_ms`.
    pub(super) async fn late_timers(&self, now_ms: u64) -> Result<Vec<LateTimers>, ClientError> {
        let partitions = self.all_partitions().await?;
        let looks = partitions.iter().flat_map(|partition| {
            let key = self.keys.partition(*partition).timers();
            let (mut late, mut first) = (redis::cmd("ZCOUNT"), redis::cmd("ZRANGE"));
            late.arg(&key).arg("-inf").arg(now_ms.saturating_sub(LATE_MS));
            first.arg(&key).arg(0).arg(0).arg("WITHSCORES");
            [(slot(*partition), late), (slot(*partition), first)]
        });
        let replies = self.ask_all(looks.collect()).await?;
        let late = |(partition, pair): (PartitionId, &[Value])| {
            let due_ms = reply::array(&pair[1])?.get(1).and_then(reply::score)?;
            let late = LateTimers { partition, count: count(pair.first()), late_ms: now_ms.saturating_sub(due_ms) };
            (late.count > 0).then_some(late)
        };
        Ok(partitions.into_iter().zip(replies.chunks_exact(2)).filter_map(late).collect())
    }

    /// The oldest open runs that no timer would end.
    pub(super) async fn untimed(&self, now_ms: u64) -> Result<Untimed, ClientError> {
        let (mut out, mut looked_at) = (Untimed::default(), 0);
        for partition in self.all_partitions().await? {
            if looked_at >= RUNS_MAX {
                break;
            }
            let ask = young::ask(&self.keys.partition(partition));
            let timed_to = young::stored_to(&self.ask_partition(partition, ask).await?);
            let untimed = self.without_timer(partition, &mut looked_at).await?;
            // The run is read behind its timer: one that has ended or begun to stop meanwhile says so.
            for id in untimed {
                let Some(run) = self.run(id).await? else { continue };
                let Some(limit) = run.workflow.as_ref().map(|workflow| workflow.timeout.0) else { continue };
                let record = &run.record;
                let stops = record.ending.is_some() || record.undoing != Undoing::None;
                if record.state.is_finished() || stops || record.finished_ms > 0 {
                    continue;
                }
                if limit > 0 {
                    out.lost.extend(young::is_stored(id.created_ms(), limit, timed_to).then_some(id));
                } else if now_ms.saturating_sub(id.created_ms()) > LONG_MS {
                    out.endless.push(id);
                }
            }
        }
        Ok(out)
    }

    /// Those of the oldest open runs of a partition whose time-out is not among the timers.
    async fn without_timer(&self, partition: PartitionId, looked_at: &mut usize) -> Result<Vec<RunId>, ClientError> {
        let keys = self.keys.partition(partition);
        let mut range = redis::cmd("ZRANGE");
        range.arg(keys.runs(State::Processing)).arg(0).arg(RUNS_PER_PARTITION - 1);
        let found = self.ask_partition(partition, range).await?;
        let members = reply::array(&found).unwrap_or_default().iter();
        let ids: Vec<RunId> = members.filter_map(reply::bytes).filter_map(RunId::from_bytes).collect();
        *looked_at += ids.len();
        let score = |id: &RunId| {
            let mut cmd = redis::cmd("ZSCORE");
            cmd.arg(keys.timers()).arg(pack_timer(*id, Timer::Run));
            (slot(partition), cmd)
        };
        let timers = self.ask_all(ids.iter().map(score).collect()).await?;
        Ok(ids.into_iter().zip(timers).filter(|(_, timer)| *timer == Value::Nil).map(|(id, _)| id).collect())
    }

    /// The newest version of the fleet's policies.
    pub(super) async fn policies_version(&self) -> Result<u64, ClientError> {
        let found = ask::one(&self.redis, &self.keys.fleet_policies(), policies::version(&self.keys)).await?;
        Ok(count(Some(&found)))
    }

    /// The coordinators that live at `now_ms`, with what each says of itself.
    pub async fn coordinators(&self, now_ms: u64) -> Result<BTreeMap<String, Option<CoordinatorBeat>>, ClientError> {
        let key = self.keys.coordinators();
        let slot = slot_of(key.as_bytes());
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(&key).arg(now_ms.saturating_sub(SEEN_MS)).arg("+inf");
        let found = self.ask_all(vec![(slot, range)]).await?;
        let members = found.first().and_then(reply::array).unwrap_or_default().iter();
        let names: Vec<String> = members.filter_map(reply::text).map(str::to_owned).collect();
        let get = |name: &String| {
            let mut cmd = redis::cmd("GET");
            cmd.arg(self.keys.coordinator(name));
            (slot, cmd)
        };
        let beats = self.ask_all(names.iter().map(get).collect()).await?;
        let said = |(name, value): (String, Value)| (name, reply::bytes(&value).and_then(|b| codec::unpack(b).ok()));
        Ok(names.into_iter().zip(beats).map(said).collect())
    }
}
