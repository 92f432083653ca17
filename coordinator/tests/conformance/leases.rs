//! Leases of several partitions and coordinators: who takes what, how soon, and who leaves it to others.

use std::time::Duration;

use stepfleet_coordinator::{
    shell::{fleet, lease::Leases, links::Links, metrics::Metrics, observer, retention::Retention, spans},
    store::{
        link::{Dial, Link},
        memory::{Clock, MemoryDial, MemoryServer},
        reply,
    },
};
use stepfleet_protocol::{id::PartitionId, keys::slot_of};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::all_keys,
    wire::Wire,
    world::{TryTake, World, on_twin, runtime},
};

const EIGHT: u16 = 8;

fn leases(dial: &MemoryDial, name: &str) -> Leases<MemoryDial> {
    Leases::new(dial.clone(), all_keys(), name.into(), Duration::ZERO)
}

/// Somebody has reigned over it.
async fn has_been_owned(w: &World<MemoryDial>, partition: PartitionId) {
    let mut link = w.dial.dial(0, Duration::from_secs(1)).await.expect("up");
    let head = all_keys().partition(partition).head();
    link.trip(redis::pipe().cmd("HSET").arg(head).arg("seq").arg(1)).await.expect("up");
}

#[test]
fn every_lapsed_lease_is_taken_after_the_same_short_wait() {
    on_twin(async |_, w| {
        let (mut gone, mut next) = (leases(&w.dial, "gone"), leases(&w.dial, "next"));
        for partition in (0..EIGHT).map(PartitionId) {
            assert!(gone.try_take(partition, false).await.expect("up"));
            has_been_owned(&w, partition).await;
        }
        tokio::time::advance(Duration::from_millis(3_100)).await;
        let mut taken = Vec::new();
        for _ in 0..2 {
            for partition in (0..EIGHT).map(PartitionId) {
                taken.push(next.try_take(partition, false).await.expect("up"));
            }
            tokio::time::advance(Duration::from_millis(1_100)).await;
        }
        assert_eq!(taken, [[false; 8], [true; 8]].concat());
    });
}

/// Looks every 400 ms for so long, as a coordinator does; when it took the lease, if it did.
async fn looks(leases: &mut Leases<MemoryDial>, has_share: bool, for_ms: u64) -> Option<u64> {
    for at_ms in (0..for_ms).step_by(400) {
        if leases.try_take(PartitionId(0), has_share).await.expect("up") {
            return Some(at_ms);
        }
        tokio::time::advance(Duration::from_millis(400)).await;
    }
    None
}

/// Makes partition 0 one that was owned before.
async fn reigned(dial: &MemoryDial) {
    let mut link = dial.dial(0, Duration::from_secs(1)).await.expect("up");
    let head = all_keys().partition(PartitionId(0)).head();
    link.trip(redis::pipe().cmd("HSET").arg(head).arg("seq").arg(1)).await.expect("up");
}

#[test]
fn a_lease_that_is_seen_not_to_be_renewed_is_taken_as_soon_as_it_lapses() {
    for has_share in [false, true] {
        on_twin(async |_, w| {
            let (mut gone, mut next) = (leases(&w.dial, "gone"), leases(&w.dial, "next"));
            assert!(gone.try_take(PartitionId(0), false).await.expect("up"));
            reigned(&w.dial).await;
            let took = looks(&mut next, has_share, 10_000).await;
            // It has 3 s; a look later.
            assert_eq!(took, Some(3_200));
        });
    }
}

#[test]
fn after_a_pause_of_everybody_the_last_owner_has_a_second_to_take_its_lease_again() {
    on_twin(async |_, w| {
        let (mut old, mut next) = (leases(&w.dial, "old"), leases(&w.dial, "next"));
        assert!(old.try_take(PartitionId(0), false).await.expect("up"));
        reigned(&w.dial).await;
        // It is just about to be renewed when everything stops for some seconds.
        assert_eq!(looks(&mut next, false, 2_400).await, None);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(looks(&mut next, false, 800).await, None, "it was not seen for a while");
        assert!(old.retake(PartitionId(0)).await.expect("up"));
        assert!(!next.try_take(PartitionId(0), false).await.expect("up"));
    });
}

#[test]
fn what_nobody_claims_is_taken_by_one_that_has_its_share_and_not_offered_again_at_once() {
    on_twin(async |_, w| {
        let (mut old, mut new) = (leases(&w.dial, "old"), leases(&w.dial, "new"));
        let partition = PartitionId(0);
        assert!(old.try_take(partition, false).await.expect("up"));
        // A program that finds something of a newer version gives the partition away, and does not come back.
        old.release(partition).await.expect("up");
        assert!(!new.try_take(partition, true).await.expect("up"), "others come first");
        tokio::time::advance(Duration::from_millis(4_900)).await;
        assert!(!new.try_take(partition, true).await.expect("up"));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(new.try_take(partition, true).await.expect("up"), "but nobody did");
        assert!(!new.has_too_many(5, EIGHT, 2), "it would find no other owner");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(new.has_too_many(5, EIGHT, 2));
        assert!(!new.has_too_many(5, EIGHT, 2), "one at a time");
    });
}

