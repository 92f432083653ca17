//! Plans that no run follows any more: they go aside with the last run, and a grace later they are deleted.
//!
//! Plans are written by submitters, in the MULTI of the log entry that names them, but only if the submitter has not written
//! this one within [`PLAN_AGE_MAX`], and only if the key is not there (`NX`). So two things may never happen: that an entry
//! of the log names a plan that is nowhere, and that a run is accepted whose plan is only in the mind of its owner.
//!
//! RACE: a submitter writes an entry that names a plan while the owner, which has not read the entry, lets the plan go.
//! The submitter wins, whoever comes first:
//!
//! * Before the plan goes aside: its `NX` did nothing, and the commit has moved the plan. The owner that reads the entry,
//!   this one or the next, finds the plan aside, and the commit that accepts the run brings it back ([`PlanMove::Back`]).
//! * After that, writing the plan: its `NX` makes the key anew, and nothing but a new move aside takes that away.
//! * After that, without writing it, because it did so before: then the entry is younger than the move by at most
//!   [`PLAN_AGE_MAX`] and the time of a request. The copy aside is deleted [`GRACE_MS`] after the move at the earliest, and
//!   only by a batch that has read the log to its end and decided it: every entry of that time is decided by then.
//!
//! A submitter that slept between looking at its own memory and writing may still come too late. It is answered `no_plan`,
//! and sends the run again with its plan.
//!
//! The owner that deletes a plan also drops it from its own mind, so that it has to be stored for the next run. Every way of
//! losing the commit ends the reign, and with it what the owner has in mind.

use redis::Value;

use super::Sweep;
use crate::store::{link::Link, partition::TurnError, plans::PlanMove, reply, submit::PLAN_AGE_MAX};

/// How long a plan stays aside, in milliseconds.
pub const GRACE_MS: u64 = 15 * 60_000;
/// Plans that one look considers.
const PLANS_PER_LOOK: usize = 50;

// Beyond what a submitter remembers there is time for its requests.
const _: () = assert!(GRACE_MS as u128 >= PLAN_AGE_MAX.as_millis() + 5 * 60_000, "the grace is too short");

impl<L: Link> Sweep<'_, L> {
    /// Stages that plans go aside whose last run goes with this commit, and the deletion of those that were aside for long.
    pub(super) async fn plans(&mut self) -> Result<(), TurnError> {
        self.set_aside().await?;
        self.delete_plans().await
    }

    async fn set_aside(&mut self) -> Result<(), TurnError> {
        let uses = &self.core.staged.commit.plan_uses;
        let fewer: Vec<(String, i64)> =
            uses.iter().filter(|(_, by)| **by < 0).map(|(plan, by)| (plan.clone(), *by)).collect();
        if fewer.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET").arg(self.partition.keys.plan_uses());
        for (plan, _) in &fewer {
            pipe.arg(plan);
        }
        let replies = self.partition.load(&pipe).await?;
        let stored = replies.first().and_then(reply::array).ok_or(TurnError::Unexpected("HMGET plan-uses"))?;
        for ((plan, by), stored) in fewer.into_iter().zip(stored) {
            if reply::number(stored).unwrap_or(0) + by <= 0 {
                self.core.staged.commit.plan_uses.remove(&plan);
                self.move_aside(plan);
            }
        }
        Ok(())
    }

    fn move_aside(&mut self, plan: String) {
        self.core.cache.aside.insert(plan.as_str().into());
        self.core.staged.commit.plan_moves.insert(plan, PlanMove::Aside { at_ms: self.now_ms });
    }

    async fn delete_plans(&mut self) -> Result<(), TurnError> {
        let keys = self.partition.keys.clone();
        let mut pipe = redis::pipe();
        let before = self.now_ms.saturating_sub(GRACE_MS);
        pipe.cmd("ZRANGEBYSCORE").arg(keys.plans_aside()).arg("-inf").arg(before);
        pipe.arg("LIMIT").arg(0).arg(PLANS_PER_LOOK);
        let replies = self.partition.load(&pipe).await?;
        let due = replies.first().and_then(reply::array).unwrap_or_default();
        self.out.more |= due.len() == PLANS_PER_LOOK;
        let due: Vec<String> = due.iter().filter_map(reply::text).map(str::to_owned).collect();
        if due.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for plan in &due {
            pipe.cmd("EXISTS").arg(keys.plan(plan));
            pipe.cmd("HGET").arg(keys.plan_uses()).arg(plan);
        }
        let replies = self.partition.load(&pipe).await?;
        for (plan, found) in due.into_iter().zip(replies.chunks_exact(2)) {
            self.delete_plan(plan, found);
        }
        Ok(())
    }

    /// Decides about a plan that was aside for long: whether its key is there, and how many runs follow it.
    fn delete_plan(&mut self, plan: String, found: &[Value]) {
        let commit = &mut self.core.staged.commit;
        if commit.plan_moves.contains_key(&plan) {
            // A run of this very batch has brought it back.
            return;
        }
        let written = found.first().and_then(reply::number) == Some(1);
        let uses = found.get(1).and_then(reply::number).unwrap_or(0) + commit.plan_uses.get(&plan).unwrap_or(&0);
        match (uses > 0, written) {
            // It was written anew, and runs follow that.
            (true, true) => {
                self.core.cache.aside.remove(plan.as_str());
                commit.plan_moves.insert(plan, PlanMove::Gone);
            }
            (true, false) => {
                self.core.cache.aside.remove(plan.as_str());
                commit.plan_moves.insert(plan, PlanMove::Back);
            }
            // It was written anew for a run that was refused, or that is still on its way.
            (false, true) => self.move_aside(plan),
            (false, false) => {
                self.core.cache.aside.remove(plan.as_str());
                self.core.cache.plans.remove(plan.as_str());
                commit.plan_moves.insert(plan, PlanMove::Gone);
                self.out.expired.plans += 1;
            }
        }
    }
}
