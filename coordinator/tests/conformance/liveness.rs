//! Workers that die or never receive, and leases: the observer and the leases over the memory twin, under simulated time.

use std::{collections::BTreeSet, time::Duration};

use stepfleet_coordinator::{
    shell::{lease::Leases, metrics::Metrics, observer::Observer},
    store::{link::Dial, memory::MemoryDial},
};
use stepfleet_protocol::{
    beat::{Beat, Phase},
    codec,
    keys::GROUP,
    message::{JobRef, Outcome},
    name::Name,
    state::State,
};
use tokio::{sync::watch, time::advance};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{PARTITION, Worker, all_keys, chain, keys},
    world::{TryTake, World, on_memory, on_twin},
};

const LOOK: Duration = Duration::from_millis(500);

/// Starts an observer and returns how to stop it.
pub(crate) fn observe<D: Dial>(dial: D) -> CancellationToken {
    let stop = CancellationToken::new();
    let owned = watch::Sender::new(BTreeSet::from([PARTITION]));
    let slots = watch::Sender::new(std::collections::BTreeMap::new());
    let observer = Observer::new(dial, all_keys(), Metrics::new(), owned.subscribe(), slots);
    let token = stop.clone();
    tokio::spawn(async move {
        let _owned = owned;
        observer.run(token).await;
    });
    stop
}

pub(crate) async fn beat<D: Dial>(w: &mut World<D>, worker: &Worker<D>, held: &[&JobRef], n: u64) -> bool {
    let queue = Name::new("default").expect("a legal name");
    let held = held.iter().map(|of| stepfleet_protocol::beat::Held {
        job: of.job,
        partition: PARTITION,
        queue: of.queue.clone(),
        entry: of.entry,
        running_ms: None,
        progress: None,
    });
    let beat = Beat {
        v: 1,
        read_age_ms: 0,
        phase: Phase::Running,
        slots: 4,
        queues: vec![queue],
        handlers: Vec::new(),
        version: "0".into(),
        host: "h".into(),
        pid: 1,
        held: held.collect(),
        pod: None,
    };
    let mut pipe = redis::pipe();
    pipe.cmd("ZADD").arg(all_keys().workers()).arg(1).arg(worker.id.as_str());
    let key = all_keys().worker(&worker.id);
    pipe.cmd("HSET").arg(key).arg("n").arg(n).arg("beat").arg(codec::pack(&beat));
    let replies = w.client.trip(&pipe).await;
    replies.is_ok_and(|r| r.iter().all(|v| !matches!(v, redis::Value::ServerError(_))))
}

/// Moves time on by `secs`, a beat every five, while the observer looks. Returns how many beats there were.
pub(crate) async fn beats(
    w: &mut World<MemoryDial>,
    worker: &Worker<MemoryDial>,
    held: &[&JobRef],
    from: u64,
    secs: u64,
) -> u64 {
    let mut n = from;
    for half in 0..2 * secs {
        if half % 10 == 0 {
            n += 1;
            beat(w, worker, held, n).await;
        }
        tokio::time::sleep(LOOK).await;
    }
    n
}

pub(crate) async fn pass(secs: u64) {
    for _ in 0..2 * secs {
        advance(LOOK).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn lesson_01_the_jobs_of_a_dead_worker_run_elsewhere_without_any_restart() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut dead, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut dead).await.swap_remove(0);
        beat(&mut w, &dead, &[&of], 1).await;
        let _observer = observe(w.dial.clone());
        pass(25).await;
        w.turns(&mut owner, 2).await;
        assert!(other.take(1).await.unwrap_or_default().is_empty(), "25 s are no death");
        pass(12).await;
        let again = w.jobs(&mut owner, &mut other).await;
        assert_ne!(again[0].0.job, of.job);
        other.answer(vec![(again[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 2).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
        // Nothing of the dead one is left for ever, nor of the other, which left without a word.
        pass(130).await;
        assert_eq!(w.number(&["ZCARD", &all_keys().workers()]).await, 0);
        assert_eq!(w.number(&["EXISTS", &all_keys().worker(&dead.id)]).await, 0);
        let consumers = w.one(&[b"XINFO", b"CONSUMERS", keys().jobs(&of.queue).as_bytes(), GROUP.as_bytes()]).await;
        assert_eq!(consumers, redis::Value::Array(Vec::new()));
    });
}

#[test]
fn a_queue_has_its_share_of_the_slots_among_all_partitions_not_only_those_owned_here() {
    on_memory(async |mut w| {
        w.number(&["HSET", &all_keys().meta(), "partitions", "4"]).await;
        let worker = w.worker(1);
        beat(&mut w, &worker, &[], 1).await;
        let owned = watch::Sender::new(BTreeSet::from([PARTITION]));
        let slots = watch::Sender::new(std::collections::BTreeMap::new());
        let told = slots.subscribe();
        let mut observer = Observer::new(w.dial.clone(), all_keys(), Metrics::new(), owned.subscribe(), slots);
        observer.sweep().await;
        let queue = Name::new("default").expect("a legal name");
        assert_eq!(told.borrow().get(&queue), Some(&1), "four slots for four partitions");
    });
}

#[test]
fn trap_6_a_delivery_that_never_arrived_is_found_by_two_beats_and_not_counted() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let (of, first) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let _observer = observe(w.dial.clone());
        // It lives, and never names the entry: the reply of its XREADGROUP was lost.
        beats(&mut w, &worker, &[], 0, 45).await;
        let again = w.jobs(&mut owner, &mut worker).await;
        assert_eq!((again[0].1.attempt, again[0].0.job == of.job), (first.attempt, false));
        assert!(w.stored(run).await.history.iter().any(|t| t.to_string().contains("DeliveryLost")));
    });
}

