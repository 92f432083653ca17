//! The script of the circuit breaker, on a real server: when it opens, who may try, how it closes.

use std::time::Duration;

use redis::Value;
use stepfleet_connect::Redis;
use stepfleet_coordinator::{
    machine::rules::{Breaker, Rules},
    store::{
        gates::{breaker, read_gates},
        reply,
    },
};
use stepfleet_protocol::gate::{Gate, Stand};

use crate::{fleet::all_keys, world::World};

/// A breaker that stays open for a moment only.
fn policy() -> Breaker {
    Breaker { break_ms: 300, break_cap_ms: 1_000, ..Rules::default().breaker_of_target("bank") }
}

fn bank() -> Gate {
    Gate::target("bank")
}

async fn call(w: &mut World<Redis>, op: &str, words: &[&str]) -> Value {
    let mut eval = breaker(&all_keys(), &bank(), &policy(), op);
    eval.arg(words);
    let mut pipe = redis::pipe();
    pipe.add_command(eval);
    let value = w.client.trip(&pipe).await.expect("no faults").swap_remove(0);
    assert_eq!(reply::error(&value), None);
    value
}

/// Reports, and returns the state after that.
async fn report(w: &mut World<Redis>, words: &[&str]) -> String {
    let told = call(w, "report", words).await;
    reply::array(&told).and_then(|told| told.first()).and_then(reply::text).expect("a state").to_string()
}

async fn took(w: &mut World<Redis>, tokens: &[&str]) -> usize {
    let granted = call(w, "take", &[&["30000"][..], tokens].concat()).await;
    reply::array(&granted).expect("a list").len()
}

async fn stand(w: &mut World<Redis>) -> Option<Stand> {
    let gates = read_gates(w.one(&[b"HGETALL", all_keys().fleet_gates().as_bytes()]).await);
    gates.get(&bank()).map(|state| state.stand)
}

const NOTHING: [&str; 5] = ["0", "0", "0", "0", "0"];

#[test]
fn it_opens_at_its_number_of_failures_in_a_row_and_not_below_the_least_number_of_calls() -> anyhow::Result<()> {
    crate::world::on_real("breaker_opens", async |mut w| {
        assert_eq!(report(&mut w, &["0", "5", "5", "5", "5"]).await, "closed", "five calls are too few");
        assert_eq!(report(&mut w, &["3", "0", "0", "0", "0"]).await, "closed");
        assert_eq!(report(&mut w, &["0", "4", "4", "4", "4"]).await, "open", "9 of 12 calls");
        assert_eq!(stand(&mut w).await, Some(Stand::Open));
    })?;
    crate::world::on_real("breaker_in_a_row", async |mut w| {
        assert_eq!(report(&mut w, &["90", "0", "0", "0", "0"]).await, "closed");
        assert_eq!(report(&mut w, &["0", "4", "4", "4", "4"]).await, "closed");
        assert_eq!(report(&mut w, &["1", "0", "0", "0", "0"]).await, "closed", "a success begins a new row");
        assert_eq!(report(&mut w, &["0", "4", "4", "4", "4"]).await, "closed");
        assert_eq!(report(&mut w, &["1", "1", "1", "1", "0"]).await, "open", "the fifth came before the success");
    })
}

#[test]
fn it_never_opens_by_itself_when_it_is_switched_off_and_an_operator_can_open_it() -> anyhow::Result<()> {
    crate::world::on_real("breaker_off", async |mut w| {
        let off = Breaker { enabled: false, ..policy() };
        let mut eval = breaker(&all_keys(), &bank(), &off, "report");
        eval.arg(&["0", "50", "50", "50", "50"]);
        let mut pipe = redis::pipe();
        pipe.add_command(eval);
        w.client.trip(&pipe).await.expect("no faults");
        assert_eq!(stand(&mut w).await, None);
        call(&mut w, "open", &["ann", "maintenance", "0"]).await;
        assert_eq!(stand(&mut w).await, Some(Stand::Open));
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(report(&mut w, &NOTHING).await, "open", "until somebody closes it");
        call(&mut w, "close", &["bob", "done"]).await;
        assert_eq!(stand(&mut w).await, Some(Stand::Recovering));
        call(&mut w, "reset", &["bob", "now"]).await;
        assert_eq!(stand(&mut w).await, None);
        let audit = reply::entries(w.one(&[b"XRANGE", all_keys().fleet_audit().as_bytes(), b"-", b"+"]).await);
        assert_eq!(audit.len(), 3, "each change is written down by the call that made it");
    })
}

