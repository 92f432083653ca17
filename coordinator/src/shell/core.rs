//! The deciding part of an owner: items in, staged writes out. No I/O.
//!
//! Whatever one batch decides is staged and becomes one commit. Ready steps go straight to the stream while there is room;
//! what needs a value first (an input to render, the input of a dead letter) is left for the shell to resolve.

mod audit;
mod gate;
mod ready;
mod seal;
mod staged;
mod timers;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use stepfleet_protocol::{
    gate::Gate,
    id::{Reign, RunId},
    message::{Answer, Command, NewRun, Resolution, Verb, command_value},
    name::Name,
    state::State,
    value::Payload,
};

pub use self::{
    gate::LEAKED,
    seal::Outbox,
    staged::{Dispatch, Staged, Touched},
};
use super::{
    cache::Cache,
    gates::{Book, Leave, Verdict},
    intake::{Item, Origin, Place, What},
    schedule::Schedule,
    tally::{About, Tally},
};
use crate::{
    machine::{
        decide::{Mint, decide},
        decision::{Decision, Effect},
        event::{Event, Timer},
        rules::Rules,
        run::Run,
    },
    mutants::mutant,
    store::{plans::PlanMove, record},
};

/// An item that the program could not bear: the batch is given up and begun again in another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poison {
    /// The item.
    pub item: Place,
    /// What panicked.
    pub by: Blame,
}

/// What panicked over an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// A rule: the item must not be decided.
    Rule,
    /// Making the input of a job or letter that followed: the item may be decided if nothing follows.
    Input,
}

/// The deciding part of an owner.
#[derive(Debug)]
pub struct Core {
    /// What is loaded.
    pub cache: Cache,
    /// What is kept in mind of timers, queues and work.
    pub schedule: Schedule,
    /// What the present batch has decided.
    pub staged: Staged,
    /// What the present batch did, for metrics.
    pub tally: Tally,
    /// Makes the ids of the present batch.
    pub mint: Mint,
    /// The latest time that was decided with.
    pub now_ms: u64,
    /// The queue whose slot the present item has freed.
    pub freed: Option<Name>,
    /// The gate under whose limit the present item has freed a place.
    pub freed_place: Option<Gate>,
    /// The present item.
    pub at: Place,
    /// What is kept in mind of gates.
    pub gates: Book,
    /// The leave of the step that is being released.
    pub leave: Option<Leave>,
    /// Another handler does the step that is being released.
    pub falls_back: bool,
    /// What becomes ready now is parked at this gate.
    pub parking: Option<Gate>,
    /// What holds in the present batch.
    pub rules: Rules,
    /// What becomes of runs whose traces are recorded is told as spans.
    pub traces: bool,
    /// The batch has no room for more jobs: what becomes ready waits in the ready set.
    pub full: bool,
    /// Runs that are not there and that somebody worked for, as this reign has told.
    pub strangers: BTreeSet<RunId>,
}

impl Core {
    /// Begins the batch of commit `seq`, at `server_ms` of the server's clock.
    pub fn begin_batch(&mut self, reign: Reign, seq: u64, server_ms: u64) {
        self.tally = Tally { server_ms, traces: self.traces, ..Tally::default() };
        self.mint = Mint::new(reign, seq);
        self.full = false;
    }

    /// Whether everything that these items need is in mind, and none of them may have been decided before.
    pub fn has_all(&self, items: &[Item]) -> bool {
        let (runs, plans) = Self::wanted(items);
        items.iter().all(|item| item.sent_before().is_none())
            && runs.iter().all(|run| self.cache.runs.contains_key(run))
            && plans.iter().all(|plan| self.cache.plans.contains_key(&**plan))
    }

    /// Decides one item. Its run must have been loaded, if it exists.
    ///
    /// # Errors
    /// [`Poison`] when a rule panicked; then nothing of this batch may be committed.
    pub fn item(&mut self, item: Item) -> Result<(), Poison> {
        self.now_ms = if mutant("now_goes_back") { item.at_ms } else { self.now_ms.max(item.at_ms) };
        (self.freed, self.freed_place) = (None, None);
        self.at = item.place();
        self.tally.item(&item);
        let poison = Poison { item: self.at, by: Blame::Rule };
        catch_unwind(AssertUnwindSafe(|| self.what(item.run, item.what))).map_err(|_| poison)
    }