#[test]
fn a_coordinator_whose_looks_are_slow_takes_a_lapsed_lease_all_the_same() {
    on_twin(async |_, w| {
        let (mut gone, mut next) = (leases(&w.dial, "gone"), leases(&w.dial, "next"));
        let partition = PartitionId(0);
        assert!(gone.try_take(partition, false).await.expect("up"));
        has_been_owned(&w, partition).await;
        tokio::time::advance(Duration::from_millis(3_100)).await;
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(next.try_take(partition, true).await.expect("up"));
            tokio::time::advance(Duration::from_secs(6)).await;
        }
        assert_eq!(taken, [false, false, false, true], "one pause or two may be everybody's");
    });
}

#[test]
fn coordinators_from_before_the_clock_was_set_back_do_not_count() {
    on_twin(async |server, w| {
        let (mut a, mut b) = (leases(&w.dial, "a"), leases(&w.dial, "b"));
        assert_eq!((a.beat().await.expect("up"), b.beat().await.expect("up")), (1, 2));
        server.clock().jump_back(Duration::from_secs(3_600));
        assert_eq!(a.beat().await.expect("up"), 1);
        assert_eq!(b.beat().await.expect("up"), 2, "who lives says so again");
    });
}

fn config(name: &str) -> fleet::Config {
    let retention = Retention::default();
    fleet::Config {
        name: name.into(),
        keys: all_keys(),
        partitions: EIGHT,
        retention,
        dispatcher: None,
        spans: spans::Spans::default(),
        pods: observer::Pods::default(),
    }
}

