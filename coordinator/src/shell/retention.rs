//! What is kept of finished runs, and for how long. Deleting is bounded work of the owner, part of its commits, and what
//! goes is counted.

use redis::Value;
use stepfleet_protocol::{
    id::RunId,
    limits::{CHUNK_STEPS, INLINE_BYTES_MAX},
    state::State,
};

use super::{
    cache::StepInput,
    core::{Core, patch_id},
    inputs::made_id,
};
use crate::store::{
    link::Link,
    partition::{Partition, TurnError},
    record, reply,
};

/// Time between two looks, in milliseconds, when nothing is left to delete.
pub const EVERY_MS: u64 = 10_000;
/// Keys that one commit deletes, about.
const KEYS_PER_COMMIT: usize = 400;
/// Runs that one look considers.
const RUNS_PER_LOOK: usize = 50;

/// What is kept of finished runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long completed, failed and cancelled runs are kept, in milliseconds after their end.
    pub completed_ms: u64,
    /// How many of each are kept in a partition.
    pub runs_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { completed_ms: 90 * 86_400_000, runs_max: 1_000_000 }
    }
}

/// What one look did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Runs that are gone with this commit.
    pub runs: u64,
    /// There is more to delete.
    pub more: bool,
}

/// Stages the deletion of runs beyond retention.
///
/// # Errors
/// The trip's.
pub async fn expire<L: Link>(
    retention: &Retention,
    partition: &mut Partition<L>,
    core: &mut Core,
    now_ms: u64,
) -> Result<Expired, TurnError> {
    let mut out = Expired::default();
    for state in [State::Completed, State::Cancelled, State::Failed] {
        let due = due(retention, partition, state, now_ms).await?;
        out.more |= due.len() == RUNS_PER_LOOK;
        for run in due {
            if core.staged.commit.keys_deleted.len() >= KEYS_PER_COMMIT {
                return Ok(Expired { more: true, ..out });
            }
            // RACE: a command of this very batch reopened it; it is not finished any more.
            if core.staged.touched.contains_key(&run) {
                continue;
            }
            match delete(partition, core, run, state).await? {
                true => out.runs += 1,
                false => return Ok(Expired { more: true, ..out }),
            }
        }
    }
    Ok(out)
}

async fn due<L: Link>(
    retention: &Retention,
    partition: &mut Partition<L>,
    state: State,
    now_ms: u64,
) -> Result<Vec<RunId>, TurnError> {
    let key = partition.keys.runs(state);
    let mut pipe = redis::pipe();
    let before = now_ms.saturating_sub(retention.completed_ms);
    pipe.cmd("ZRANGEBYSCORE").arg(&key).arg("-inf").arg(before).arg("LIMIT").arg(0).arg(RUNS_PER_LOOK);
    pipe.cmd("ZCARD").arg(&key);
    pipe.cmd("ZRANGE").arg(&key).arg(0).arg(RUNS_PER_LOOK - 1);
    let replies = partition.load(&pipe).await?;
    let ids = |value: Option<&Value>| -> Vec<RunId> {
        let members = value.and_then(reply::array).unwrap_or_default();
        members.iter().filter_map(reply::bytes).filter_map(RunId::from_bytes).collect()
    };
    let too_old = ids(replies.first());
    let count = replies.get(1).and_then(reply::number).unwrap_or(0) as u64;
    let beyond = usize::try_from(count.saturating_sub(retention.runs_max)).unwrap_or(usize::MAX);
    let mut oldest = ids(replies.get(2));
    oldest.truncate(beyond.max(too_old.len()));
    Ok(oldest)
}

/// Stages the deletion of one run, or of a part of a large one; then false, and the next commit goes on.
async fn delete<L: Link>(
    partition: &mut Partition<L>,
    core: &mut Core,
    run: RunId,
    state: State,
) -> Result<bool, TurnError> {
    let keys = partition.keys.clone();
    let mut pipe = redis::pipe();
    pipe.cmd("HGET").arg(keys.run(&run)).arg(record::FIELD_RECORD);
    let record = partition.load(&pipe).await?;
    let record = record.first().and_then(reply::bytes).and_then(|b| record::unpack_run(b).ok());
    let Some(record) = record else {
        core.staged.commit.unlisted.entry(state).or_default().push(run);
        return Ok(true);
    };
    core.cache.load_plans(partition, [record.plan.clone()].into()).await?;
    let compiled = core.cache.plans.get(&*record.plan).cloned();
    let steps = compiled.as_ref().map_or(0, |c| c.plan.steps.len() as u32);
    // From the last chunk to the first, so that a run that is gone half-way is still found.
    for chunk in (0..steps.div_ceil(CHUNK_STEPS)).rev() {
        let key = if chunk == 0 { keys.run(&run) } else { keys.chunk(&run, chunk) };
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(&key);
        let fields = partition.load(&pipe).await?.into_iter().next().map(reply::pairs).unwrap_or_default();
        if fields.is_empty() {
            continue;
        }
        for (field, value) in &fields {
            let index: Option<u32> = std::str::from_utf8(field).ok().and_then(|t| t.parse().ok());
            if let (Some(index), Ok(step)) = (index, record::unpack_step(value)) {
                let deleted = &mut core.staged.commit.keys_deleted;
                deleted.extend(step.job.filter(|_| step.has_output).map(|job| keys.value(job)));
                deleted.extend(step.patched.then(|| keys.value(patch_id(run, index))));
                let input = compiled.as_ref().and_then(|c| c.inputs.get(index as usize));
                let may_be_large = match input {
                    Some(StepInput::Static(bytes)) => bytes.len() > INLINE_BYTES_MAX,
                    Some(StepInput::Template(_)) => step.job.is_some(),
                    Some(StepInput::None | StepInput::Whole(_)) | None => false,
                };
                deleted.extend(may_be_large.then(|| keys.value(made_id(run, index))));
            }
        }
        core.staged.commit.keys_deleted.push(key);
        if chunk > 0 && core.staged.commit.keys_deleted.len() >= KEYS_PER_COMMIT {
            return Ok(false);
        }
    }
    let commit = &mut core.staged.commit;
    commit.keys_deleted.extend([keys.run(&run), keys.history(&run), keys.errors(&run)]);
    commit.keys_deleted.extend(record.has_input.then(|| keys.value(run)));
    commit.unlisted.entry(state).or_default().push(run);
    *commit.plan_uses.entry(record.plan).or_default() -= 1;
    *commit.counters.entry("expired_runs").or_default() += 1;
    if let Some(compiled) = compiled {
        commit.unlisted_by_workflow.entry(compiled.plan.workflow.clone()).or_default().push(run);
    }
    core.cache.runs.remove(&run);
    Ok(true)
}
