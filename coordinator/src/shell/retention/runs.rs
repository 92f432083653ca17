//! Finished runs beyond age or number, with everything that is theirs. A large one goes piece by piece, its record last.

use redis::Value;
use stepfleet_protocol::{
    codec,
    id::RunId,
    limits::{CHUNK_STEPS, INLINE_BYTES_MAX},
    state::State,
};

use super::{
    super::{
        cache::{Compiled, StepInput},
        core::patch_id,
        inputs::made_id,
    },
    Sweep,
};
use crate::{
    machine::run::{AttemptError, Step},
    store::{link::Link, partition::TurnError, record, reply},
};

/// Runs of a listing that one look considers.
const RUNS_PER_LOOK: usize = 50;
/// Failed attempts of one run whose values one commit deletes: an attempt may have 76 KiB.
const ERRORS_PER_COMMIT: usize = 50;

impl<L: Link> Sweep<'_, L> {
    /// Stages the deletion of runs.
    pub(super) async fn runs(&mut self) -> Result<(), TurnError> {
        for state in [State::Completed, State::Cancelled, State::Failed] {
            let due = self.due_runs(state).await?;
            self.out.more |= due.len() == RUNS_PER_LOOK;
            for run in due {
                // RACE: a command of this very batch reopened it; it is not finished any more.
                if self.core.staged.touched.contains_key(&run) {
                    continue;
                }
                if self.is_full() || !self.delete(run, state).await? {
                    self.out.more = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn due_runs(&mut self, state: State) -> Result<Vec<RunId>, TurnError> {
        let key = self.partition.keys.runs(state);
        let mut pipe = redis::pipe();
        let before = self.now_ms.saturating_sub(self.retention.completed_ms);
        pipe.cmd("ZRANGEBYSCORE").arg(&key).arg("-inf").arg(before).arg("LIMIT").arg(0).arg(RUNS_PER_LOOK);
        pipe.cmd("ZCARD").arg(&key);
        pipe.cmd("ZRANGE").arg(&key).arg(0).arg(RUNS_PER_LOOK - 1);
        let replies = self.partition.load(&pipe).await?;
        let ids = |value: Option<&Value>| -> Vec<RunId> {
            let members = value.and_then(reply::array).unwrap_or_default();
            members.iter().filter_map(reply::bytes).filter_map(RunId::from_bytes).collect()
        };
        let too_old = ids(replies.first());
        let count = replies.get(1).and_then(reply::number).unwrap_or(0) as u64;
        let beyond = usize::try_from(count.saturating_sub(self.retention.runs_max)).unwrap_or(usize::MAX);
        let mut oldest = ids(replies.get(2));
        oldest.truncate(beyond.max(too_old.len()));
        Ok(oldest)
    }

    /// Stages the deletion of one run, or of a part of a large one; then false, and the next commit goes on.
    async fn delete(&mut self, run: RunId, state: State) -> Result<bool, TurnError> {
        let keys = self.partition.keys.clone();
        let mut pipe = redis::pipe();
        pipe.cmd("HGET").arg(keys.run(&run)).arg(record::FIELD_RECORD);
        let record = self.partition.load(&pipe).await?;
        let record = record.first().and_then(reply::bytes).and_then(|b| record::unpack_run(b).ok());
        let Some(record) = record else {
            self.core.staged.commit.unlisted.entry(state).or_default().push(run);
            self.out.expired.runs += 1;
            return Ok(true);
        };
        self.core.cache.load_plans(self.partition, [record.plan.clone()].into()).await?;
        let compiled = self.core.cache.plans.get(&*record.plan).cloned();
        let steps = compiled.as_ref().map_or(0, |c| c.plan.steps.len() as u32);
        // From the last chunk to the first, so that a run that is gone half-way is still found.
        for chunk in (0..steps.div_ceil(CHUNK_STEPS)).rev() {
            let key = if chunk == 0 { keys.run(&run) } else { keys.chunk(&run, chunk) };
            let mut pipe = redis::pipe();
            pipe.cmd("HGETALL").arg(&key);
            let fields = self.partition.load(&pipe).await?.into_iter().next().map(reply::pairs).unwrap_or_default();
            if fields.is_empty() {
                continue;
            }
            for (field, value) in &fields {
                let index: Option<u32> = std::str::from_utf8(field).ok().and_then(|t| t.parse().ok());
                if let (Some(index), Ok(step)) = (index, record::unpack_step(value)) {
                    self.delete_step(run, (index, &step), compiled.as_deref());
                }
            }
            if chunk > 0 {
                self.core.staged.commit.keys_deleted.push(key);
                if self.is_full() {
                    return Ok(false);
                }
            }
        }
        if !self.delete_errors(run).await? {
            return Ok(false);
        }
        let commit = &mut self.core.staged.commit;
        let own = [keys.run(&run), keys.history(&run), keys.errors(&run), keys.calls(&run), keys.letter_counts(&run)];
        commit.keys_deleted.extend(own);
        commit.keys_deleted.extend(record.has_input.then(|| keys.value(run)));
        commit.unlisted.entry(state).or_default().push(run);
        *commit.plan_uses.entry(record.plan).or_default() -= 1;
        if let Some(compiled) = compiled {
            commit.unlisted_by_workflow.entry(compiled.plan.workflow.clone()).or_default().push(run);
        }
        self.core.cache.runs.remove(&run);
        self.out.expired.runs += 1;
        Ok(true)
    }

    /// Stages the deletion of what failed attempts left under the ids of their jobs, a page of them in one commit; false if
    /// there are more.
    async fn delete_errors(&mut self, run: RunId) -> Result<bool, TurnError> {
        let mut pipe = redis::pipe();
        pipe.cmd("LRANGE").arg(self.partition.keys.errors(&run)).arg(0).arg(ERRORS_PER_COMMIT - 1);
        let replies = self.partition.load(&pipe).await?;
        let errors = replies.first().and_then(reply::array).unwrap_or_default();
        let jobs = errors.iter().filter_map(reply::bytes).filter_map(|b| codec::unpack::<AttemptError>(b).ok());
        let keys = &self.partition.keys;
        let commit = &mut self.core.staged.commit;
        commit.keys_deleted.extend(jobs.map(|error| keys.value(error.job)));
        let all = errors.len() < ERRORS_PER_COMMIT;
        if !all {
            commit.errors_dropped.push((run, errors.len()));
        }
        Ok(all)
    }

    /// Stages the deletion of a step's values, and closes its dead letter.
    fn delete_step(&mut self, run: RunId, (index, step): (u32, &Step), compiled: Option<&Compiled>) {
        let keys = &self.partition.keys;
        if let Some(letter) = step.letter {
            self.core.staged.closing.push(letter);
            self.out.expired.letters += 1;
        }
        let deleted = &mut self.core.staged.commit.keys_deleted;
        deleted.extend(step.job.filter(|_| step.has_output).map(|job| keys.value(job)));
        deleted.extend(step.patched.then(|| keys.value(patch_id(run, index))));
        let may_be_large = match compiled.and_then(|c| c.inputs.get(index as usize)) {
            Some(StepInput::Static(bytes)) => bytes.len() > INLINE_BYTES_MAX,
            Some(StepInput::Template(_)) => step.job.is_some(),
            Some(StepInput::None | StepInput::Whole(_)) | None => false,
        };
        deleted.extend(may_be_large.then(|| keys.value(made_id(run, index))));
    }
}