#[test]
fn a_job_that_its_worker_holds_for_long_is_left_alone() {
    on_memory(async |mut w| {
        w.submit(&chain(1)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let _observer = observe(w.dial.clone());
        beats(&mut w, &worker, &[&of], 0, 90).await;
        w.turns(&mut owner, 3).await;
        assert!(worker.take(1).await.unwrap_or_default().is_empty());
    });
}

/// Nobody could beat for 40 s; then beats go on before 30 more seconds are over. Nobody is dead.
async fn an_outage(server: stepfleet_coordinator::store::memory::MemoryServer, mut w: World<MemoryDial>, full: bool) {
    w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    beat(&mut w, &worker, &[&of], 1).await;
    let _observer = observe(w.dial.clone());
    pass(20).await;
    if full {
        server.set_full(true)
    } else {
        server.down()
    }
    pass(40).await;
    if full {
        server.set_full(false)
    } else {
        server.up()
    }
    pass(20).await;
    while !beat(&mut w, &worker, &[&of], 2).await {}
    pass(20).await;
    let mut owner = {
        drop(owner);
        w.own().await
    };
    w.turns(&mut owner, 3).await;
    let mut other = w.worker(2);
    assert!(other.take(1).await.unwrap_or_default().is_empty(), "the job is still its worker's");
}

#[test]
fn trap_9_the_death_clock_does_not_run_while_the_server_is_away() {
    on_twin(async |server, w| an_outage(server, w, false).await);
}

#[test]
fn trap_9_the_death_clock_does_not_run_while_the_server_is_full() {
    on_twin(async |server, w| an_outage(server, w, true).await);
}

#[test]
fn trap_23_a_lease_lapses_without_its_loop_and_others_wait_a_moment() {
    on_memory(async |w| {
        let leases = |name: &str| Leases::new(w.dial.clone(), all_keys(), name.into(), Duration::ZERO);
        let (mut a, mut b) = (leases("a"), leases("b"));
        assert!(a.try_take(PARTITION, false).await.expect("up"), "a partition that nobody ever had is free");
        let _owner = crate::fleet::own(&w.dial, 1, stepfleet_coordinator::shell::owner::Memory::default()).await;
        assert!(!b.try_take(PARTITION, false).await.expect("up"));
        advance(Duration::from_millis(3_100)).await;
        assert!(!b.try_take(PARTITION, false).await.expect("up"), "lapsed, but its last owner comes first");
        assert!(a.retake(PARTITION).await.expect("up"), "its last owner takes it at once");
        assert!(!b.try_take(PARTITION, false).await.expect("up"));
        advance(Duration::from_millis(3_100)).await;
        assert!(!b.try_take(PARTITION, false).await.expect("up"));
        advance(Duration::from_millis(1_100)).await;
        assert!(b.try_take(PARTITION, false).await.expect("up"), "after a second it is anybody's");
    });
}

#[test]
fn trap_23_a_released_lease_is_taken_at_once() {
    on_memory(async |w| {
        let leases = |name: &str| Leases::new(w.dial.clone(), all_keys(), name.into(), Duration::ZERO);
        let (mut a, mut b) = (leases("a"), leases("b"));
        assert!(a.try_take(PARTITION, false).await.expect("up"));
        a.release(PARTITION).await.expect("up");
        assert!(b.try_take(PARTITION, false).await.expect("up"));
        assert!(!a.try_take(PARTITION, false).await.expect("up"));
    });
}

#[test]
fn trap_23_the_owner_loop_renews_the_lease() {
    on_memory(async |mut w| {
        let mut leases = Leases::new(w.dial.clone(), all_keys(), "test".into(), Duration::ZERO);
        assert!(leases.try_take(PARTITION, false).await.expect("up"));
        let mut owner = w.own().await;
        for _ in 0..20 {
            owner.turn(false).await.expect("no faults");
        }
        assert!(leases.retake(PARTITION).await.expect("up"));
        let holder = leases.holder(PARTITION).await.expect("up");
        assert_eq!(holder, stepfleet_coordinator::shell::lease::Holder::Me, "ten seconds of turns have kept it");
    });
}

#[test]
fn trap_10_a_clock_that_is_set_back_stops_no_renewal() {
    on_twin(async |server, mut w| {
        let mut leases = Leases::new(w.dial.clone(), all_keys(), "test".into(), Duration::ZERO);
        assert!(leases.try_take(PARTITION, false).await.expect("up"));
        let mut owner = w.own().await;
        w.turns(&mut owner, 4).await;
        server.clock().jump_back(Duration::from_secs(3_600));
        w.turns(&mut owner, 4).await;
        let left = w.number(&["PTTL", &crate::fleet::keys().lease()]).await;
        assert!((0..=3_000).contains(&left), "a lease of {left} ms would outlive its owner");
    });
}