async fn owned(metrics: &Metrics, count: i64) -> Duration {
    let begun = Instant::now();
    while metrics.owned.get() != count {
        assert!(begun.elapsed() < Duration::from_secs(100), "{} are owned", metrics.owned.get());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    begun.elapsed()
}

#[test]
fn after_the_death_of_all_coordinators_a_single_one_soon_owns_everything() {
    on_twin(async |_, w| {
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let all = tokio::spawn(fleet::run(w.dial.clone(), config("dead"), metrics.clone(), stop.clone()));
        owned(&metrics, i64::from(EIGHT)).await;
        // Its owners end with it: nothing is released.
        all.abort();
        let _aborted = all.await;
        let metrics = Metrics::new();
        let next = tokio::spawn(fleet::run(w.dial.clone(), config("next"), metrics.clone(), stop.clone()));
        let took = owned(&metrics, i64::from(EIGHT)).await;
        assert!(took < Duration::from_secs(7), "{took:?}: the leases' 3 s, the wait of 1 to 2 s, a look");
        stop.cancel();
        next.await.expect("it leaves in peace");
    });
}

#[test]
fn a_coordinator_takes_partitions_of_healthy_nodes_while_another_node_is_away() {
    for away in [0, 1] {
        runtime(true).block_on(async {
            let nodes: Vec<MemoryServer> = (0..2).map(|_| MemoryServer::new(Clock::default())).collect();
            let wire = Wire::over(nodes.iter().map(MemoryServer::dial).collect());
            let (stop, first) = (CancellationToken::new(), Metrics::new());
            let dead = tokio::spawn(fleet::run(wire.clone(), config("dead"), first.clone(), stop.clone()));
            owned(&first, i64::from(EIGHT)).await;
            let second = Metrics::new();
            let next = tokio::spawn(fleet::run(wire, config("next"), second.clone(), stop.clone()));
            owned(&second, 4).await;
            nodes[away].down();
            dead.abort();
            let before = second.owned.get();
            let begun = Instant::now();
            let on_healthy = async || {
                let mut count = 0;
                for partition in (0..EIGHT).map(PartitionId) {
                    let lease = all_keys().partition(partition).lease();
                    let at = usize::from(slot_of(lease.as_bytes())) * 2 / 16_384;
                    if at == away {
                        continue;
                    }
                    let mut link = nodes[at].dial().dial(0, Duration::from_secs(1)).await.expect("up");
                    let value = link.trip(redis::pipe().cmd("GET").arg(lease)).await.expect("up").swap_remove(0);
                    count += usize::from(reply::text(&value) == Some("next"));
                }
                count
            };
            while on_healthy().await < 4 {
                assert!(begun.elapsed() < Duration::from_secs(20), "it had {before}, all of both nodes");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stop.cancel();
            next.abort();
        });
    }
}

fn nodes(count: usize) -> (Vec<MemoryServer>, Wire<MemoryDial>) {
    let nodes: Vec<MemoryServer> = (0..count).map(|_| MemoryServer::new(Clock::default())).collect();
    let wire = Wire::over(nodes.iter().map(MemoryServer::dial).collect());
    (nodes, wire)
}

#[test]
fn a_thousand_leases_are_looked_at_in_a_few_trips_and_taken_in_a_few_more() {
    runtime(true).block_on(async {
        let (_nodes, wire) = nodes(2);
        let all: Vec<PartitionId> = (0..1_000).map(PartitionId).collect();
        let mut first = Leases::new(wire.clone(), all_keys(), "first".into(), Duration::ZERO);
        let taken = first.take(&all, 600).await;
        let mine = taken.iter().filter(|(_, taken)| matches!(taken, Ok(true))).count();
        assert_eq!((taken.len(), mine), (1_000, 600), "its share of what nobody ever had");
        assert!(wire.trips() <= 8, "{} trips", wire.trips());
        let mut second = Leases::new(wire, all_keys(), "second".into(), Duration::ZERO);
        let taken = second.take(&all, 1_000).await;
        let second: Vec<bool> = taken.into_iter().map(|(_, taken)| taken.expect("up")).collect();
        let others: Vec<bool> = (0..1_000).map(|n| n >= 600).collect();
        assert_eq!(second, others, "the first 600 are another's");
    });
}

#[test]
fn a_node_that_answers_nothing_holds_the_looks_at_the_others_up_for_less_than_half_a_second() {
    for frozen in [0, 1] {
        runtime(true).block_on(async {
            let (_nodes, wire) = nodes(2);
            let all: Vec<PartitionId> = (0..EIGHT).map(PartitionId).collect();
            let mut leases = Leases::new(wire.clone(), all_keys(), "next".into(), Duration::ZERO);
            // It has a link to each of them.
            leases.check(&all).await;
            wire.freeze(frozen);
            let begun = Instant::now();
            let taken = leases.take(&all, 8).await;
            assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            for (partition, taken) in taken {
                let lease = all_keys().partition(partition).lease();
                let on_frozen = usize::from(slot_of(lease.as_bytes())) * 2 / 16_384 == frozen;
                assert_eq!(taken.is_ok_and(|taken| taken), !on_frozen, "{partition}");
            }
            let begun = Instant::now();
            leases.take(&all, 8).await;
            assert!(begun.elapsed() < Duration::from_millis(1), "it is left alone for a while");
        });
    }
}

#[test]
fn a_node_that_is_far_away_gets_its_link_and_its_leases_are_taken() {
    runtime(true).block_on(async {
        let (_nodes, mut wire) = nodes(2);
        wire.far = Duration::from_millis(800);
        let all: Vec<PartitionId> = (0..EIGHT).map(PartitionId).collect();
        let mut leases = Leases::new(wire, all_keys(), "next".into(), Duration::ZERO);
        for (partition, taken) in leases.take(&all, 8).await {
            assert!(taken.expect("it answers"), "{partition}");
        }
    });
}

#[test]
fn a_node_rests_also_when_the_look_at_the_topology_took_longer_than_the_rest() {
    runtime(true).block_on(async {
        let (_nodes, mut wire) = nodes(1);
        wire.refresh = Duration::from_secs(4);
        wire.freeze(0);
        let mut links = Links::new(wire);
        let mut ask = async || links.one("key", redis::cmd("PING")).await.map(drop).expect_err("it is frozen");
        ask().await;
        let begun = Instant::now();
        ask().await;
        assert!(begun.elapsed() < Duration::from_millis(1), "{:?}: it was asked again at once", begun.elapsed());
    });
}

#[test]
fn a_coordinator_that_others_took_a_partition_from_is_passed_over_by_the_balance_for_a_minute() {
    on_twin(async |_, w| {
        let (mut hung, mut other) = (leases(&w.dial, "hung"), leases(&w.dial, "other"));
        let (lost, given) = (PartitionId(0), PartitionId(1));
        assert!(hung.try_take(lost, false).await.expect("up"));
        has_been_owned(&w, lost).await;
        assert_eq!((hung.beat().await.expect("up"), other.beat().await.expect("up")), (1, 2));
        hung.check(&[lost]).await;
        assert_eq!(hung.beat().await.expect("up"), 2, "it has what it had");
        // Its owner hangs, and it beats on.
        assert_eq!(looks(&mut other, false, 6_000).await, Some(3_200));
        hung.check(&[lost]).await;
        assert_eq!((hung.beat().await.expect("up"), other.beat().await.expect("up")), (1, 1), "it does not count");
        assert!(other.try_take(given, false).await.expect("up"));
        other.release(given).await.expect("up");
        assert!(!hung.try_take(given, false).await.expect("up"), "others come first");
        tokio::time::advance(Duration::from_millis(5_100)).await;
        assert!(hung.try_take(given, false).await.expect("up"), "nobody did");
        tokio::time::advance(Duration::from_secs(56)).await;
        hung.beat().await.expect("up");
        assert_eq!(other.beat().await.expect("up"), 2);
    });
}
