//! What an auditor finds and an owner makes up for: work items that are lost between two owners.

use std::collections::BTreeSet;

use serde_json::json;
use stepfleet_coordinator::{machine::decision::Why, shell::metrics::Metrics, store::reply};
use stepfleet_protocol::{message::Outcome, state::State, workflow::Workflow};

use crate::{
    fleet::{chain, keys},
    lessons::audit,
    liveness::pass,
    world::on_memory,
};

/// One step, `n` that need it, and one that needs all of those.
fn wide(n: usize) -> Workflow {
    let mut steps = serde_json::Map::new();
    steps.insert("first".into(), json!({ "handler": "noop" }));
    let middle: Vec<String> = (0..n).map(|i| format!("m{i}")).collect();
    for name in &middle {
        steps.insert(name.clone(), json!({ "handler": "noop", "needs": ["first"] }));
    }
    steps.insert("last".into(), json!({ "handler": "noop", "needs": middle }));
    serde_json::from_value(json!({ "workflow": "wide", "steps": steps })).expect("a legal workflow")
}

#[test]
fn a_fan_out_whose_work_item_is_lost_reaches_every_step_all_the_same() {
    on_memory(async |mut w| {
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        // The client takes the server's time for its ids from the entry before.
        let early = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut worker, early).await;
        let run = w.submit(&wide(1_000)).await;
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        let todo = keys().todo();
        let mut turns = 0;
        while w.number(&["LLEN", &todo]).await == 0 {
            owner.turn(false).await.expect("no faults");
            turns += 1;
            assert!(turns < 20, "a fan of a thousand is more than one decision");
        }
        drop(owner);
        assert_eq!(w.number(&["DEL", &todo]).await, 1);

        let stop = audit(w.dial.clone(), &Metrics::new());
        pass(30).await;
        stop.cancel();
        let walked = w.one(&[b"HGETALL", keys().audited().as_bytes()]).await;
        let told = w.one(&[b"HGET", keys().counters().as_bytes(), b"repairs"]).await;
        // Nobody decides meanwhile, so that each walk tells it again.
        assert!(reply::number(&told) >= Some(1), "{walked:?}");
        let mut owner = w.own().await;
        let done = w.finish(&mut owner, &mut worker, run).await;
        let names: BTreeSet<&str> = done.iter().map(|job| job.step.as_str()).collect();
        assert_eq!((done.len(), names.len()), (1_001, 1_001), "each of the others was done once");
        let stored = w.stored(run).await;
        assert_eq!(stored.record.state, State::Completed);
        assert_eq!(stored.history.iter().filter(|t| t.why == Why::Repaired).count(), 1);
    });
}
