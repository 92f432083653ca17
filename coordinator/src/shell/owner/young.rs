//! The time-outs of young runs in the owner's loop: they are stored when their runs are old enough, and a new owner stores
//! those that the last one kept in mind only.

use std::collections::{BTreeSet, VecDeque};

use redis::Value;
use stepfleet_protocol::{id::RunId, state::State};

use super::{BATCH_ITEMS_MAX, Gathered, Owner, OwnerError, Sealed};
use crate::{
    machine::{event::Timer, run::Undoing},
    mutants::mutant,
    shell::young::Young,
    store::{
        history, kept,
        link::Link,
        partition::{Partition, TurnError},
        record::{self, RecordError, RunRecord},
        reply,
        young::is_stored,
    },
};

/// Ids of one read.
const IDS_PER_READ: usize = 2_000;
/// Runs of one look: a thousand short reads, and as many timers in its commit at most as it has runs.
const RUNS_PER_LOOK: usize = 300;
/// Time-outs that an owner who leaves stores in one turn: a few milliseconds of the server.
const LEAVING_PER_TURN: usize = 2_000;
/// The first bytes of a history tell when it began.
const HISTORY_BYTES: usize = 511;

/// Finds the open runs whose time-outs the last owner may have kept in mind only. Nobody writes the listings meanwhile, so
/// the pages fit together.
pub(super) async fn load<L: Link>(partition: &mut Partition<L>) -> Result<Young, TurnError> {
    let stored_to = partition.head.timed_to;
    let mut found = BTreeSet::new();
    for state in [State::Processing, State::Suspended] {
        let Some(to) = stored_to.filter(|_| !mutant("young_time_out_forgotten")) else { break };
        // The score where the next page begins, and how many with that score are read.
        let (mut from, mut read) = (to, 0);
        loop {
            let mut pipe = redis::pipe();
            pipe.cmd("ZRANGEBYSCORE").arg(partition.keys.runs(state)).arg(from).arg("+inf").arg("WITHSCORES");
            pipe.arg("LIMIT").arg(read).arg(IDS_PER_READ);
            let replies = partition.load(&pipe).await?;
            let page = replies.first().and_then(reply::array).unwrap_or_default().chunks_exact(2);
            let scores: Vec<u64> = page.clone().filter_map(|pair| reply::score(&pair[1])).collect();
            found.extend(page.filter_map(|pair| reply::bytes(&pair[0]).and_then(RunId::from_bytes)));
            let Some(last) = scores.last().filter(|_| scores.len() == IDS_PER_READ) else { break };
            let same = scores.iter().rev().take_while(|score| *score == last).count();
            (from, read) = (*last, if *last == from { read + same } else { same });
        }
    }
    Ok(Young::new(stored_to, VecDeque::from_iter(found)))
}

impl<L: Link> Owner<L> {
    /// The next batch, when nothing is on its way: a look at some of the last owner's runs comes before it.
    pub(super) async fn gather_anew(&mut self) -> Result<Option<Gathered>, OwnerError> {
        self.look_at_unseen().await?;
        self.gather(self.partition.head.offset)
    }

    /// Stages the time-outs of runs that are old enough.
    pub(super) fn store_grown(&mut self) {
        let now_ms = self.server_ms.max(self.core.now_ms);
        for (run, due_ms) in self.core.schedule.young.grown(now_ms, BATCH_ITEMS_MAX) {
            self.core.store_timer(run, Timer::Run, due_ms);
        }
    }

    /// Has the next turn store time-outs that are in mind only, whatever the age of their runs: whoever comes next has less
    /// to look at, and may be of an older program, which does not look.
    pub(super) async fn store_young(&mut self) -> Result<(), OwnerError> {
        for (run, due_ms) in self.core.schedule.young.grown(u64::MAX, LEAVING_PER_TURN) {
            self.core.store_timer(run, Timer::Run, due_ms);
        }
        let mut commit = self.core.seal();
        commit.offset = self.partition.head.offset;
        if commit.is_empty() {
            return Ok(());
        }
        self.send_next(Sealed { commit: Some(commit), ..Sealed::default() }).await
    }

    /// Looks at runs of the last owner, and stages the time-outs that are not among the timers. Everything that was decided is
    /// committed, so what is read is how they stand.
    async fn look_at_unseen(&mut self) -> Result<(), OwnerError> {
        let runs = self.core.schedule.young.next_unseen(RUNS_PER_LOOK);
        if runs.is_empty() {
            return Ok(());
        }
        let keys = &self.partition.keys;
        let mut pipe = redis::pipe();
        for run in &runs {
            pipe.cmd("ZSCORE").arg(keys.timers()).arg(record::pack_timer(*run, Timer::Run));
            pipe.cmd("HMGET").arg(keys.run(run)).arg(record::FIELD_RECORD).arg(kept::field(0));
            pipe.cmd("GETRANGE").arg(keys.history(run)).arg(0).arg(HISTORY_BYTES);
        }
        let replies = self.partition.load(&pipe).await?;
        let mut untimed = Vec::new();
        for (run, found) in runs.into_iter().zip(replies.chunks_exact(3)) {
            untimed.extend(untimed_run(run, found)?);
        }
        let plans = untimed.iter().map(|(.., record)| record.plan.clone()).collect();
        self.core.cache.load_plans(&mut self.partition, plans).await?;
        for (run, began_ms, record) in untimed {
            let plan = self.core.cache.plans.get(&*record.plan);
            let timeout_ms = plan.map_or(0, |compiled| compiled.plan.timeout_ms);
            if !is_stored(run.created_ms(), timeout_ms, self.partition.head.timed_to) {
                self.core.store_timer(run, Timer::Run, began_ms + timeout_ms);
            }
        }
        Ok(())
    }
}

/// When the run began, with its record; none if it needs no time-out or has one, as a run has that goes on with a fresh one.
/// One that cannot be read is quarantined when something happens to it.
fn untimed_run(run: RunId, found: &[Value]) -> Result<Option<(RunId, u64, RunRecord)>, OwnerError> {
    let fields = reply::array(&found[1]).unwrap_or_default();
    let Some(packed) = fields.first().and_then(reply::bytes).filter(|_| found[0] == Value::Nil) else {
        return Ok(None);
    };
    let record = match record::unpack_run(packed) {
        Ok(record) => record,
        Err(RecordError::Newer { version, .. }) => return Err(OwnerError::Newer(version)),
        Err(_) => return Ok(None),
    };
    let goes_on = !record.state.is_finished() && record.finished_ms == 0;
    let armed = goes_on && record.ending.is_none() && record.undoing == Undoing::None;
    let history = fields.get(1).and_then(reply::bytes).or_else(|| reply::bytes(&found[2]));
    let began_ms = history.and_then(history::began_ms).unwrap_or(run.created_ms());
    Ok(armed.then_some((run, began_ms, record)))
}
