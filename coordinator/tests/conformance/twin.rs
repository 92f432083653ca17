//! What only the memory twin can do: rollback, a full server, jumps of time.

use std::time::Duration;

use stepfleet_coordinator::{
    shell::{
        fleet,
        metrics::Metrics,
        observer,
        owner::{BATCH_ITEMS_MAX, OwnerError},
        retention::Retention,
        spans,
    },
    store::{link::Dial, memory::MemoryDial, reply, room, workflows::Stored},
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    id::{JobId, Reign, RunId},
    message::{Body, NewRun, Outcome, Submit},
    state::State,
    workflow::Workflow,
};
use tokio::time::advance;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{PARTITION, Worker, all_keys, chain, keys, workflow},
    world::{World, on_memory, on_real_alone, on_twin},
};

/// The client's connection is lost: it finds out.
async fn reconnect<D: Dial>(w: &mut World<D>) {
    let mut ping = redis::pipe();
    ping.cmd("PING");
    while w.client.trip(&ping).await.is_err() {}
}

#[test]
fn trap_2_after_a_rollback_the_result_of_a_lost_job_with_the_same_numbers_is_ignored() {
    on_twin(async |server, mut w| {
        let run = w.submit(&chain(1)).await;
        let snapshot = server.snapshot();
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let (lost, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        server.restore(&snapshot);
        reconnect(&mut w).await;
        let mut owner = w.own().await;
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let numbers = |job: JobId| (job.reign.counter, job.seq, job.n);
        assert_eq!(numbers(lost.job), numbers(of.job), "both time lines count alike");
        assert_ne!(lost.job, of.job, "the random part differs");
        w.turns(&mut owner, 2).await;
        let before = w.stored(run).await;
        worker.answer(vec![(lost, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        let at = w.stored(run).await;
        assert_eq!((at.record.state, &at.steps), (before.record.state, &before.steps), "it moves nothing");
        assert!(at.history[before.history.len()..].iter().all(|t| t.to_string().contains("Ignored")));
        worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

#[test]
fn a_run_that_a_rollback_took_whole_is_named_in_the_quarantine_when_its_worker_reports() {
    on_twin(async |server, mut w| {
        let snapshot = server.snapshot();
        let run = w.submit(&workflow(&[("a", &[]), ("b", &[])])).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let mut jobs = w.jobs(&mut owner, &mut worker).await;
        while jobs.len() < 2 {
            jobs.extend(w.jobs(&mut owner, &mut worker).await);
        }
        server.restore(&snapshot);
        reconnect(&mut w).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(2));
        for (of, _) in jobs {
            worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
            w.turns(&mut owner, 3).await;
        }
        assert_eq!(w.state(run).await, None, "nobody can bring it back");
        let kept = w.one(&[b"XRANGE", keys().quarantine().as_bytes(), b"-", b"+"]).await;
        let kept = reply::entries(kept);
        assert_eq!(kept.len(), 1, "it is told once: {kept:?}");
        let told = |(name, value): &(bytes::Bytes, bytes::Bytes)| {
            name == "why" && String::from_utf8_lossy(value).contains(&run.to_string())
        };
        assert!(kept[0].1.iter().any(told), "it is named: {kept:?}");
        assert_eq!(owner.done.quarantined, 1);
        let again = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut worker, again).await;
        assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, 1, "a run that is there is no stranger");
    });
}

#[test]
fn trap_4_after_a_rollback_nothing_is_passed_by() {
    on_twin(async |server, mut w| {
        let run = w.submit(&chain(3)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let jobs = w.jobs(&mut owner, &mut worker).await;
        let snapshot = server.snapshot();
        // This time line is lost, with its result and what followed.
        worker.answer(vec![(jobs[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        server.restore(&snapshot);
        assert!(owner.turn(false).await.is_err(), "the old owner's connection is gone");
        let mut owner = w.own().await;
        reconnect(&mut w).await;
        // The worker sends the results of the last minute again.
        while worker.answer(vec![(jobs[0].0.clone(), Outcome::Completed(None))]).await.is_err() {}
        let rest = w.finish(&mut owner, &mut worker, run).await;
        let steps: Vec<&str> = rest.iter().map(|j| j.step.as_str()).collect();
        assert_eq!(steps, ["s1", "s2"]);
    });
}

/// Waits until the partition is owned in this reign or a later one.
async fn reign_from(w: &mut World<MemoryDial>, counter: u64) -> Reign {
    let mut ask = redis::pipe();
    ask.cmd("HGET").arg(keys().head()).arg("reign");
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let found = w.client.trip(&ask).await.ok().and_then(|r| reply::text(&r[0])?.parse::<Reign>().ok());
        if let Some(reign) = found.filter(|reign| reign.counter >= counter) {
            return reign;
        }
    }
    panic!("nobody takes reign {counter}");
}

/// A doorbell, a cancel and an answer that belong to a commit which never applied would be lies.
#[test]
fn on_a_cluster_nothing_is_announced_before_it_is_committed() {
    on_twin(async |server, mut w| {
        let mut bell = server.subscribe(keys().control());
        w.submit(&chain(1)).await;
        let (mut old, retention) = (w.own().await, Retention::default());
        old.configure(true, retention);
        w.turns(&mut old, 1).await;
        assert!(!old.is_settled(), "the dispatch is decided, and not committed yet");
        let mut new = w.own().await;
        new.configure(true, retention);
        assert!(old.turn(false).await.is_err(), "another one reigns");
        assert!(bell.try_recv().is_err(), "nothing of it was committed");
        let queue = stepfleet_protocol::name::Name::new("default").expect("a legal name");
        for _ in 0..5 {
            w.turns(&mut new, 1).await;
            if bell.try_recv().is_ok() {
                assert_eq!(w.number(&["XLEN", &keys().jobs(&queue)]).await, 1, "the job is there");
                return;
            }
        }
        panic!("nobody rings for the job");
    });
}

/// Trap 2: a rollback gives a number out twice, to the very same coordinator too.
#[test]
fn a_reign_that_has_the_number_of_a_lost_one_is_another_reign() {
    on_twin(async |server, mut w| {
        let retention = Retention::default();
        let config = fleet::Config {
            name: "c@1".into(),
            keys: all_keys(),
            partitions: 1,
            retention,
            dispatcher: None,
            spans: spans::Spans::default(),
            pods: observer::Pods::default(),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(fleet::run(w.dial.clone(), config, Metrics::new(), stop.clone()));
        let first = reign_from(&mut w, 1).await;
        let snapshot = server.snapshot();
        server.cut();
        let lost = reign_from(&mut w, first.counter + 1).await;
        server.restore(&snapshot);
        let again = reign_from(&mut w, lost.counter).await;
        assert_eq!(again.counter, lost.counter, "the number is given out twice");
        assert!(again.random != lost.random && lost.random != first.random, "{first} {lost} {again}");
        stop.cancel();
        running.await.expect("it leaves");
    });
}

#[test]
fn trap_10_results_that_came_in_time_are_decided_before_overdue_timers() {
    on_memory(async |mut w| {
        let mut workflow = chain(1);
        workflow.timeout = stepfleet_protocol::duration::Millis(1_000);
        let run = w.submit(&workflow).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let jobs = w.jobs(&mut owner, &mut worker).await;
        worker.answer(vec![(jobs[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        drop(owner);
        advance(Duration::from_secs(10)).await;
        let mut owner = w.own().await;
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

#[test]
fn trap_10_a_timer_never_overtakes_entries_that_were_not_read() {
    on_memory(async |mut w| {
        let mut workflow = chain(1);
        workflow.timeout = stepfleet_protocol::duration::Millis(60_000);
        let run = w.submit(&workflow).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let jobs = w.jobs(&mut owner, &mut worker).await;
        w.turns(&mut owner, 2).await;
        // Two entries that fill a batch each: the second is decided in a turn that reads nothing.
        for _ in 0..2 {
            let runs = (0..400).map(|_| w.client.run_id()).map(|run| NewRun {
                run,
                plan: "0".repeat(32),
                version: None,
                input: None,
                traceparent: None,
            });
            let submit = Submit { runs: runs.collect(), id: w.client.command_id(), actor: "t".into(), again: false };
            w.client.append(Body::Submit(submit)).await.expect("up");
        }
        w.turns(&mut owner, 1).await;
        worker.answer(vec![(jobs[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        advance(Duration::from_secs(100)).await;
        w.turns(&mut owner, 4).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

#[test]
fn a_retry_and_a_run_time_out_beyond_the_horizon_come_after_a_new_owner_too() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let mut failure = Failure::new(Category::RateLimited, "429");
        failure.retry_after_ms = Some(600_000);
        worker.answer(vec![(of, Outcome::Failed(failure))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        let mut owner = w.own().await;
        for _ in 0..9 {
            assert!(worker.take(1).await.unwrap_or_default().is_empty());
            advance(Duration::from_secs(60)).await;
            w.turns(&mut owner, 3).await;
        }
        advance(Duration::from_secs(60)).await;
        let (_, job) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        assert_eq!(job.attempt, 2);
        for _ in 0..70 {
            advance(Duration::from_secs(60)).await;
            w.turns(&mut owner, 3).await;
        }
        assert!(w.number(&["SCARD", &keys().cancels()]).await >= 1, "the run's time-out stops the job");
        assert_eq!(w.state(run).await, Some(State::Processing));
    });
}

#[test]
fn a_thousand_time_outs_that_are_due_together_are_decided_in_bounded_turns() {
    on_memory(async |mut w| {
        let mut workflow = chain(1);
        workflow.timeout = stepfleet_protocol::duration::Millis(60_000);
        w.submit(&workflow).await;
        let plan = Stored::new(&workflow).hash;
        for count in [99].into_iter().chain([100; 9]) {
            let runs = (0..count).map(|_| w.client.run_id());
            let new = |run| NewRun { run, plan: plan.clone(), version: None, input: None, traceparent: None };
            let runs = runs.map(new).collect();
            let submit = Submit { runs, id: w.client.command_id(), actor: "t".into(), again: false };
            w.client.append(Body::Submit(submit)).await.expect("up");
        }
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        w.turns(&mut owner, 10).await;
        let held = worker.take(300).await.expect("up");
        assert_eq!(w.number(&["ZCARD", &keys().runs(State::Processing)]).await, 1_000);
        advance(Duration::from_secs(61)).await;
        let (mut before, mut most) = (owner.done.items, 0);
        for _ in 0..10 {
            w.turns(&mut owner, 1).await;
            most = most.max(owner.done.items - before);
            before = owner.done.items;
        }
        assert_eq!(most, BATCH_ITEMS_MAX as u64, "they are due together, and a turn decides no more than its limit");
        // Those that a worker had end when it confirms.
        let failed = w.number(&["ZCARD", &keys().runs(State::Failed)]).await;
        assert_eq!(failed as usize + held.len(), 1_000);
        let stopped = held.into_iter().map(|(of, _)| (of, Outcome::Cancelled));
        worker.answer(stopped.collect()).await.expect("up");
        w.turns(&mut owner, 5).await;
        assert_eq!(w.number(&["ZCARD", &keys().runs(State::Failed)]).await, 1_000);
        assert_eq!(w.number(&["ZCARD", &keys().timers()]).await, 0);
    });
}

#[test]
fn trap_19_nothing_grows_behind_a_long_job_at_the_head() {
    on_memory(async |mut w| {
        let long = w.submit(&chain(1)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let held = w.jobs(&mut owner, &mut worker).await;
        for _ in 0..60 {
            let run = w.submit(&chain(10)).await;
            w.finish(&mut owner, &mut worker, run).await;
            advance(Duration::from_secs(2)).await;
            w.turns(&mut owner, 2).await;
        }
        w.turns(&mut owner, 5).await;
        let name = held[0].0.queue.clone();
        let left = w.number(&["XLEN", &keys().jobs(&name)]).await;
        assert!(left < 60, "{left} entries of 600 are left behind the first");
        worker.answer(vec![(held[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(long).await, Some(State::Completed));
    });
}

/// Submits a run on a server that has just become full, makes room, and lets it go on.
async fn full<D: Dial>(w: &mut World<D>, run: RunId, worker: &mut Worker<D>, set: impl AsyncFn(&mut World<D>, bool)) {
    let mut owner = w.own().await;
    let jobs = w.jobs(&mut owner, worker).await;
    worker.answer(jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect()).await.expect("up");
    set(w, true).await;
    let refused = loop {
        if let Err(error) = owner.turn(false).await {
            break error;
        }
    };
    assert!(matches!(&refused, OwnerError::Turn(error) if error.is_full()), "{refused:?}");
    let before = w.number(&["XLEN", &keys().log()]).await;
    let gone = room::make(&w.dial, &all_keys(), PARTITION).await.expect("up");
    let after = w.number(&["XLEN", &keys().log()]).await;
    assert!(gone > 0 && after < before && after > 0, "only what is decided goes: {before} -> {after}");
    set(w, false).await;
    let mut owner = w.own().await;
    w.finish(&mut owner, worker, run).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
}

fn workload() -> Workflow {
    chain(3)
}

#[test]
fn trap_18_a_full_twin_makes_room_and_goes_on() {
    on_twin(async |server, mut w| {
        let run = w.submit(&workload()).await;
        let mut worker = w.worker(1);
        full(&mut w, run, &mut worker, async |_, full| server.set_full(full)).await;
    });
}

#[test]
fn trap_18_a_full_server_makes_room_and_goes_on() -> anyhow::Result<()> {
    on_real_alone(async |mut w| {
        let run = w.submit(&workload()).await;
        let mut worker = w.worker(1);
        full(&mut w, run, &mut worker, async |w, full| {
            let bytes: &[u8] = if full { b"1" } else { b"0" };
            w.one(&[b"CONFIG", b"SET", b"maxmemory", bytes]).await;
        })
        .await;
    })
}
