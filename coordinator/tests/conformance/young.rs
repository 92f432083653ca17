//! The time-out of a young run is in its owner's mind only: nobody who comes next forgets it, or is late.

use std::time::Duration;

use redis::Value;
use stepfleet_coordinator::{
    machine::decision::Why,
    shell::metrics::Metrics,
    store::{link::Dial, reply, workflows},
};
use stepfleet_protocol::{
    duration::Millis,
    id::RunId,
    message::{Body, NewRun, Outcome, Submit, Verb},
    state::State,
    workflow::Workflow,
};
use tokio::time::advance;

use crate::{
    both,
    fleet::{chain, keys},
    lessons::audit,
    liveness::pass,
    world::{World, on_memory},
};

both! {
    a_run_that_ends_young_was_never_among_the_timers,
    the_next_owner_stores_what_the_last_one_kept_in_mind,
    an_owner_that_leaves_stores_what_it_kept_in_mind,
}

/// A chain whose run may take 150 s, or `secs`.
fn limited(secs: u64) -> Workflow {
    Workflow { timeout: Millis(secs * 1_000), ..chain(2) }
}

impl<D: Dial> World<D> {
    async fn timers(&mut self) -> i64 {
        self.number(&["ZCARD", &keys().timers()]).await
    }

    /// The client takes the server's time for its ids from the entry before.
    async fn learn_time(&mut self) {
        let (mut owner, mut worker) = (self.own().await, self.worker(9));
        let early = self.submit(&chain(1)).await;
        self.finish(&mut owner, &mut worker, early).await;
    }

    /// When each timer is due, earliest first.
    async fn due(&mut self) -> Vec<u64> {
        let found = self.one(&[b"ZRANGE", keys().timers().as_bytes(), b"0", b"-1", b"WITHSCORES"]).await;
        let score = |pair: &[Value]| reply::score(&pair[1]);
        reply::array(&found).unwrap_or_default().chunks_exact(2).filter_map(score).collect()
    }

    async fn began(&mut self, run: RunId) -> u64 {
        self.stored(run).await.history[0].at_ms
    }
}

async fn a_run_that_ends_young_was_never_among_the_timers<D: Dial>(mut w: World<D>) {
    w.learn_time().await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let run = w.submit(&limited(150)).await;
    let jobs = w.jobs(&mut owner, &mut worker).await;
    assert_eq!(w.timers().await, 0);
    worker.answer(vec![(jobs[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
    w.finish(&mut owner, &mut worker, run).await;
    let (short, other) = (w.submit(&limited(119)).await, w.submit(&limited(150)).await);
    w.turns(&mut owner, 3).await;
    assert_eq!(w.due().await, [w.began(short).await + 119_000], "a short one is written at once");
    w.client.command(other, Verb::Cancel).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.timers().await, 1);
}

async fn the_next_owner_stores_what_the_last_one_kept_in_mind<D: Dial>(mut w: World<D>) {
    w.learn_time().await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let gone = w.submit(&limited(150)).await;
    w.finish(&mut owner, &mut worker, gone).await;
    let (open, held) = (w.submit(&limited(150)).await, w.submit(&limited(170)).await);
    w.client.command(held, Verb::Suspend { now: false }).await.expect("up");
    let stopped = w.submit(&limited(150)).await;
    w.turns(&mut owner, 3).await;
    // Its step is at a worker, so that it only begins to stop.
    let taken = worker.take(9).await.expect("up");
    w.client.command(stopped, Verb::Cancel).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!((w.state(held).await, w.timers().await), (Some(State::Suspended), 0));

    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.due().await, [w.began(open).await + 150_000, w.began(held).await + 170_000]);
    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.timers().await, 2, "they are there already");
    let of_open = taken.into_iter().filter(|(of, _)| of.run == open);
    worker.answer(of_open.map(|(of, _)| (of, Outcome::Completed(None))).collect()).await.expect("up");
    w.finish(&mut owner, &mut worker, open).await;
    assert_eq!(w.timers().await, 1);
}

async fn an_owner_that_leaves_stores_what_it_kept_in_mind<D: Dial>(mut w: World<D>) {
    w.learn_time().await;
    let mut owner = w.own().await;
    let run = w.submit(&limited(150)).await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.timers().await, 0);
    let mut turns = 0;
    while turns == 0 || !owner.is_settled() {
        owner.turn(true).await.expect("no faults");
        turns += 1;
        assert!(turns < 5, "it leaves");
    }
    assert_eq!(w.due().await, [w.began(run).await + 150_000]);
    let told = w.one(&[b"HGET", keys().head().as_bytes(), b"young"]).await;
    assert_eq!(reply::number(&told), Some(run.created_ms() as i64 + 1), "the next one looks at none");
}

