//! What workers did, against what the histories say of it: each effect once, in order, and nobody is declared dead who lives.

use std::collections::BTreeMap;

use stepfleet_coordinator::machine::decision::{Transition, Why};
use stepfleet_protocol::{id::RunId, message::Outcome, state::State, workflow::StepOnFailure};

use super::{End, Verdict, must};
use crate::{
    fleet::Stored,
    fleets::world::{Try, World},
};

/// How long an observer may take to see that a worker is back, in milliseconds.
const DOUBTED_MS: u64 = 8_000;

/// A step completes once in a generation, and only if a worker has done it.
pub(crate) fn once(world: &World, run: RunId, stored: &Stored) -> Verdict {
    let mut done: BTreeMap<u32, u32> = BTreeMap::new();
    for t in stored.history.iter().filter(|t| t.to == State::Completed && t.from != t.to) {
        let Some(index) = t.step else { continue };
        *done.entry(index).or_default() += 1;
        let by_hand = t.why == Why::Resolved;
        let ledger = world.ledger.borrow();
        let did = |t: &&Try| (t.run, t.index) == (run, index) && matches!(t.outcome, Some(Outcome::Completed(_)));
        must(by_hand || ledger.tries.iter().any(|t| did(&t)), run, || format!("nobody did `{t}`"))?;
    }
    for (index, times) in done {
        let generation = stored.steps.get(&index).map_or(0, |step| step.generation);
        must(times <= generation, run, || format!("step {index} completed {times} times in {generation} generations"))?;
    }
    Ok(())
}

/// A step begins after everything that it needs was done, tolerated, skipped or resolved by hand.
pub(crate) fn in_order(end: &End<'_>) -> Verdict {
    let ledger = end.world.ledger.borrow();
    let mut done: BTreeMap<(RunId, u32), u64> = BTreeMap::new();
    for t in ledger.tries.iter().filter(|t| matches!(t.outcome, Some(Outcome::Completed(_)))) {
        let first = done.entry((t.run, t.index)).or_insert(u64::MAX);
        *first = (*first).min(t.ended.unwrap_or(u64::MAX));
    }
    for t in &ledger.tries {
        let (Some(submitted), Some(stored)) = (ledger.runs.get(&t.run), end.runs.get(&t.run)) else { continue };
        let steps = &submitted.workflow.steps;
        let Some((_, step)) = steps.get_index(t.index as usize) else { continue };
        for need in &step.needs {
            let Some((index, _, needed)) = steps.get_full(need) else { continue };
            let before = done.get(&(t.run, index as u32)).is_some_and(|ended| *ended <= t.begun);
            let other = needed.on_failure.is_some_and(|word| word != StepOnFailure::Fail)
                || end.world.was_set_back(t.run)
                || stored
                    .history
                    .iter()
                    .any(|h| h.step == Some(index as u32) && matches!(h.why, Why::Resolved | Why::SkippedFor));
            must(before || other, t.run, || format!("step {} began before `{need}` was done", t.index))?;
        }
    }
    Ok(())
}

/// Two workers that live never do one step at the same time, and nobody does it again when its result was taken.
pub(crate) fn no_doubles(end: &End<'_>) -> Verdict {
    let ledger = end.world.ledger.borrow();
    let mut tries: BTreeMap<(RunId, u32), Vec<&Try>> = BTreeMap::new();
    for t in &ledger.tries {
        tries.entry((t.run, t.index)).or_default().push(t);
    }
    for ((run, index), tries) in tries.into_iter().filter(|((run, _), _)| !end.world.was_set_back(*run)) {
        // A clock that jumps ahead gives attempts up whose workers are still at them; a step that was begun while nobody could
        // say so is not begun in time.
        let stored = end.runs.get(&run).filter(|stored| {
            let jumped = ledger.jumped && given_up(stored).any(|t| t.step == Some(index));
            jumped || stored.history.iter().any(|t| t.step == Some(index) && t.why == Why::Expired)
        });
        if stored.is_some() {
            continue;
        }
        for (place, first) in tries.iter().enumerate() {
            // The log may have a result whose writer has not heard so yet: what is handed back or has failed goes on at once.
            let goes_on = matches!(first.outcome, Some(Outcome::Returned(_) | Outcome::Failed(_)));
            let known = if goes_on { first.ended } else { first.reported.or(first.ended) };
            let until = known.unwrap_or(first.begun);
            // Who was away until a moment ago may still be taken for dead.
            if end.world.was_away(&first.worker, (first.begun.saturating_sub(DOUBTED_MS), until)) {
                continue;
            }
            for second in &tries[place + 1..] {
                must(second.begun >= until || first.job == second.job && first.worker == second.worker, run, || {
                    format!(
                        "step {index} is done twice at once: {} by {} while {} by {}",
                        second.job, second.worker, first.job, first.worker
                    )
                })?;
                let same = first.generation == second.generation;
                let done = same && first.reported.is_some() && matches!(first.outcome, Some(Outcome::Completed(_)));
                // A worker that wakes, or comes back, begins what it was given before it was taken for dead.
                let doubted = (first.begun.saturating_sub(DOUBTED_MS), second.begun);
                let woke = end.world.was_away(&second.worker, doubted);
                must(!done || woke, run, || {
                    format!("step {index} was done by {}, and again by {}", first.job, second.job)
                })?;
            }
        }
    }
    Ok(())
}

