//! What the histories tell, read from their bytes: only legal moves, tries within bounds, and the same state in the end.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_coordinator::{
    machine::decision::{Transition, Why},
    shell::core::Outbox,
    store::reply,
};
use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
    limits::LOSSES_MAX,
    state::State,
};

use super::{End, Verdict, must};
use crate::{
    fleet::Stored,
    fleets::{plans::ATTEMPTS_MAX, world::World},
};

/// The moves of the design, word for word.
const MOVES: &str = "
    created    -> queued failed cancelled skipped
    queued     -> processing suspended cancelled
    processing -> completed failed waiting suspended cancelled queued
    waiting    -> processing failed suspended cancelled
    failed     -> retrying suspended cancelled
    retrying   -> queued suspended cancelled
    suspended  -> queued failed completed cancelled
";

/// States from which a step may be born again, as another generation.
const REBORN: [State; 4] = [State::Completed, State::Failed, State::Cancelled, State::Skipped];

fn is_legal(of_step: bool, from: State, to: State) -> bool {
    let row = MOVES.lines().filter_map(|line| line.split_once("->")).find(|(state, _)| state.trim() == from.as_str());
    let listed = row.is_some_and(|(_, to_all)| to_all.split_whitespace().any(|state| state == to.as_str()));
    listed && (of_step || to != State::Skipped) || (of_step && to == State::Created && REBORN.contains(&from))
}

/// Every move is legal and begins where the one before it ended.
pub(crate) fn moves(_: &World, run: RunId, stored: &Stored) -> Verdict {
    let mut at: BTreeMap<Option<u32>, State> = BTreeMap::new();
    for t in &stored.history {
        let state = at.entry(t.step).or_insert(State::Created);
        must(*state == t.from, run, || format!("it was {state} before `{t}`"))?;
        must(t.from == t.to || is_legal(t.step.is_some(), t.from, t.to), run, || format!("illegal: `{t}`"))?;
        *state = t.to;
    }
    Ok(())
}

/// The history leads to what is stored, and a run that is over has steps that are.
pub(crate) fn replays(world: &World, run: RunId, stored: &Stored) -> Verdict {
    let last: BTreeMap<Option<u32>, State> = stored.history.iter().map(|t| (t.step, t.to)).collect();
    let state = stored.record.state;
    must(last.get(&None) == Some(&state), run, || format!("it is {state}, its history says {:?}", last.get(&None)))?;
    for (index, step) in &stored.steps {
        let told = last.get(&Some(*index)).copied().unwrap_or(State::Created);
        must(told == step.state, run, || format!("step {index} is {}, its history says {told}", step.state))?;
    }
    for (step, told) in last.iter().filter_map(|(step, told)| Some(((*step)?, *told))) {
        // One that has never moved is not written: its history may tell of a result that was ignored.
        let is = stored.steps.get(&step).map_or(State::Created, |s| s.state);
        must(is == told, run, || format!("step {step} is {is}, its history says {told}"))?;
    }
    must(state.is_finished(), run, || format!("it is {state} in the end"))?;
    let count = world.workflow(run).map_or(0, |w| w.steps.len() as u32);
    let over = |s: &stepfleet_coordinator::machine::run::Step| {
        s.tolerated || matches!(s.state, State::Completed | State::Skipped)
    };
    let all = (0..count).all(|index| stored.steps.get(&index).is_some_and(over));
    must(state != State::Completed || all, run, || "it is completed, and a step is not".into())
}

/// Failures and losses of the present budget, and tries of this generation.
#[derive(Debug, Default)]
struct Spent {
    failures: u32,
    losses: u32,
    tries: u32,
}

/// No step fails more often than it may, and none gives up before.
pub(crate) fn attempts(_: &World, run: RunId, stored: &Stored) -> Verdict {
    let mut spent: BTreeMap<u32, Spent> = BTreeMap::new();
    for t in stored.history.iter().filter(|t| t.from != t.to) {
        let Some(step) = t.step else { continue };
        let of = spent.entry(step).or_default();
        match (t.to, t.why) {
            (State::Created, _) => *of = Spent::default(),
            (State::Retrying, Why::Retried | Why::Replayed | Why::Resumed) => (of.failures, of.losses) = (0, 0),
            (State::Failed, Why::WorkerLost) => {
                of.losses += 1;
                must(of.losses < u32::from(LOSSES_MAX), run, || format!("loss {} did not end it: `{t}`", of.losses))?;
            }
            (State::Failed, Why::AttemptFailed | Why::GaveUp) => failed(run, of, t)?,
            _ => {}
        }
    }
    Ok(())
}

