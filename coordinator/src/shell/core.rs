//! The deciding part of an owner: items in, staged writes out. No I/O.
//!
//! Whatever one batch decides is staged and becomes one commit. Ready steps go straight to the stream while there is room;
//! what needs a value first (an input to render, the input of a dead letter) is left for the shell to resolve.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use stepfleet_protocol::{
    id::{CommandId, JobId, RunId},
    keys::listing,
    message::{Answer, NewRun},
    name::Name,
    state::State,
    value::Payload,
};

use super::{
    cache::Cache,
    intake::{Item, Origin, What},
    schedule::Schedule,
};
use crate::{
    machine::{
        decide::{Mint, decide},
        decision::{Decision, Effect, Letter, Transition},
        event::Event,
        run::Run,
    },
    store::{
        commit::{Commit, HashFields},
        plans::PlanMove,
        record,
    },
};

/// An item that a rule could not bear: the batch is given up and begun again without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poison {
    /// Where it came from.
    pub origin: Origin,
    /// The run it was about.
    pub run: RunId,
}

/// A job on its way to the stream, still without its input.
#[derive(Debug)]
pub struct Dispatch {
    /// The run.
    pub run: RunId,
    /// The step's number.
    pub index: u32,
    /// The job.
    pub job: JobId,
    /// Which try.
    pub attempt: u32,
    /// How many tries there will be.
    pub max_attempts: u32,
}

/// What a batch did to a run.
#[derive(Debug, Default)]
pub struct Touched {
    /// The listing it was in before; none for a new run.
    pub was: Option<State>,
    /// Its transitions.
    pub transitions: Vec<Transition>,
}

/// What a batch has decided so far.
#[derive(Debug, Default)]
pub struct Staged {
    /// The commit to be.
    pub commit: Commit,
    /// Runs that changed.
    pub touched: BTreeMap<RunId, Touched>,
    /// Jobs without their inputs yet.
    pub dispatches: Vec<Dispatch>,
    /// Dead letters without their inputs yet.
    pub letters: Vec<(RunId, Letter)>,
    /// Answers so far, by command.
    pub answers: BTreeMap<CommandId, Vec<Answer>>,
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
    /// Makes the ids of the present batch.
    pub mint: Mint,
    /// The latest time that was decided with.
    pub now_ms: u64,
    /// The queue whose slot the present item has freed.
    pub freed: Option<Name>,
}