    fn what(&mut self, id: RunId, what: What) {
        match what {
            What::New { command, new, actor, .. } => {
                let answer = self.new_run(new, actor);
                self.staged.answers.entry(command).or_default().push(answer);
            }
            What::Command(command) => {
                let command_id = command.id;
                if self.staged.answers.contains_key(&command_id) {
                    // Another copy of it is in this very batch.
                    return;
                }
                // The letters of a campaign are told by its report.
                let asked = command.campaign.is_none().then(|| audit::Asked::of(&command));
                let answer = match self.cache.runs.contains_key(&id) {
                    true if strange_value(&command) => Some(refused(
                        "bad_input_reference",
                        "an input by reference of a replay is `<command id>.in`".into(),
                    )),
                    true => self.event(id, Event::Command(command)),
                    false => self.bury(id, &command.verb),
                };
                let answer = answer.unwrap_or(Answer::NotFound);
                self.staged.commit.audit.extend(asked.map(|asked| asked.answered(&answer, self.now_ms)));
                self.staged.answers.entry(command_id).or_default().push(answer);
            }
            What::Unreadable(unreadable) => {
                *self.staged.commit.counters.entry("unreadable_jobs").or_default() += unreadable.entries.len() as i64;
                for entry in unreadable.entries {
                    self.ack(unreadable.queue.clone(), entry);
                }
            }
            What::Result { gate, event } => {
                self.count_result(id, gate.as_ref(), &event);
                self.happened(id, event);
            }
            What::Held { job, index } => self.check_held(id, job, index),
            What::Event(Event::Release { index }) if self.cache.runs.contains_key(&id) => match self.at.0 {
                Origin::Parked => self.unpark(id, index),
                _ => self.release(id, index, false),
            },
            What::Event(Event::AuditJob { index, job }) => {
                self.happened(id, Event::AuditJob { index, job });
                if !self.is_awaited(id, job, index) {
                    self.gates.over(job);
                }
            }
            // One that is in mind, or that this batch took, goes on by itself.
            What::Event(Event::AuditWork) if self.has_work(id) => {}
            What::Event(Event::AuditTimeout) if self.schedule.young.may_keep(id) => {}
            What::Event(event) => self.happened(id, event),
        }
    }

    fn has_work(&self, id: RunId) -> bool {
        self.staged.work_of.contains(&id) || self.schedule.todo.iter().any(|work| work.run == id)
    }

    fn happened(&mut self, id: RunId, event: Event) {
        if let Event::Lost { of, .. } = &event {
            self.gates.ended(of.job, Verdict::None);
            self.gates.over(of.job);
        }
        if self.cache.runs.contains_key(&id) {
            self.event(id, event);
        } else {
            self.orphan(event);
        }
    }

    /// A cancel of an unknown run holds for a submit that comes later.
    fn bury(&mut self, id: RunId, verb: &Verb) -> Option<Answer> {
        if *verb == Verb::Cancel && self.staged.tombstones.insert(id) {
            self.staged.commit.tombstones.push(id);
        }
        None
    }

    fn new_run(&mut self, new: NewRun, actor: Arc<str>) -> Answer {
        if let Some(run) = self.cache.runs.get(&new.run).filter(|_| !mutant("submit_not_deduplicated")) {
            return Answer::Known { state: run.state };
        }
        if self.staged.tombstones.contains(&new.run) && !mutant("tombstone_ignored") {
            return Answer::Known { state: State::Cancelled };
        }
        let Some(compiled) = self.cache.plans.get(&*new.plan) else { return Answer::NoPlan };
        if let Some(Payload::Ref(value)) = &new.input
            && value.id != new.run.to_string()
        {
            return refused("bad_input_reference", format!("input reference `{}` is not the run's id", value.id));
        }
        let (id, plan) = (new.run, compiled.plan.clone());
        *self.staged.commit.plan_uses.entry(plan.hash.to_string()).or_default() += 1;
        if !self.cache.aside.is_empty() && self.cache.aside.remove(&plan.hash) {
            self.staged.commit.plan_moves.insert(plan.hash.to_string(), PlanMove::Back);
        }
        self.cache.runs.insert(id, Run::new(id, plan));
        self.staged.touched.insert(id, Touched::default());
        self.event(id, Event::Submitted { new, actor }).unwrap_or(Answer::Done { state: State::Queued })
    }

    /// An event about a run that is gone: its job's entry is acked, and nothing is kept.
    fn orphan(&mut self, event: Event) {
        let of = match event {
            Event::Result { of, outcome, .. } => {
                self.staged.commit.values_dropped.extend(outcome.value_id().map(str::to_owned));
                of
            }
            Event::Lost { of, .. } => of,
            _ => return,
        };
        self.ack(of.queue, of.entry);
    }

    fn ack(&mut self, queue: Name, entry: stepfleet_protocol::id::StreamId) {
        let q = self.schedule.queue(&queue);
        q.outstanding = q.outstanding.saturating_sub(1);
        self.freed = Some(queue.clone());
        self.staged.commit.acks.entry(queue).or_default().extend((!mutant("nobody_acks")).then_some(entry));
    }