/// Attempts that the owner itself gave up for their time-out.
fn given_up(stored: &Stored) -> impl Iterator<Item = &Transition> {
    let of_owner =
        |t: &Transition| t.worker.is_none() && t.note.as_deref().is_some_and(|n| n.starts_with("timeout/timeout"));
    stored.history.iter().filter(move |t| t.to == State::Failed && of_owner(t))
}

/// The owner gives up only attempts whose worker was away: one that lives ends in time, and reports as soon as the server is
/// back, however long that was away.
pub(crate) fn no_false_time_outs(world: &World, run: RunId, stored: &Stored) -> Verdict {
    if world.ledger.borrow().jumped || world.was_set_back(run) {
        return Ok(());
    }
    let began_ms = world.server_ms() - world.at();
    for t in given_up(stored) {
        let (ledger, at) = (world.ledger.borrow(), t.at_ms.saturating_sub(began_ms));
        let under_way = |a: &&Try| {
            (a.run, Some(a.index)) == (run, t.step) && a.begun <= at && a.reported.is_none_or(|reported| reported > at)
        };
        let mut tries = ledger.tries.iter().filter(under_way);
        let excused = tries.any(|a| world.was_away(&a.worker, (a.begun.saturating_sub(DOUBTED_MS), at)));
        must(excused, run, || format!("`{t}`, and its worker was not away while it was at it"))?;
    }
    Ok(())
}

/// Whoever is there, and has not just come back, is not declared dead.
pub(crate) fn no_false_deaths(world: &World, run: RunId, stored: &Stored) -> Verdict {
    let times_are_right = !world.ledger.borrow().jumped && !world.was_set_back(run);
    let began_ms = world.server_ms() - world.at();
    for t in stored.history.iter().filter(|t| t.to == State::Failed && t.from != t.to) {
        let lost = t.why == Why::WorkerLost || t.note.as_deref().is_some_and(|note| note.starts_with("worker_lost"));
        let (true, Some(worker)) = (lost, t.worker.as_ref()) else { continue };
        // It is decided as of when the observer said so.
        let at = t.at_ms.saturating_sub(began_ms);
        let span = if times_are_right { (at.saturating_sub(DOUBTED_MS), at) } else { (0, u64::MAX) };
        must(world.was_away(worker, span), run, || format!("{worker} was not away, and `{t}`"))?;
    }
    Ok(())
}

/// What the log had taken by some time is decided as of then: nothing that is due later comes before it, and times of a run never
/// go back. Times of beginnings are told by workers.
pub(crate) fn in_time(world: &World, run: RunId, stored: &Stored) -> Verdict {
    let mut last = 0;
    for t in stored.history.iter().filter(|t| t.why != Why::Begun) {
        must(t.at_ms >= last, run, || format!("`{t}` at {} comes after {last}", t.at_ms))?;
        last = t.at_ms;
    }
    let ledger = world.ledger.borrow();
    if ledger.jumped || world.was_set_back(run) {
        return Ok(());
    }
    for done in stored.history.iter().filter(|t| t.why == Why::Done && t.to == State::Completed) {
        let Some(index) = done.step else { continue };
        let mine = |t: &&Try| (t.run, t.index) == (run, index) && matches!(t.outcome, Some(Outcome::Completed(_)));
        let logged: Vec<u64> = ledger.tries.iter().filter(mine).filter_map(|t| t.logged_ms).collect();
        let late = logged.len() == 1 && logged[0] < done.at_ms;
        must(!late, run, || format!("`{done}` at {}, its result came at {:?}", done.at_ms, logged))?;
    }
    Ok(())
}
