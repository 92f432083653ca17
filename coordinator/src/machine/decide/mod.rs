//! The rules: one event in, one decision out.
//!
//! `decide` changes the run in place and says what else has to be committed with it. It is total: an event that no longer
//! concerns anything (a late result, a timer of an old job) is a decision too, one that only acks and remarks.

mod audit;
mod command;
mod escalate;
mod finish;
mod outcome;
mod resolve;
mod spread;
mod start;
mod undo;
mod work;

use std::sync::Arc;

use stepfleet_protocol::{
    duration::Millis,
    failure::Category,
    id::{JobId, Reign, StreamId, WorkerId},
    message::JobRef,
    state::State,
};

use super::{
    decision::{Decision, Effect, Transition, Why},
    event::{Event, Timer, Work, WorkKind},
    rules::Rules,
    run::{Run, Undoing},
};

/// Steps that one decision touches at most; the rest is a work item.
pub const STEPS_PER_DECISION: usize = 100;

/// Steps that the decisions of one commit touch in this way, all together: it stays below 5 ms of the server.
pub const STEPS_PER_COMMIT: usize = 800;

/// Makes the job ids of one commit, and keeps it bounded.
#[derive(Debug, Clone, Copy)]
pub struct Mint {
    /// The owner's reign.
    pub reign: Reign,
    /// The commit.
    pub seq: u64,
    /// The next number.
    pub n: u32,
    /// Steps that the decisions of this commit may still touch by walking a graph; at the end each touches one.
    pub steps_left: usize,
}

impl Mint {
    /// For the first decision of a commit.
    pub fn new(reign: Reign, seq: u64) -> Self {
        Self { reign, seq, n: 0, steps_left: STEPS_PER_COMMIT }
    }

    fn next(&mut self) -> JobId {
        self.n += 1;
        JobId { reign: self.reign, seq: self.seq, n: self.n - 1 }
    }

    /// The id of a dead letter. Ids of one partition only grow, because `now` never goes back and `seq` grows with
    /// every commit.
    fn letter(&mut self, now_ms: u64) -> StreamId {
        self.n += 1;
        StreamId { ms: now_ms, seq: (self.seq << 24) | u64::from(self.n) }
    }
}

/// Decides one event about `run` at `now_ms` (Unix milliseconds of the server) by `rules`.
///
/// # Panics
/// When a rule is broken, such as an illegal move: a bug, which the caller turns into a quarantined entry. The run is then
/// in an undefined state and must be dropped.
pub fn decide(rules: &Rules, run: &mut Run, event: Event, now_ms: u64, mint: &mut Mint) -> Decision {
    let mut deciding = Deciding { rules, run, now_ms, mint, out: Decision::default(), actor: None };
    deciding.event(event);
    deciding.out
}

struct Deciding<'a> {
    rules: &'a Rules,
    run: &'a mut Run,
    now_ms: u64,
    mint: &'a mut Mint,
    out: Decision,
    actor: Option<Arc<str>>,
}

