//! What must hold when every run of a story has ended.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_coordinator::{
    shell::core::Outbox,
    store::{kept, reply},
};
use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
    keys::GROUP,
    name::Name,
    state::State,
};

use crate::{Story, TURNS, fleet::*};

/// Only legal moves, in an order that chains up, and an end that fits the steps.
pub(crate) fn check(seed: u64, stored: &Stored, steps: usize) {
    let mut at = BTreeMap::new();
    for t in &stored.history {
        let state = at.entry(t.step).or_insert(State::Created);
        assert_eq!(*state, t.from, "seed {seed}: the history is broken at {t}");
        let reborn = t.step.is_some() && t.from.is_finished() && t.to == State::Created;
        assert!(t.from == t.to || reborn || t.from.may_become(t.to), "seed {seed}: illegal move {t}");
        *state = t.to;
    }
    let state = stored.record.state;
    let mut completed: BTreeMap<u32, u32> = BTreeMap::new();
    for t in stored.history.iter().filter(|t| t.to == State::Completed && t.from != t.to) {
        t.step.into_iter().for_each(|index| *completed.entry(index).or_default() += 1);
    }
    for (index, times) in completed {
        assert!(times <= stored.steps[&index].generation, "seed {seed}: step {index} completed {times} times");
    }
    assert!(state.is_finished(), "seed {seed}: {state}");
    assert_eq!(at.get(&None), Some(&state), "seed {seed}: record and history differ");
    for (index, step) in &stored.steps {
        assert_eq!(at.get(&Some(*index)).copied().unwrap_or(State::Created), step.state, "seed {seed}: step {index}");
    }
    // A cancel may come while the last step is being done, so the reverse does not hold.
    let over = |index: u32| {
        stored.steps.get(&index).is_some_and(|s| s.tolerated || matches!(s.state, State::Completed | State::Skipped))
    };
    assert!(state != State::Completed || (0..steps as u32).all(over), "seed {seed}: a step is not over");
}

/// When every run has ended nothing of them is on its way.
pub(crate) async fn check_nothing_is_left(story: &mut Story) {
    for _ in 0..40 {
        story.own().await;
        story.work(TURNS, true).await;
    }
    let queue = Name::new("default").expect("a legal name");
    let mut look = redis::pipe();
    look.cmd("ZCARD").arg(keys().ready(&queue)).cmd("LLEN").arg(keys().todo()).cmd("ZCARD").arg(keys().timers());
    look.cmd("SCARD").arg(keys().cancels()).cmd("XPENDING").arg(keys().jobs(&queue)).arg(GROUP);
    look.cmd("HLEN").arg(keys().held());
    let found = story.client.trip(&look).await.expect("no faults");
    let left: Vec<i64> = found[..4].iter().filter_map(reply::number).collect();
    let pending = reply::array(&found[4]).and_then(|p| p.first()).and_then(reply::number);
    let held = reply::number(&found[5]);
    let expected = (vec![0; 4], Some(0), Some(0));
    assert_eq!((left, pending, held), expected, "seed {}: ready, todo, timers, cancels; pending; held", story.seed);
    check_one_commit(story).await;
}

/// State, history, dead letters and outbox of a change are one commit: whatever was lost or came late, the outbox tells what the
/// histories tell, byte by byte, and the open letters are those that steps know of.
async fn check_one_commit(story: &mut Story) {
    let mut look = redis::pipe();
    look.cmd("XRANGE").arg(keys().events()).arg("-").arg("+").cmd("XRANGE").arg(keys().dead()).arg("-").arg("+");
    for (run, _) in &story.runs {
        look.cmd("HGETALL").arg(keys().run(run)).cmd("GET").arg(keys().history(run));
    }
    let mut found = story.client.trip(&look).await.expect("no faults").into_iter();
    let mut next = || found.next().expect("a reply each");
    let mut told: BTreeMap<RunId, Vec<u8>> = BTreeMap::new();
    for (_, fields) in reply::entries(next()) {
        let outbox: Outbox = codec::decode(&fields[0].0, &fields[0].1).expect("an entry of ours");
        for (run, transitions) in outbox.runs {
            told.entry(run).or_default().extend_from_slice(&transitions);
        }
    }
    let open: BTreeSet<StreamId> = reply::entries(next()).into_iter().map(|(id, _)| id).collect();
    let mut known = BTreeSet::new();
    for (run, _) in story.runs.clone() {
        let (fields, string) = (reply::pairs(next()), next());
        let history = kept::whole(&fields, reply::bytes(&string));
        let same = told.get(&run).is_some_and(|told| *told == history);
        assert!(same, "seed {}: outbox and history of {run} differ", story.seed);
        let stored = story.stored(run).await.expect("it was there a moment ago");
        known.extend(stored.steps.values().filter_map(|step| step.letter));
    }
    assert_eq!(open, known, "seed {}: open letters, and those that steps know", story.seed);
}
