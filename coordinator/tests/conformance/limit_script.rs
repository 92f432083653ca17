//! The script by which partitions share a limit, on a real server.

use redis::Value;
use stepfleet_connect::Redis;
use stepfleet_coordinator::{
    machine::limits::Limit,
    store::{
        limits::{Granted, Tell},
        reply,
    },
};
use stepfleet_protocol::{gate::Gate, id::PartitionId, policy::LimitPolicy, rate::Rate};

use crate::{fleet::all_keys, world::World};

fn bank() -> Gate {
    Gate::target("bank")
}

/// A call of the script.
struct Call<'a> {
    w: &'a mut World<Redis>,
    limit: Limit,
    calls: u64,
}

impl Call<'_> {
    async fn tell(&mut self, partition: u16, reign: u64, used: u64, want: u64) -> Option<Granted> {
        self.calls += 1;
        let tell = Tell { partition: PartitionId(partition), reign, call: self.calls, used, want };
        self.send(tell).await
    }

    async fn send(&mut self, tell: Tell) -> Option<Granted> {
        let mut pipe = redis::pipe();
        pipe.add_command(tell.call(&all_keys(), &bank(), &self.limit));
        let value: Value = self.w.client.trip(&pipe).await.expect("no faults").swap_remove(0);
        assert_eq!(reply::error(&value), None);
        tell.answer(&value)
    }
}

fn of(concurrency: u32) -> Limit {
    Limit::of(&LimitPolicy { concurrency: Some(concurrency), ..LimitPolicy::default() })
}

#[test]
fn partitions_share_a_limit_and_whoever_waits_longest_is_next() -> anyhow::Result<()> {
    crate::world::on_real("limit_shared", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(10), calls: 0 };
        let granted = |answer: Option<Granted>| answer.expect("it is heard").granted;
        let all = call.tell(0, 1, 0, 50).await.expect("it is heard");
        assert_eq!((all.granted, all.keep), (10, 10), "nobody else wants anything");
        assert_eq!(granted(call.tell(1, 1, 0, 50).await), 0, "all is taken");
        let first = call.tell(0, 1, 10, 40).await.expect("it is heard");
        assert_eq!((first.granted, first.keep), (0, 5), "now it may use half of them again");
        assert_eq!(granted(call.tell(0, 1, 7, 43).await), 0, "who waits for longer comes first");
        assert_eq!(granted(call.tell(1, 1, 0, 50).await), 3);
        assert_eq!(granted(call.tell(0, 1, 0, 0).await), 0);
        assert_eq!(granted(call.tell(1, 1, 3, 50).await), 7, "what nobody else wants is to be had");
        assert_eq!(granted(call.tell(1, 1, 0, 0).await), 0);
        let left = call.w.number(&["EXISTS", &all_keys().fleet_limit(&bank())]).await;
        assert_eq!(left, 0, "nothing is kept of who has nothing");
    })
}

#[test]
fn a_place_that_only_one_can_have_goes_round() -> anyhow::Result<()> {
    crate::world::on_real("limit_round", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(1), calls: 0 };
        let mut had = [0u32; 3];
        let mut holder: Option<u16> = None;
        for turn in 0..90u16 {
            let who = turn % 3;
            // A job ends as soon as its partition speaks again.
            let answer = call.tell(who, 1, 0, 5).await.expect("it is heard");
            if answer.granted == 1 {
                assert!(holder.is_none_or(|holder| holder == who), "two at once");
                holder = Some(who);
                had[usize::from(who)] += 1;
            } else if holder == Some(who) {
                holder = None;
            }
        }
        let (least, most) = (had.iter().min().expect("three"), had.iter().max().expect("three"));
        assert!(*least >= 5 && most - least <= 2, "{had:?}");
    })
}

#[test]
fn an_older_reign_and_an_older_call_are_not_heard() -> anyhow::Result<()> {
    crate::world::on_real("limit_fence", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(10), calls: 0 };
        assert_eq!(call.tell(0, 2, 4, 0).await.map(|g| g.granted), Some(0));
        assert_eq!(call.tell(0, 1, 0, 10).await, None, "an owner that is none any more");
        let late = Tell { partition: PartitionId(0), reign: 2, call: 1, used: 0, want: 10 };
        assert_eq!(call.send(late).await, None, "a copy that was held up");
        assert_eq!(call.tell(1, 1, 0, 10).await.map(|g| g.granted), Some(6));
        assert_eq!(call.tell(0, 3, 0, 10).await.map(|g| g.granted), Some(4), "the new owner says how it is");
    })
}

