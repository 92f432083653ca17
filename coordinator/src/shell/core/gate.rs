//! Between ready and released: whether a step may pass its gate, and where it waits if it may not.

use stepfleet_protocol::{
    gate::{Gate, Stand},
    id::{JobId, RunId},
    message::{Outcome, Returned},
    state::State,
};

use super::{
    super::{
        cache::Target,
        gates::{Pass, Verdict},
        intake::{Origin, What},
    },
    Core, Dispatch,
};
use crate::{
    machine::{event::Event, run::Run},
    mutants::mutant,
    store::record,
};

/// The counter of places under limits that no job had any more.
pub const LEAKED: &str = "leaked_permits";

impl Core {
    /// The gate that a step stands before, as far as that is known before its input is made.
    fn gate_of(&self, run: &Run, index: u32) -> Option<Gate> {
        let compiled = self.cache.plans.get(&run.plan.hash)?;
        match compiled.targets.get(index as usize)? {
            Target::Handler => Some(Gate::handler(&run.plan.steps[index as usize].handler)),
            Target::Static(gate) => Some(gate.clone()),
            Target::Template(_) => None,
        }
    }

    /// Releases a ready step, unless its gate holds it back: then it waits there, or another handler stands in.
    pub(super) fn release(&mut self, id: RunId, index: u32, was_parked: bool) {
        if self.gates.is_idle() {
            self.event(id, Event::Release { index });
            return;
        }
        let run = &self.cache.runs[&id];
        let gate = if may_run(run, index) { self.gate_of(run, index) } else { None };
        let Some(gate) = gate else {
            self.event(id, Event::Release { index });
            return;
        };
        match self.gates.pass(&gate, was_parked) {
            Pass::May(leave) => {
                self.leave = leave;
                self.event(id, Event::Release { index });
                if let Some(leave) = self.leave.take() {
                    self.gates.give_back(leave);
                }
            }
            Pass::Blocked if self.has_fallback(id, index) => {
                self.falls_back = true;
                self.event(id, Event::Release { index });
                self.falls_back = false;
                self.event(id, Event::FellBack { index });
            }
            Pass::Blocked | Pass::Full => self.park(id, index, &gate),
        }
    }

    /// Whether the step may be done by another handler instead.
    pub fn has_fallback(&self, id: RunId, index: u32) -> bool {
        self.cache.runs[&id].plan.steps[index as usize].fallback.is_some()
    }

    /// Puts a ready step aside until its gate opens.
    pub(super) fn park(&mut self, id: RunId, index: u32, gate: &Gate) {
        let priority = self.cache.runs[&id].plan.steps[index as usize].priority;
        let member = (record::ready_score(priority, self.now_ms), record::pack_ready(id, index));
        if self.gates.park(gate, priority) {
            self.staged.commit.gates_added.push(gate.clone());
        }
        let parked = self.staged.commit.parked_added.entry(gate.clone()).or_default();
        parked.extend((!mutant("parked_step_dropped")).then_some(member));
    }

    /// A step comes back from its gate, or from the ready set.
    pub(super) fn unpark(&mut self, id: RunId, index: u32) {
        // One that is held or stopped is told so by its release.
        if may_run(&self.cache.runs[&id], index) {
            self.place(id, index, true);
        } else {
            self.event(id, Event::Release { index });
        }
    }

    /// Whether the step would have to wait at its gate if it were released now.
    pub(super) fn is_held_back(&mut self, id: RunId, index: u32, was_parked: bool) -> Option<Gate> {
        if self.gates.is_idle() {
            return None;
        }
        let gate = self.gate_of(&self.cache.runs[&id], index)?;
        let broken = match self.gates.view().gates.get(&gate).map(|state| state.stand) {
            None => false,
            Some(Stand::Open | Stand::Paused) => true,
            Some(Stand::HalfOpen) => !self.gates.has_tokens(&gate),
            Some(Stand::Recovering) => !was_parked && self.gates.has_parked(&gate),
        };
        // Where the circuit is broken another handler may stand in; a limit is waited for.
        let held = if broken {
            !self.has_fallback(id, index)
        } else {
            let first = was_parked || self.inherits_place(id, index, &gate);
            self.gates.is_full(&gate, first)
        };
        held.then_some(gate)
    }

    /// A run that has a place under a limit keeps it: its next step goes ahead of parked ones that are not more urgent. One
    /// place, one heir.
    fn inherits_place(&mut self, id: RunId, index: u32, gate: &Gate) -> bool {
        let priority = self.cache.runs[&id].plan.steps[index as usize].priority;
        let heir = self.freed_place.as_ref() == Some(gate) && self.gates.may_inherit(gate, priority);
        if heir {
            self.freed_place = None;
        }
        heir
    }

