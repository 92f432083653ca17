//! Timers that a batch sets and clears. Of one member the last word counts.

use stepfleet_protocol::id::RunId;

use super::Core;
use crate::{machine::event::Timer, mutants::mutant, store::record};

impl Core {
    /// Arms the time-out of a run: that of one that was just submitted is kept in mind while it is young. The history tells
    /// the next owner when that was; a time-out that begins anew is written at once.
    pub(super) fn arm_run(&mut self, id: RunId, due_ms: u64) {
        self.schedule.young.forget(id);
        let touched = &self.staged.touched[&id];
        let timeout_ms = self.cache.runs[&id].plan.timeout_ms;
        let began_ms = touched.transitions.first().map(|first| first.at_ms).filter(|_| touched.was.is_none());
        let first = began_ms.is_some_and(|began_ms| began_ms + timeout_ms == due_ms);
        if !(first && self.schedule.young.keep(id, due_ms, self.now_ms)) {
            self.store_timer(id, Timer::Run, due_ms);
        }
    }

    /// Puts a timer among the timers.
    pub fn store_timer(&mut self, run: RunId, timer: Timer, due_ms: u64) {
        let (member, commit) = (record::pack_timer(run, timer), &mut self.staged.commit);
        self.schedule.timers.set(due_ms, member.clone());
        commit.timers_cleared.retain(|m| *m != member);
        commit.timers_set.extend((!mutant("timer_kept_in_mind_only")).then_some((due_ms, member)));
    }

    pub(super) fn clear_timer(&mut self, run: RunId, timer: Timer) {
        if timer == Timer::Run && self.schedule.young.forget(run) {
            // It was in mind only.
            return;
        }
        let (member, commit) = (record::pack_timer(run, timer), &mut self.staged.commit);
        self.schedule.timers.clear(&member);
        commit.timers_set.retain(|(_, m)| *m != member);
        commit.timers_cleared.push(member);
    }
}