#[test]
fn a_rate_lets_its_burst_begin_and_then_one_at_a_time() -> anyhow::Result<()> {
    crate::world::on_real("limit_rate", async |mut w| {
        let policy = LimitPolicy { rate: Rate::parse("20/s").ok(), burst: Some(5), ..LimitPolicy::default() };
        let mut call = Call { w: &mut w, limit: Limit::of(&policy), calls: 0 };
        let begun = std::time::Instant::now();
        let mut granted = 0;
        let mut first = 0;
        while begun.elapsed() < std::time::Duration::from_millis(1_500) {
            let answer = call.tell(0, 1, 0, 100).await.expect("it is heard");
            assert!(answer.granted > 0 || (1..=50).contains(&answer.due_ms), "{answer:?}");
            first = if granted == 0 { answer.granted } else { first };
            granted += answer.granted;
            // What may have begun until now, and not one more.
            let most = 5 + begun.elapsed().as_millis() as u64 / 50 + 1;
            assert!(granted <= most, "{granted} of {most}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(first, 5);
        assert!(granted >= 25, "{granted} in a second and a half");
    })
}

#[test]
fn what_is_free_goes_to_those_who_wait_beyond_their_share() -> anyhow::Result<()> {
    crate::world::on_real("limit_free", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(100), calls: 0 };
        for partition in 0..6 {
            assert_eq!(call.tell(partition, 1, 0, 1).await.map(|g| g.granted), Some(1));
        }
        let mut has = [0, 0];
        for _ in 0..6 {
            for (n, has) in has.iter_mut().enumerate() {
                *has += call.tell(6 + n as u16, 1, *has, 500).await.expect("it is heard").granted;
            }
        }
        assert_eq!(has.iter().sum::<u64>(), 94, "{has:?}: six of a hundred are in use by others");
    })
}

#[test]
fn after_a_limit_was_lowered_nothing_begins_until_enough_has_ended() -> anyhow::Result<()> {
    crate::world::on_real("limit_lowered", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(10), calls: 0 };
        assert_eq!(call.tell(0, 1, 0, 5).await.map(|g| g.granted), Some(5));
        assert_eq!(call.tell(1, 1, 0, 5).await.map(|g| g.granted), Some(5));
        call.limit = of(4);
        let answer = call.tell(0, 1, 5, 20).await.expect("it is heard");
        assert_eq!((answer.granted, answer.keep), (0, 0), "the others have more than there may be");
        call.tell(1, 1, 0, 0).await;
        let answer = call.tell(0, 1, 4, 20).await.expect("it is heard");
        assert_eq!((answer.granted, answer.keep), (0, 4));
    })
}

#[test]
fn a_rate_that_was_raised_holds_at_once() -> anyhow::Result<()> {
    crate::world::on_real("limit_raised", async |mut w| {
        let rate = |rate: &str, burst| {
            let policy = LimitPolicy { rate: Rate::parse(rate).ok(), burst: Some(burst), ..LimitPolicy::default() };
            Limit::of(&policy)
        };
        let mut call = Call { w: &mut w, limit: rate("1/h", 3), calls: 0 };
        assert_eq!(call.tell(0, 1, 0, 9).await.map(|g| g.granted), Some(3));
        call.limit = rate("100/s", 10);
        let answer = call.tell(0, 1, 0, 50).await.expect("it is heard");
        assert!(answer.due_ms <= 10, "{answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        let answer = call.tell(0, 1, 0, 50).await.expect("it is heard");
        assert!((5..=10).contains(&answer.granted), "{answer:?}");
    })
}

#[test]
fn what_an_owner_that_is_gone_had_counts_no_more() -> anyhow::Result<()> {
    crate::world::on_real("limit_gone", async |mut w| {
        let time = w.one(&[b"TIME"]).await;
        let now_s = reply::array(&time).and_then(|t| reply::number(&t[0])).expect("a time");
        for (age_s, granted) in [(50, 0), (61, 10)] {
            let at_ms = 1_000.0 * (now_s - age_s) as f64;
            let row: Vec<u8> = [9.0, 9.0, 10.0, 0.0, 0.0, at_ms].iter().flat_map(|n: &f64| n.to_be_bytes()).collect();
            w.one(&[b"HSET", all_keys().fleet_limit(&bank()).as_bytes(), b"p:7", &row]).await;
            let mut call = Call { w: &mut w, limit: of(10), calls: 0 };
            assert_eq!(call.tell(age_s as u16, 1, 0, 50).await.map(|g| g.granted), Some(granted), "{age_s} s");
            call.tell(age_s as u16, 1, 0, 0).await;
            // Its partition has an owner of a lower reign, because the server went back to an earlier moment.
            assert!(call.tell(7, 1, 0, 0).await.is_some(), "it is heard");
        }
    })
}

#[test]
fn with_a_thousand_partitions_a_call_holds_the_server_for_a_few_milliseconds() -> anyhow::Result<()> {
    crate::world::on_real("limit_wide", async |mut w| {
        let mut call = Call { w: &mut w, limit: of(10_000), calls: 0 };
        for partition in 0..1_000 {
            call.tell(partition, 1, 1, 0).await.expect("it is heard");
        }
        let mut took = Vec::new();
        for partition in 0..20 {
            let begun = std::time::Instant::now();
            call.tell(partition, 1, 1, 1).await.expect("it is heard");
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        // A quarter of all partitions there may be, and five times the promise of 5 ms for all of them.
        assert!(took[10] < std::time::Duration::from_millis(7), "{took:?}");
    })
}