    /// The step is taken from its gate, if it is parked at one that is known without its input. Others are ignored when
    /// they come back.
    pub(super) fn leave_gate(&mut self, id: RunId, index: u32) {
        if self.gates.is_idle() {
            return;
        }
        let Some(gate) = self.gate_of(&self.cache.runs[&id], index).filter(|g| self.gates.has_parked(g)) else {
            return;
        };
        let member = record::pack_ready(id, index);
        if let Some(added) = self.staged.commit.parked_added.get_mut(&gate) {
            added.retain(|(_, m)| *m != member);
        }
        self.staged.commit.parked_removed.entry(gate).or_default().push(member);
    }

    /// What a dispatch needs to know once the gate of its step can be told from its values. False if it must wait: then it
    /// is parked.
    pub fn admit(&mut self, dispatch: &mut Dispatch, gate: &Gate) -> bool {
        let waited = matches!(dispatch.of.0, Origin::Parked | Origin::Ready);
        let heir = dispatch.heir_of.as_ref() == Some(gate) && {
            let run = &self.cache.runs[&dispatch.run];
            self.gates.may_inherit(gate, run.plan.steps[dispatch.index as usize].priority)
        };
        let pass = match self.gates.pass(gate, true) {
            Pass::May(leave) if self.gates.is_behind(gate, waited || heir) => {
                leave.into_iter().for_each(|leave| self.gates.give_back(leave));
                Pass::Full
            }
            pass => pass,
        };
        match pass {
            Pass::May(leave) => {
                dispatch.leave = leave;
                true
            }
            Pass::Blocked if self.has_fallback(dispatch.run, dispatch.index) => {
                self.recall(dispatch);
                dispatch.falls_back = true;
                let queue = dispatch.queue(&self.cache.runs[&dispatch.run]);
                self.schedule.queue(&queue).outstanding += 1;
                self.event(dispatch.run, Event::FellBack { index: dispatch.index });
                true
            }
            Pass::Blocked | Pass::Full => {
                self.recall(dispatch);
                self.parking = Some(gate.clone());
                self.event(dispatch.run, Event::Deferred { index: dispatch.index, job: dispatch.job });
                self.parking = None;
                false
            }
        }
    }

    /// Looks whether a job that counts against a limit is still awaited. Each that counts and is not was leaked, and is counted.
    pub(super) fn check_held(&mut self, id: RunId, job: JobId, index: u32) {
        if !self.is_awaited(id, job, index) {
            self.leaked(job);
        }
    }

    pub(super) fn is_awaited(&self, id: RunId, job: JobId, index: u32) -> bool {
        let step = self.cache.runs.get(&id).and_then(|run| run.steps().get(index as usize));
        step.is_some_and(|step| step.in_flight && step.job == Some(job))
    }

    fn leaked(&mut self, job: JobId) {
        if self.gates.over(job).is_some() {
            *self.staged.commit.counters.entry(LEAKED).or_default() += 1;
        }
    }

    /// An item about a run that cannot be loaded: whatever job it reports counts no more. True if that is all there was to it.
    pub fn forget_job(&mut self, what: &What) -> bool {
        match what {
            What::Held { job, .. } => {
                self.leaked(*job);
                true
            }
            What::Result { event: Event::Result { of, .. }, .. } | What::Event(Event::Lost { of, .. }) => {
                self.gates.over(of.job);
                false
            }
            _ => false,
        }
    }

    /// Counts what a result says about a dependency, if its step waits for it.
    pub(super) fn count_result(&mut self, id: RunId, gate: Option<&Gate>, event: &Event) {
        let Event::Result { of, outcome, .. } = event else { return };
        self.freed_place = if mutant("place_leaks") { None } else { self.gates.over(of.job) };
        let Some(run) = self.cache.runs.get(&id) else { return };
        let awaited = run.steps().get(of.index as usize).is_some_and(|s| s.in_flight && s.job == Some(of.job));
        if *outcome == Outcome::Returned(Returned::Gated) {
            self.gates.handed_back();
        }
        if awaited {
            let handler = &run.plan.steps[of.index as usize].handler;
            self.gates.count(of.job, gate, handler, outcome, &self.rules);
        } else {
            self.gates.ended(of.job, Verdict::None);
        }
    }
}

/// Whether a release of the step would dispatch it.
fn may_run(run: &Run, index: u32) -> bool {
    let step = run.step(index);
    let held = run.ending.is_some() || run.state.is_finished() || run.state == State::Suspended;
    step.state == State::Queued && !step.in_flight && !held
}
