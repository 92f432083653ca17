//! The scripts of the store, over the memory twin and a real server.

use std::collections::BTreeSet;

use redis::Value;
use stepfleet_coordinator::store::{
    link::{Dial, Link, LinkError},
    reply, script,
};
use stepfleet_protocol::{
    id::StreamId,
    keys::{GROUP, slot},
    name::Name,
};

use crate::{
    both,
    fleet::{PARTITION, keys},
    world::World,
};

both! {
    a_consumer_with_something_pending_is_not_deleted,
    a_consumer_without_is_deleted_and_one_that_is_not_there_is_none,
    trap_7_a_zombie_that_reads_while_its_consumer_is_deleted_loses_nothing,
}

fn jobs() -> String {
    keys().jobs(&Name::new("default").expect("a legal name"))
}

/// Makes the job stream with `count` entries.
async fn fill<D: Dial>(w: &mut World<D>, count: usize) {
    w.one(&[b"XGROUP", b"CREATE", jobs().as_bytes(), GROUP.as_bytes(), b"0", b"MKSTREAM"]).await;
    for _ in 0..count {
        w.one(&[b"XADD", jobs().as_bytes(), b"*", b"m", b"job"]).await;
    }
}

fn take(consumer: &str) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    pipe.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(1);
    pipe.arg("STREAMS").arg(jobs()).arg(">");
    pipe
}

async fn delete<D: Dial>(w: &mut World<D>, consumer: &str) -> Value {
    let mut pipe = redis::pipe();
    pipe.add_command(script::delete_consumer(&jobs(), GROUP, consumer));
    w.client.trip(&pipe).await.expect("no faults").swap_remove(0)
}

async fn consumers<D: Dial>(w: &mut World<D>) -> Vec<(String, i64)> {
    let found = w.one(&[b"XINFO", b"CONSUMERS", jobs().as_bytes(), GROUP.as_bytes()]).await;
    let fact = |entry, name| reply::field(entry, name).expect("a fact of a consumer");
    let of = |entry| {
        let name = reply::text(fact(entry, "name")).expect("a name").to_string();
        (name, reply::number(fact(entry, "pending")).expect("a number"))
    };
    reply::array(&found).expect("a list").iter().map(of).collect()
}

async fn a_consumer_with_something_pending_is_not_deleted<D: Dial>(mut w: World<D>) {
    fill(&mut w, 2).await;
    w.client.trip(&take("a")).await.expect("no faults");
    w.client.trip(&take("b")).await.expect("no faults");
    assert_eq!(delete(&mut w, "a").await, Value::Int(0));
    assert_eq!(consumers(&mut w).await, [("a".into(), 1), ("b".into(), 1)], "nothing is deleted");
}

async fn a_consumer_without_is_deleted_and_one_that_is_not_there_is_none<D: Dial>(mut w: World<D>) {
    let missing = delete(&mut w, "a").await;
    assert!(reply::error(&missing).is_some_and(|text| text.starts_with("NOGROUP")), "{missing:?}");
    fill(&mut w, 1).await;
    let pipe = take("a");
    let taken = w.client.trip(&pipe).await.expect("no faults").swap_remove(0);
    let entry: StreamId = reply::read(taken)[0].0;
    w.one(&[b"XACK", jobs().as_bytes(), GROUP.as_bytes(), entry.to_string().as_bytes()]).await;
    assert_eq!(consumers(&mut w).await, [("a".into(), 0)]);
    assert_eq!(delete(&mut w, "a").await, Value::Int(1));
    assert_eq!(consumers(&mut w).await, []);
    assert_eq!(delete(&mut w, "a").await, Value::Int(1), "it may be said again");
}

/// Two connections at once, hundreds of times, each of them first in turn: every entry that the zombie got is still pending.
async fn trap_7_a_zombie_that_reads_while_its_consumer_is_deleted_loses_nothing<D: Dial>(mut w: World<D>) {
    const ROUNDS: usize = 400;
    fill(&mut w, ROUNDS).await;
    let dial = || w.dial.dial(slot(PARTITION), std::time::Duration::from_secs(3));
    let (mut zombie, mut reaper) = (dial().await.expect("up"), dial().await.expect("up"));
    let (mut taken, mut refused) = (BTreeSet::new(), 0);
    let mut delete = redis::pipe();
    delete.add_command(script::delete_consumer(&jobs(), GROUP, "zombie"));
    let read = take("zombie");
    for round in 0..ROUNDS {
        let both: Result<(Vec<Value>, Vec<Value>), LinkError> = if round % 2 == 0 {
            tokio::try_join!(biased; reaper.trip(&delete), zombie.trip(&read))
        } else {
            tokio::try_join!(biased; zombie.trip(&read), reaper.trip(&delete)).map(|(read, deleted)| (deleted, read))
        };
        let (deleted, mut read) = both.expect("no faults");
        refused += usize::from(deleted == [Value::Int(0)]);
        let got: Vec<StreamId> = reply::read(read.swap_remove(0)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(got.len(), 1);
        let key = jobs();
        let pending = w.one(&[b"XPENDING", key.as_bytes(), GROUP.as_bytes(), b"-", b"+", b"10", b"zombie"]).await;
        let pending = reply::array(&pending).expect("a list").iter();
        let pending: Vec<StreamId> =
            pending.filter_map(|entry| reply::text(&reply::array(entry)?[0])?.parse().ok()).collect();
        assert_eq!(pending, got, "what was delivered is pending, whoever came first");
        w.one(&[b"XACK", key.as_bytes(), GROUP.as_bytes(), got[0].to_string().as_bytes()]).await;
        taken.extend(got);
    }
    assert_eq!(taken.len(), ROUNDS);
    assert!((1..ROUNDS).contains(&refused), "both orders happened: {refused} of {ROUNDS} deletions came second");
}