#[test]
fn after_its_time_as_many_as_it_says_may_try_and_their_success_closes_it() -> anyhow::Result<()> {
    crate::world::on_real("breaker_closes", async |mut w| {
        assert_eq!(report(&mut w, &["0", "10", "10", "10", "10"]).await, "open");
        assert_eq!(took(&mut w, &["a"]).await, 0, "nobody tries while it is open");
        tokio::time::sleep(Duration::from_millis(350)).await;
        assert_eq!(report(&mut w, &NOTHING).await, "half_open");
        assert_eq!(took(&mut w, &["a", "b"]).await, 2);
        assert_eq!(took(&mut w, &["c", "d"]).await, 1, "three in all, whoever asks");
        assert_eq!(report(&mut w, &["9", "0", "0", "0", "0"]).await, "half_open", "late results close nothing");
        let with = |more: &[&'static str]| [&NOTHING[..], more].concat();
        assert_eq!(report(&mut w, &with(&["a", "ok", "b", "none"])).await, "half_open");
        assert_eq!(took(&mut w, &["e"]).await, 1, "one that tells nothing makes room for another");
        assert_eq!(
            report(&mut w, &with(&["c", "ok", "strange", "ok"])).await,
            "half_open",
            "a token of nobody counts nothing"
        );
        assert_eq!(report(&mut w, &with(&["e", "ok"])).await, "recovering");
        assert_eq!(report(&mut w, &["9", "1", "1", "1", "0"]).await, "recovering", "the window began anew");
    })
}

#[test]
fn a_job_that_tries_and_fails_opens_it_for_longer_up_to_a_cap() -> anyhow::Result<()> {
    crate::world::on_real("breaker_again", async |mut w| {
        assert_eq!(report(&mut w, &["0", "10", "10", "10", "10"]).await, "open");
        for open_ms in [300u64, 600, 1_000, 1_000] {
            let key = all_keys().fleet_breaker(&bank());
            let fields = reply::pairs(w.one(&[b"HGETALL", key.as_bytes()]).await);
            let number = |name: &str| {
                let found = fields.iter().find(|(field, _)| field == name.as_bytes()).expect("a field");
                std::str::from_utf8(&found.1).expect("digits").parse::<u64>().expect("a number")
            };
            assert_eq!(number("until") - number("since"), open_ms);
            tokio::time::sleep(Duration::from_millis(open_ms + 50)).await;
            assert_eq!(report(&mut w, &NOTHING).await, "half_open");
            assert_eq!(took(&mut w, &["a"]).await, 1);
            let failed = [&NOTHING[..], &["a", "failed"]].concat();
            assert_eq!(report(&mut w, &failed).await, "open");
        }
    })
}

#[test]
fn trap_15_a_token_that_nobody_holds_any_more_is_granted_again() -> anyhow::Result<()> {
    crate::world::on_real("breaker_token", async |mut w| {
        assert_eq!(report(&mut w, &["0", "10", "10", "10", "10"]).await, "open");
        tokio::time::sleep(Duration::from_millis(350)).await;
        let granted = call(&mut w, "take", &["200", "a", "b", "c"]).await;
        assert_eq!(reply::array(&granted).map(<[Value]>::len), Some(3));
        assert_eq!(took(&mut w, &["d"]).await, 0);
        let held = [&NOTHING[..], &["a", "held"]].concat();
        report(&mut w, &held).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(took(&mut w, &["d", "e", "f"]).await, 2, "the one that is still at it keeps its place");
    })
}