#[test]
fn an_idle_owner_stores_a_time_out_when_its_run_is_a_minute_old_and_decides_it_in_time() {
    on_memory(async |mut w| {
        w.learn_time().await;
        let mut owner = w.own().await;
        let run = w.submit(&limited(150)).await;
        w.turns(&mut owner, 3).await;
        advance(Duration::from_secs(55)).await;
        w.turns(&mut owner, 2).await;
        assert_eq!(w.timers().await, 0);
        // Nothing comes but the end of its own wait, twice a second.
        w.turns(&mut owner, 14).await;
        assert_eq!(w.timers().await, 1);
        advance(Duration::from_secs(80)).await;
        w.turns(&mut owner, 2).await;
        assert_eq!(w.state(run).await, Some(State::Queued));
        advance(Duration::from_secs(15)).await;
        w.turns(&mut owner, 3).await;
        let late = w.stored(run).await.history.iter().find(|t| t.why == Why::TimedOut).expect("it is over").at_ms;
        assert_eq!((late - w.began(run).await, w.timers().await), (150_000, 0));
    });
}

#[test]
fn a_time_out_that_passed_while_nobody_reigned_is_decided_as_of_then() {
    on_memory(async |mut w| {
        w.learn_time().await;
        let mut owner = w.own().await;
        let run = w.submit(&limited(150)).await;
        w.turns(&mut owner, 3).await;
        drop(owner);
        advance(Duration::from_secs(3_600)).await;
        let mut owner = w.own().await;
        w.turns(&mut owner, 4).await;
        let over = w.stored(run).await.history.iter().find(|t| t.why == Why::TimedOut).expect("it is over").at_ms;
        assert_eq!((over - w.began(run).await, w.timers().await), (150_000, 0));
    });
}

#[test]
fn thousands_of_young_runs_of_one_moment_are_all_found() {
    const RUNS: i64 = 5_000;
    on_memory(async |mut w| {
        w.learn_time().await;
        let mut owner = w.own().await;
        let workflow = limited(150);
        let first = w.submit(&workflow).await;
        let plan = workflows::Stored::new(&workflow).hash;
        let runs: Vec<RunId> = (1..RUNS).map(|n| RunId::new(first.partition(), first.created_ms(), n as u64)).collect();
        for part in runs.chunks(128) {
            let new =
                |run: &RunId| NewRun { run: *run, plan: plan.clone(), version: None, input: None, traceparent: None };
            let (id, runs) = (w.client.command_id(), part.iter().map(new).collect());
            let submit = Submit { id, actor: "t".into(), runs, again: false };
            w.client.append(Body::Submit(submit)).await.expect("up");
        }
        w.turns(&mut owner, 60).await;
        assert_eq!(w.number(&["ZCARD", &keys().runs(State::Processing)]).await, RUNS);
        assert_eq!(w.timers().await, 0);
        let mut owner = w.own().await;
        w.turns(&mut owner, 3).await;
        assert!(w.timers().await < RUNS, "a turn looks at some of them");
        w.turns(&mut owner, 30).await;
        assert_eq!(w.timers().await, RUNS);
    });
}

/// Nobody who watches takes a young run for one that has lost its time-out, and a lost one is found all the same.
#[test]
fn an_auditor_knows_what_is_young() {
    on_memory(async |mut w| {
        w.learn_time().await;
        let mut owner = w.own().await;
        let run = w.submit(&limited(600)).await;
        w.turns(&mut owner, 3).await;
        let stop = audit(w.dial.clone(), &Metrics::new());
        let repaired = async |w: &mut World<_>| w.one(&[b"HGET", keys().counters().as_bytes(), b"repairs"]).await;
        pass(40).await;
        assert_eq!(repaired(&mut w).await, Value::Nil);
        advance(Duration::from_secs(25)).await;
        w.turns(&mut owner, 4).await;
        assert_eq!((w.timers().await, repaired(&mut w).await), (1, Value::Nil));
        assert_eq!(w.number(&["DEL", &keys().timers()]).await, 1);
        pass(20).await;
        stop.cancel();
        w.turns(&mut owner, 4).await;
        assert_eq!(w.timers().await, 1);
        assert!(w.stored(run).await.history.iter().any(|t| t.why == Why::Repaired));
    });
}