    /// Decides an event about a loaded run, and everything that becomes ready by it. Returns the answer, if there is one.
    pub fn event(&mut self, id: RunId, event: Event) -> Option<Answer> {
        let run = self.cache.runs.get_mut(&id).expect("the run is loaded");
        let (was, about) = (run.state, About::of(&event));
        let decision = decide(&self.rules, run, event, self.now_ms, &mut self.mint);
        let touched = self.staged.touched.entry(id).or_insert_with(|| Touched { was: Some(was), ..Touched::default() });
        self.tally.decided(run, about, &decision, self.now_ms);
        let Decision { transitions, effects } = decision;
        for counter in transitions.iter().filter_map(staged::counter) {
            *self.staged.commit.counters.entry(counter).or_default() += 1;
        }
        touched.transitions.extend(transitions);
        let mut answer = None;
        for effect in effects {
            self.effect(id, effect, &mut answer);
        }
        answer
    }

    fn effect(&mut self, id: RunId, effect: Effect, answer: &mut Option<Answer>) {
        let commit = &mut self.staged.commit;
        match effect {
            Effect::Ready { index } => self.ready(id, index),
            Effect::Unready { index } => self.unready(id, index),
            Effect::Dispatch { index, job, attempt, max_attempts } => {
                let (of, leave, falls_back) = (self.at, self.leave.take(), self.falls_back);
                let heir_of = self.freed_place.take();
                let dispatch = Dispatch { of, run: id, index, job, attempt, max_attempts, leave, heir_of, falls_back };
                let queue = dispatch.queue(&self.cache.runs[&id]);
                self.schedule.queue(&queue).outstanding += 1;
                self.staged.dispatches.push(dispatch);
            }
            Effect::Ack { queue, entry } => self.ack(queue, entry),
            Effect::SaveOutput { job, output } => self.save(job.to_string(), output),
            Effect::SaveResolved { job, output } => {
                if let Payload::Ref(value) = &output {
                    commit.values_moved.push((value.id.clone(), job.to_string()));
                }
                self.save(job.to_string(), output);
            }
            Effect::SaveInput { input } => self.save(id.to_string(), input),
            Effect::SavePatch { index, input } => {
                if let Payload::Ref(value) = &input {
                    commit.values_moved.push((value.id.clone(), patch_id(id, index)));
                }
                self.save(patch_id(id, index), input);
            }
            Effect::DropValue { id } => commit.values_dropped.push(id),
            Effect::SetTimer { due_ms, timer: Timer::Run } => self.arm_run(id, due_ms),
            Effect::SetTimer { due_ms, timer } => self.store_timer(id, timer, due_ms),
            Effect::ClearTimer { timer } => self.clear_timer(id, timer),
            Effect::KeepError(error) => commit.errors.push((id, stepfleet_protocol::codec::pack(&error))),
            Effect::Letter(letter) => self.staged.letters.push((self.at, *letter)),
            Effect::CloseLetter(letter) => self.staged.closing.push(letter),
            Effect::Answer(given) => *answer = Some(given),
            Effect::Work(work) => {
                commit.work_added.push(record::pack_work(&work));
                self.schedule.todo.extend((!mutant("work_item_dropped")).then_some(work));
            }
            // Of one job the last word counts: a commit adds before it removes.
            Effect::Stop(job) => {
                // Whether its dependency is back, nobody will know.
                self.gates.stops(job);
                commit.stopped.retain(|j| *j != job);
                commit.stops.push(job);
            }
            Effect::Stopped(job) => {
                commit.stops.retain(|j| *j != job);
                commit.stopped.push(job);
            }
        }
    }

    /// Keeps a value; one by reference is in its key already.
    fn save(&mut self, id: String, value: Payload) {
        match value {
            Payload::Inline(bytes) => {
                self.cache.keep_value(id.clone(), bytes.clone());
                self.staged.commit.values.push((id, bytes.to_vec()));
            }
            // An older one of this id may be in mind.
            Payload::Ref(_) => drop(self.cache.values.remove(&id)),
        }
    }

    /// Runs that an item needs, beside its own.
    pub fn wanted(items: &[Item]) -> (BTreeSet<RunId>, BTreeSet<String>) {
        let (mut runs, mut plans) = (BTreeSet::new(), BTreeSet::new());
        for item in items {
            if item.looks_back() {
                runs.insert(item.run);
            }
            if let What::New { new, .. } = &item.what {
                plans.insert(new.plan.clone());
            }
        }
        (runs, plans)
    }
}

fn refused(code: &str, message: String) -> Answer {
    Answer::Refused { code: code.into(), message }
}

/// Whether a replay names a value that did not travel with it.
fn strange_value(command: &Command) -> bool {
    match &command.verb {
        Verb::Replay { input: Some(Payload::Ref(value)), .. }
        | Verb::Resolve { resolution: Resolution::Completed(Some(Payload::Ref(value))), .. } => {
            value.id != command_value(command.id)
        }
        Verb::Cancel
        | Verb::Suspend { .. }
        | Verb::Resume
        | Verb::Retry
        | Verb::Replay { .. }
        | Verb::RetryFrom { .. }
        | Verb::Resolve { .. }
        | Verb::Compensate
        | Verb::Discard { .. } => false,
    }
}

/// Id of the input that an operator gave to a step.
pub fn patch_id(run: RunId, index: u32) -> String {
    format!("{run}.{index}.in")
}