impl Core {
    /// Decides one item. Its run must have been loaded, if it exists.
    ///
    /// # Errors
    /// [`Poison`] when a rule panicked; then nothing of this batch may be committed.
    pub fn item(&mut self, item: Item) -> Result<(), Poison> {
        self.now_ms = self.now_ms.max(item.at_ms);
        self.freed = None;
        let poison = Poison { origin: item.origin, run: item.run };
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
                if command.again && self.staged.answers.contains_key(&command_id) {
                    // Its first copy is in this very batch.
                    return;
                }
                let answer = match self.cache.runs.contains_key(&id) {
                    true => self.event(id, Event::Command(command)),
                    false => None,
                };
                self.staged.answers.entry(command_id).or_default().push(answer.unwrap_or(Answer::NotFound));
            }
            What::Unreadable(unreadable) => {
                *self.staged.commit.counters.entry("unreadable_jobs").or_default() += unreadable.entries.len() as i64;
                for entry in unreadable.entries {
                    self.ack(unreadable.queue.clone(), entry);
                }
            }
            What::Event(event) => {
                if self.cache.runs.contains_key(&id) {
                    self.event(id, event);
                } else {
                    self.orphan(event);
                }
            }
        }
    }

    fn new_run(&mut self, new: NewRun, actor: Arc<str>) -> Answer {
        let refused = |code: &str, message: String| Answer::Refused { code: code.into(), message };
        if let Some(run) = self.cache.runs.get(&new.run) {
            return Answer::Known { state: run.state };
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
                if let stepfleet_protocol::message::Outcome::Completed(Some(Payload::Ref(value))) = outcome {
                    self.staged.commit.values_dropped.push(value.id);
                }
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
        self.staged.commit.acks.entry(queue).or_default().push(entry);
    }

    /// Decides an event about a loaded run, and everything that becomes ready by it. Returns the answer, if there is one.
    pub fn event(&mut self, id: RunId, event: Event) -> Option<Answer> {
        let run = self.cache.runs.get_mut(&id).expect("the run is loaded");
        let was = run.state;
        let decision = decide(run, event, self.now_ms, &mut self.mint);
        let touched = self.staged.touched.entry(id).or_insert_with(|| Touched { was: Some(was), ..Touched::default() });
        let Decision { transitions, effects } = decision;
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
                let queue = self.cache.runs[&id].plan.steps[index as usize].queue.clone();
                self.schedule.queue(&queue).outstanding += 1;
                self.staged.dispatches.push(Dispatch { run: id, index, job, attempt, max_attempts });
            }
            Effect::Ack { queue, entry } => self.ack(queue, entry),
            Effect::SaveOutput { job, output } => self.save(job.to_string(), output),
            Effect::SaveInput { input } => self.save(id.to_string(), input),
            Effect::SavePatch { index, input } => self.save(patch_id(id, index), input),
            Effect::DropValue { id } => commit.values_dropped.push(id),
            Effect::SetTimer { due_ms, timer } => {
                let member = record::pack_timer(id, timer);
                self.schedule.timers.set(due_ms, member.clone());
                commit.timers_cleared.retain(|m| *m != member);
                commit.timers_set.push((due_ms, member));
            }
            Effect::ClearTimer { timer } => {
                let member = record::pack_timer(id, timer);
                self.schedule.timers.clear(&member);
                commit.timers_set.retain(|(_, m)| *m != member);
                commit.timers_cleared.push(member);
            }
            Effect::KeepError(error) => commit.errors.push((id, stepfleet_protocol::codec::pack(&error))),
            Effect::Letter(letter) => self.staged.letters.push((id, *letter)),
            Effect::CloseLetter(letter) => commit.letters_closed.push(letter),
            Effect::Answer(given) => *answer = Some(given),
            Effect::Work(work) => {
                commit.work_added.push(record::pack_work(&work));
                self.schedule.todo.push_back(work);
            }
            Effect::Stop(job) => commit.stops.push(job),
            Effect::Stopped(job) => commit.stopped.push(job),
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

    fn ready(&mut self, id: RunId, index: u32) {
        let run = &self.cache.runs[&id];
        let step = &run.plan.steps[index as usize];
        let (queue, priority) = (step.queue.clone(), step.priority);
        if self.schedule.passes(&queue) || self.inherits(&queue, priority) {
            self.event(id, Event::Release { index });
            return;
        }
        let q = self.schedule.queue(&queue);
        q.ready += 1;
        q.urgent = q.urgent.max(priority);
        let member = (record::ready_score(priority, self.now_ms), record::pack_ready(id, index));
        self.staged.commit.ready_added.entry(queue).or_default().push(member);
    }

    /// A step may take the place of the job whose result made it ready, ahead of waiting steps that are not more urgent: a
    /// run that has a slot keeps it, and a chain does not go through the ready set step by step. One place, one heir, so
    /// that a wide graph cannot take the queue over.
    fn inherits(&mut self, queue: &Name, priority: u8) -> bool {
        let heir = self.freed.as_ref() == Some(queue) && self.schedule.queue(queue).urgent <= priority;
        if heir {
            self.freed = None;
        }
        heir
    }

    fn unready(&mut self, id: RunId, index: u32) {
        let queue = self.cache.runs[&id].plan.steps[index as usize].queue.clone();
        let member = record::pack_ready(id, index);
        let q = self.schedule.queue(&queue);
        q.ready = q.ready.saturating_sub(1);
        if let Some(added) = self.staged.commit.ready_added.get_mut(&queue) {
            added.retain(|(_, m)| *m != member);
        }
        self.staged.commit.ready_removed.entry(queue).or_default().push(member);
    }

    /// Turns what was staged into a commit. Every dispatch and letter must have been resolved.
    pub fn seal(&mut self) -> Commit {
        debug_assert!(self.staged.dispatches.is_empty() && self.staged.letters.is_empty(), "resolved by the shell");
        let mut staged = std::mem::take(&mut self.staged);
        let mut event = Vec::with_capacity(staged.touched.len());
        for (id, touched) in &staged.touched {
            let run = self.cache.runs.get_mut(id).expect("a touched run is loaded");
            seal_run(run, touched, &mut staged.commit, &mut event);
            if run.state.is_final() {
                self.cache.runs.remove(id);
            }
        }
        if !event.is_empty() {
            staged.commit.event = Some(stepfleet_protocol::codec::pack(&Outbox { v: 1, runs: event }));
        }
        for (id, answers) in staged.answers {
            staged.commit.answer(id, answers);
        }
        staged.commit.now_ms = self.now_ms;
        staged.commit
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

/// An entry of the outbox: the transitions of one commit by run, in the packed form of the history.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Outbox {
    /// Version of the message.
    pub v: u8,
    /// Runs with their transitions.
    pub runs: Vec<(RunId, bytes::Bytes)>,
}

/// Id of the input that an operator gave to a step.
pub fn patch_id(run: RunId, index: u32) -> String {
    format!("{run}.{index}.in")
}

fn seal_run(run: &mut Run, touched: &Touched, commit: &mut Commit, event: &mut Vec<(RunId, bytes::Bytes)>) {
    let is_new = touched.was.is_none();
    let mut chunks: BTreeMap<u32, HashFields> = BTreeMap::new();
    let fields = chunks.entry(0).or_default();
    let packed = record::pack_run(run);
    if run.stored != packed {
        fields.push((record::FIELD_RECORD.into(), packed.clone()));
        run.stored = packed;
    }
    if let (true, Some(trace)) = (is_new, &run.traceparent) {
        fields.push((record::FIELD_TRACE.into(), trace.as_bytes().into()));
    }
    for index in run.take_dirty() {
        let chunk = index / stepfleet_protocol::limits::CHUNK_STEPS;
        let packed = record::pack_step(run.step(index));
        chunks.entry(chunk).or_default().push((index.to_string().into_bytes(), packed));
    }
    chunks.retain(|_, fields| !fields.is_empty());
    commit.hashes.extend(chunks.into_iter().map(|(chunk, fields)| (run.id, chunk, fields)));
    if !touched.transitions.is_empty() {
        let packed = crate::store::history::pack(&touched.transitions);
        event.push((run.id, packed.clone().into()));
        commit.history.push((run.id, packed));
    }
    let moved = touched.was.is_none_or(|was| listing(was) != listing(run.state));
    if moved {
        let at_ms = if run.state.is_finished() { run.finished_ms } else { run.id.created_ms() };
        commit.listed.entry(listed_as(run.state)).or_default().push((at_ms, run.id));
        if let Some(was) = touched.was {
            commit.unlisted.entry(listed_as(was)).or_default().push(run.id);
        }
    }
    if is_new {
        let workflow = run.plan.workflow.clone();
        commit.listed_by_workflow.entry(workflow).or_default().push((run.id.created_ms(), run.id));
    }
}

/// One state for all that share a listing.
fn listed_as(state: State) -> State {
    if listing(state) == listing(State::Processing) { State::Processing } else { state }
}