impl Deciding<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Submitted { new, actor } => self.submitted(new, actor),
            Event::Result { of, worker, run_ms, outcome } => self.result(of, worker, run_ms, outcome),
            Event::Started { of, worker, running_ms } => self.started(of, worker, running_ms),
            Event::Lost { of, worker, counted, seen } => self.lost(of, worker, counted, seen),
            Event::Command(command) => self.command(command),
            Event::Timer(timer) => self.timer(timer),
            Event::Release { index } => self.release(index),
            Event::FellBack { index } => self.fell_back(index),
            Event::Deferred { index, job } => self.deferred(index, job),
            Event::Unrenderable { index, job, failure } => self.unrenderable(index, job, failure),
            Event::Continue(work) => self.work(work),
            Event::Audit { index } => self.audit(index),
            Event::AuditJob { index, job } => self.audit_job(index, job),
            Event::AuditRun => self.audit_run(),
            Event::AuditTimeout => self.audit_timeout(),
            Event::AuditWork => self.audit_work(),
            Event::AuditLetter { index, letter } => self.audit_letter(index, letter),
        }
    }

    fn submitted(&mut self, new: stepfleet_protocol::message::NewRun, actor: Arc<str>) {
        self.actor = Some(actor);
        self.run.version = new.version;
        self.run.traceparent = new.traceparent.map(Into::into);
        if let Some(input) = new.input {
            self.run.has_input = true;
            self.effect(Effect::SaveInput { input });
        }
        self.move_run(State::Queued, Why::Submitted, None);
        self.actor = None;
        self.arm_run();
        self.work(Work { run: self.run.id, kind: WorkKind::Roots, next: 0 });
        self.effect(Effect::Answer(stepfleet_protocol::message::Answer::Done { state: self.run.state }));
    }

    fn arm_run(&mut self) {
        if self.run.plan.timeout_ms > 0 {
            let due_ms = self.now_ms + self.run.plan.timeout_ms;
            self.effect(Effect::SetTimer { due_ms, timer: Timer::Run });
        }
    }

    /// A ready step may go to the stream, unless its run is held.
    fn release(&mut self, index: u32) {
        let step = self.run.step(index);
        if step.state != State::Queued || step.in_flight {
            return;
        }
        if self.run.ending.is_some() || self.run.state.is_finished() {
            self.move_step(index, State::Cancelled, self.stop_why(), None, None);
            return self.settle();
        }
        if self.run.state == State::Suspended {
            self.move_step(index, State::Suspended, Why::Suspended, None, None);
            return;
        }
        let job = self.mint.next();
        let max_attempts = self.budget_now(index);
        let step = self.run.step_mut(index);
        step.job = Some(job);
        step.in_flight = true;
        let attempt = step.attempts + 1;
        self.effect(Effect::Dispatch { index, job, attempt, max_attempts });
    }

    /// The history says who did the step.
    fn fell_back(&mut self, index: u32) {
        let step = self.run.step(index);
        if step.state == State::Queued && step.in_flight {
            self.remark(index, Why::FellBack, None);
        }
    }

    /// The number of the last try of the present budget, for failures of a category if one is given.
    fn budget(&self, index: u32, category: Option<Category>) -> u32 {
        let plan = &self.run.plan;
        let tries = self.rules.max_attempts(plan, &plan.steps[index as usize], category);
        self.run.step(index).spent.saturating_add(tries)
    }

    /// The number of the last try as far as is known: by the category of the last failure of this budget, if there is one.
    fn budget_now(&self, index: u32) -> u32 {
        let step = self.run.step(index);
        if step.attempts == step.spent {
            return self.budget(index, None);
        }
        let last = self.run.errors.iter().rev().find(|e| e.index == index && e.attempt <= step.attempts);
        // A policy may have become stricter after the next try was promised.
        self.budget(index, last.map(|e| e.failure.category)).max(step.attempts + 1)
    }

    fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Run => self.run_timed_out(),
            Timer::Retry { index, job } => {
                let step = self.run.step(index);
                if step.state == State::Retrying && step.job == Some(job) {
                    self.retry_due(index);
                }
            }
            Timer::Attempt { index, job } => self.attempt_timed_out(index, job),
            Timer::Start { index, by_ms } => self.not_started(index, by_ms),
        }
    }

    fn retry_due(&mut self, index: u32) {
        if self.run.state == State::Suspended {
            self.move_step(index, State::Suspended, Why::Suspended, None, None);
        } else {
            self.move_step(index, State::Queued, Why::RetryDue, None, None);
            self.effect(Effect::Ready { index });
        }
    }

    fn run_timed_out(&mut self) {
        // What is undone has limits of its own, and nothing would be won by leaving it half undone.
        let undone = self.run.undoing != Undoing::None;
        if self.run.state.is_finished() || self.run.is_held_failure() || self.run.ending.is_some() || undone {
            return;
        }
        let limit = Millis(self.run.plan.timeout_ms);
        let note = format!("the run took longer than its limit of {limit}");
        self.stop(super::run::Ending::TimedOut, Some(note.into()));
    }

    /// An auditor found no place of the step, and the owner agrees: it goes to the ready set again.
    fn audit(&mut self, index: u32) {
        let Some(step) = self.run.steps().get(index as usize) else { return };
        match step.state {
            State::Queued if !step.in_flight => {
                self.remark(index, Why::Repaired, None);
                self.effect(Effect::Ready { index });
            }
            State::Retrying => {
                self.remark(index, Why::Repaired, None);
                self.retry_due(index);
            }
            State::Queued
            | State::Created
            | State::Processing
            | State::Waiting
            | State::Completed
            | State::Failed
            | State::Suspended
            | State::Cancelled
            | State::Skipped => {}
        }
    }

    fn effect(&mut self, effect: Effect) {
        self.out.effects.push(effect);
    }

    fn ack(&mut self, of: &JobRef) {
        self.effect(Effect::Ack { queue: of.queue.clone(), entry: of.entry });
    }

    fn move_run(&mut self, to: State, why: Why, note: Option<Arc<str>>) {
        let from = self.run.state;
        assert!(from.may_become(to), "illegal move of the run from {from} to {to}");
        self.run.state = to;
        self.run.finished_ms = match (from, to) {
            // It is held for a look, and still the run that failed then.
            (State::Failed, State::Suspended) => self.run.finished_ms,
            _ if to.is_finished() => self.now_ms,
            _ => 0,
        };
        let (at_ms, actor) = (self.now_ms, self.actor.clone());
        self.out.transitions.push(Transition {
            step: None,
            from,
            to,
            at_ms,
            attempt: 0,
            why,
            worker: None,
            actor,
            note,
        });
    }

    /// A remark in the history of the run that moves nothing.
    fn remark_run(&mut self, why: Why, note: Option<Arc<str>>) {
        let state = self.run.state;
        let (at_ms, actor) = (self.now_ms, self.actor.clone());
        self.out.transitions.push(Transition {
            step: None,
            from: state,
            to: state,
            at_ms,
            attempt: 0,
            why,
            worker: None,
            actor,
            note,
        });
    }

    #[expect(clippy::too_many_arguments, reason = "a move is one flat fact, told at thirty places")]
    fn move_step(&mut self, index: u32, to: State, why: Why, worker: Option<WorkerId>, note: Option<Arc<str>>) {
        self.move_step_at(index, to, why, self.now_ms, worker, note);
    }

    #[expect(clippy::too_many_arguments, reason = "as `move_step`, with the time that a worker tells")]
    fn move_step_at(
        &mut self,
        index: u32,
        to: State,
        why: Why,
        at_ms: u64,
        worker: Option<WorkerId>,
        note: Option<Arc<str>>,
    ) {
        self.clear_start(index);
        let from = self.run.move_step(index, to);
        let attempt = self.attempt_shown(index, from, to);
        let actor = self.actor.clone();
        self.out.transitions.push(Transition { step: Some(index), from, to, at_ms, attempt, why, worker, actor, note });
    }

    /// The try that a transition belongs to: the coming one, unless the transition ends a counted one.
    fn attempt_shown(&self, index: u32, from: State, to: State) -> u32 {
        let step = self.run.step(index);
        match (from, to) {
            (State::Created, _) => 0,
            (State::Failed, _) | (_, State::Failed) => {
                // A loss is no counted try, yet it happened in one: the kept error knows which.
                let error = self.run.errors.iter().rev().find(|e| e.index == index);
                error.map_or(step.attempts.max(1), |e| e.attempt)
            }
            _ => step.attempts + 1,
        }
    }

    /// A remark about a step that gave up, with a note.
    fn remark_step(&mut self, index: u32, why: Why, note: Arc<str>) {
        self.remark(index, why, None);
        let attempt = self.attempt_shown(index, State::Failed, State::Failed);
        if let Some(said) = self.out.transitions.last_mut() {
            (said.note, said.attempt) = (Some(note), attempt);
        }
    }

    /// A remark in the history that moves nothing.
    fn remark(&mut self, index: u32, why: Why, worker: Option<WorkerId>) {
        let state = self.run.step(index).state;
        let attempt = self.run.step(index).attempts + 1;
        let (at_ms, actor) = (self.now_ms, self.actor.clone());
        let step = Some(index);
        self.out.transitions.push(Transition {
            step,
            from: state,
            to: state,
            at_ms,
            attempt,
            why,
            worker,
            actor,
            note: None,
        });
    }
}
