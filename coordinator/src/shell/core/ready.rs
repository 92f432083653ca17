//! Where a ready step goes: to the stream at once, or to the ready set of its queue.

use stepfleet_protocol::{id::RunId, name::Name};

use super::{Core, Dispatch};
use crate::{machine::event::Event, mutants::mutant, store::record};

impl Core {
    pub(super) fn ready(&mut self, id: RunId, index: u32) {
        if let Some(gate) = self.parking.take() {
            return self.park(id, index, &gate);
        }
        self.place(id, index, false);
    }

    /// Releases a ready step at once, or keeps it in the ready set or at its gate.
    pub(super) fn place(&mut self, id: RunId, index: u32, was_parked: bool) {
        if let Some(gate) = self.is_held_back(id, index, was_parked) {
            return self.park(id, index, &gate);
        }
        let run = &self.cache.runs[&id];
        let step = &run.plan.steps[index as usize];
        let (queue, priority) = (step.queue.clone(), step.priority);
        if !self.full && (self.schedule.passes(&queue) || self.inherits(&queue, priority)) {
            self.release(id, index, was_parked);
            return;
        }
        let q = self.schedule.queue(&queue);
        q.ready += 1;
        q.urgent = q.urgent.max(priority);
        let member = (record::ready_score(priority, self.now_ms), record::pack_ready(id, index));
        let ready = self.staged.commit.ready_added.entry(queue).or_default();
        ready.extend((!mutant("ready_step_dropped")).then_some(member));
    }

    /// A step may take the place of the job whose result made it ready, ahead of waiting steps that are not more urgent: a
    /// run that has a slot keeps it, and a chain does not go through the ready set step by step. One place, one heir, so
    /// that a wide graph cannot take the queue over.
    fn inherits(&mut self, queue: &Name, priority: u8) -> bool {
        let free = self.freed.as_ref() == Some(queue) && !self.schedule.is_paused(queue);
        let heir = free && self.schedule.queue(queue).urgent <= priority;
        if heir {
            self.freed = None;
        }
        heir
    }

    pub(super) fn unready(&mut self, id: RunId, index: u32) {
        let queue = self.cache.runs[&id].plan.steps[index as usize].queue.clone();
        let member = record::pack_ready(id, index);
        let q = self.schedule.queue(&queue);
        q.ready = q.ready.saturating_sub(1);
        if let Some(added) = self.staged.commit.ready_added.get_mut(&queue) {
            added.retain(|(_, m)| *m != member);
        }
        self.staged.commit.ready_removed.entry(queue).or_default().push(member);
        self.leave_gate(id, index);
    }

    /// Takes a dispatch back: its step waits in the ready set for a later batch.
    pub fn defer(&mut self, dispatch: &mut Dispatch) {
        self.full = true;
        self.recall(dispatch);
        self.event(dispatch.run, Event::Deferred { index: dispatch.index, job: dispatch.job });
    }

    /// The job of a dispatch does not come to the stream: its place there and its leave are others'.
    pub fn recall(&mut self, dispatch: &mut Dispatch) {
        let queue = dispatch.queue(&self.cache.runs[&dispatch.run]);
        let q = self.schedule.queue(&queue);
        q.outstanding = q.outstanding.saturating_sub(1);
        if let Some(leave) = dispatch.leave.take() {
            self.gates.give_back(leave);
        }
    }
}
