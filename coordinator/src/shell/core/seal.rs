//! From what a batch has staged to its commit: each changed run once, however often it moved.

use std::collections::BTreeMap;

use stepfleet_protocol::{id::RunId, keys::listing, state::State};

use super::{Core, Touched};
use crate::{
    machine::run::Run,
    mutants::mutant,
    store::{
        commit::{Commit, HashFields},
        kept, record,
    },
};

/// An entry of the outbox: the transitions of one commit by run, in the packed form of the history.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Outbox {
    /// Version of the message.
    pub v: u8,
    /// Runs with their transitions.
    pub runs: Vec<(RunId, bytes::Bytes)>,
}

impl Core {
    /// Turns what was staged into a commit. Every dispatch and letter must have been resolved.
    pub fn seal(&mut self) -> Commit {
        debug_assert!(self.staged.dispatches.is_empty() && self.staged.letters.is_empty(), "resolved by the shell");
        debug_assert!(self.staged.closing.is_empty(), "resolved by the shell");
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
            staged.commit.event = Some(stepfleet_protocol::codec::encode(&Outbox { v: 1, runs: event }));
        }
        for (id, answers) in staged.answers.into_iter().filter(|_| !mutant("answer_not_written")) {
            staged.commit.answer(id, answers);
        }
        staged.commit.held_removed = self.gates.take_released();
        staged.commit.now_ms = self.now_ms;
        staged.commit
    }
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
    if !touched.transitions.is_empty() {
        let packed = crate::store::history::pack(&touched.transitions);
        event.extend((!mutant("outbox_not_told")).then(|| (run.id, packed.clone().into())));
        let apart = kept::place(run, packed, chunks.entry(0).or_default());
        commit.history.extend(apart.map(|packed| (run.id, packed)));
    }
    chunks.retain(|_, fields| !fields.is_empty());
    commit.hashes.extend(chunks.into_iter().map(|(chunk, fields)| (run.id, chunk, fields)));
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