fn failed(run: RunId, of: &mut Spent, t: &Transition) -> Verdict {
    let note = t.note.as_deref().unwrap_or_default();
    let category = note.split([':', '/']).next().unwrap_or_default();
    if category == "worker_lost" {
        of.losses += 1;
        return must(of.losses == u32::from(LOSSES_MAX), run, || format!("gave up after {} losses: `{t}`", of.losses));
    }
    if note.starts_with("timeout/expired") {
        return Ok(());
    }
    (of.failures, of.tries) = (of.failures + 1, of.tries + 1);
    must(t.attempt == of.tries, run, || format!("`{t}` is try {}", of.tries))?;
    let retried = matches!(category, "transient" | "timeout" | "system");
    let last = of.failures == ATTEMPTS_MAX;
    let right = match t.why {
        Why::AttemptFailed => retried && of.failures < ATTEMPTS_MAX,
        _ => last || !retried,
    };
    must(right, run, || format!("failure {} of {ATTEMPTS_MAX} : `{t}`, {note}", of.failures))
}

/// Nothing has to be repaired, unless a server has forgotten things.
pub(crate) fn no_repairs(world: &World, run: RunId, stored: &Stored) -> Verdict {
    let repaired = stored.history.iter().find(|t| matches!(t.why, Why::Repaired | Why::Quarantined));
    must(repaired.is_none() || world.was_set_back(run), run, || format!("`{}`", repaired.expect("just seen")))
}

/// State, history and outbox are one commit: the outbox tells what the histories tell, byte by byte.
pub(crate) async fn outbox(end: &mut End<'_>) -> Verdict {
    let mut told: BTreeMap<RunId, Vec<u8>> = BTreeMap::new();
    for partition in end.world.all_partitions() {
        let mut read = redis::cmd("XRANGE");
        read.arg(end.world.part(partition).events()).arg("-").arg("+");
        let found = end.line.one(read).await.map_err(|e| (None, e.to_string()))?;
        for (_, fields) in reply::entries(found) {
            let entry: Outbox = codec::decode(&fields[0].0, &fields[0].1).map_err(|e| (None, e.to_string()))?;
            for (run, transitions) in entry.runs {
                told.entry(run).or_default().extend_from_slice(&transitions);
            }
        }
    }
    for (run, stored) in &end.runs {
        must(told.get(run) == Some(&stored.packed), *run, || "outbox and history differ".into())?;
    }
    Ok(())
}

/// The open letters are those that steps know of; a step that gave up has one, unless somebody closed it.
pub(crate) async fn letters(end: &mut End<'_>) -> Verdict {
    let mut open = BTreeSet::new();
    for partition in end.world.all_partitions() {
        let mut read = redis::cmd("XRANGE");
        read.arg(end.world.part(partition).dead()).arg("-").arg("+");
        let found = end.line.one(read).await.map_err(|e| (None, e.to_string()))?;
        open.extend(reply::entries(found).into_iter().map(|(id, _)| (partition, id)));
    }
    let mut known: BTreeSet<(_, StreamId)> = BTreeSet::new();
    for (run, stored) in &end.runs {
        for (index, step) in &stored.steps {
            known.extend(step.letter.map(|letter| (run.partition(), letter)));
            let last = stored.history.iter().rev().find(|t| t.step == Some(*index) && t.to == State::Failed);
            let gave_up = last.is_some_and(|t| t.why == Why::GaveUp && t.from != t.to);
            let discarded = stored.history.iter().any(|t| t.step == Some(*index) && t.why == Why::Discarded);
            let closed = step.tolerated || discarded || stored.record.state == State::Cancelled;
            let lacks = step.state == State::Failed && gave_up && step.letter.is_none() && !closed;
            must(!lacks, *run, || format!("step {index} gave up without a dead letter"))?;
            let is_there = step.letter.is_none_or(|letter| open.contains(&(run.partition(), letter)));
            must(is_there, *run, || format!("the dead letter of step {index} is nowhere"))?;
        }
    }
    let stray = open.difference(&known).next();
    if let Some((partition, letter)) = stray {
        return Err((None, format!("no step knows of the dead letter {partition}-{letter}")));
    }
    Ok(())
}
