//! Sharded pub/sub: on one server and on a Cluster, through killed connections, restarts and moved slots.

mod common;

use std::time::Duration;

use common::{Cluster, Server, command, until};
use stepfleet_connect::{Event, Events, Redis, slot_of};

/// The next event for which `wanted` holds; 20 s at most.
async fn next(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.recv().await.expect("a subscriber is alive");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.expect("the event comes")
}

async fn message(events: &mut Events, channel: &str, payload: &str) {
    let expected = Event::Message { channel: channel.into(), payload: payload.into() };
    next(events, |event| *event == expected).await;
}

async fn live(events: &mut Events, channel: &str) {
    let expected = Event::Live { channel: channel.into() };
    next(events, |event| *event == expected).await;
}

async fn lost(events: &mut Events, channel: &str) {
    let expected = Event::Lost { channel: channel.into() };
    next(events, |event| *event == expected).await;
}

async fn publish(redis: &Redis, channel: &str, payload: &str) -> u64 {
    let mut connection = redis.pooled(slot_of(channel.as_bytes())).await.expect("a pooled connection");
    redis::cmd("SPUBLISH").arg(channel).arg(payload).query_async(&mut connection).await.expect("SPUBLISH")
}

#[tokio::test]
async fn one_server_tells_what_is_published_after_the_confirmation() {
    let server = Server::start(&[]).await;
    let redis = server.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    for channel in ["{a}bell", "{b}bell"] {
        subscriber.ssubscribe(slot_of(channel.as_bytes()), channel.as_bytes()).await.expect("confirmed");
        assert_eq!(publish(&redis, channel, "1").await, 1, "heard as soon as it is confirmed");
        message(&mut events, channel, "1").await;
    }
    subscriber.sunsubscribe(b"{a}bell").await;
    until("nobody listens to a", || async { publish(&redis, "{a}bell", "2").await == 0 }).await;
    assert_eq!(publish(&redis, "{b}bell", "2").await, 1, "the other channel stays");
    message(&mut events, "{b}bell", "2").await;
}

#[tokio::test]
async fn it_comes_back_by_itself_after_a_kill_and_after_a_restart() {
    let mut server = Server::start(&[]).await;
    let redis = server.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    subscriber.ssubscribe(slot_of(b"{a}bell"), b"{a}bell").await.expect("confirmed");
    live(&mut events, "{a}bell").await;

    let mut other = server.connection().await;
    command(&mut other, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    lost(&mut events, "{a}bell").await;
    live(&mut events, "{a}bell").await;
    assert_eq!(publish(&redis, "{a}bell", "after the kill").await, 1);
    message(&mut events, "{a}bell", "after the kill").await;

    server.down();
    lost(&mut events, "{a}bell").await;
    assert!(
        subscriber.ssubscribe(slot_of(b"{b}bell"), b"{b}bell").await.is_err(),
        "no confirmation from a dead server"
    );
    server.up().await;
    live(&mut events, "{a}bell").await;
    until("both channels are heard", || async {
        publish(&redis, "{a}bell", "after the restart").await == 1
            && publish(&redis, "{b}bell", "wished while it was down").await == 1
    })
    .await;
    message(&mut events, "{b}bell", "wished while it was down").await;
}

#[tokio::test]
async fn dropping_the_handle_closes_the_connection_and_ends_the_events() {
    let server = Server::start(&[]).await;
    let redis = server.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    subscriber.ssubscribe(slot_of(b"{a}bell"), b"{a}bell").await.expect("confirmed");
    drop(subscriber);
    while events.recv().await.is_some() {}
    until("nobody listens", || async { publish(&redis, "{a}bell", "1").await == 0 }).await;
}

#[tokio::test]
async fn a_slow_reader_is_told_that_events_were_dropped() {
    let server = Server::start(&[]).await;
    let redis = server.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    subscriber.ssubscribe(slot_of(b"{a}bell"), b"{a}bell").await.expect("confirmed");
    let mut pipeline = redis::pipe();
    for _ in 0..2 * stepfleet_connect::limits::SUBSCRIBER_EVENTS_MAX {
        pipeline.cmd("SPUBLISH").arg("{a}bell").arg("x").ignore();
    }
    let mut connection = redis.pooled(0).await.expect("a pooled connection");
    pipeline.exec_async(&mut connection).await.expect("SPUBLISH");
    next(&mut events, |event| *event == Event::Overflow).await;
}

#[tokio::test]
async fn a_cluster_is_heard_on_every_node_and_after_a_node_came_back() {
    let mut cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    let channels = ["{a}bell", "{b}bell", "{c}bell"];
    let nodes: std::collections::HashSet<_> =
        channels.iter().map(|channel| redis.node_of(slot_of(channel.as_bytes())).expect("served")).collect();
    assert_eq!(nodes.len(), 3, "the channels are on three nodes");
    for channel in channels {
        subscriber.ssubscribe(slot_of(channel.as_bytes()), channel.as_bytes()).await.expect("confirmed");
        assert_eq!(publish(&redis, channel, "1").await, 1);
        message(&mut events, channel, "1").await;
    }

    let port = redis.node_of(slot_of(b"{b}bell")).expect("served").port();
    let mut other = cluster.node(port).connection().await;
    command(&mut other, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    lost(&mut events, "{b}bell").await;
    live(&mut events, "{b}bell").await;
    message_after_publish(&redis, &mut events, "{b}bell", "after the kill").await;

    cluster.node(port).down();
    lost(&mut events, "{b}bell").await;
    message_after_publish(&redis, &mut events, "{a}bell", "meanwhile").await;
    cluster.node(port).up().await;
    live(&mut events, "{b}bell").await;
    cluster.settle().await;
    message_after_publish(&redis, &mut events, "{b}bell", "after the restart").await;
}

async fn message_after_publish(redis: &Redis, events: &mut Events, channel: &str, payload: &str) {
    assert_eq!(publish(redis, channel, payload).await, 1, "`{channel}` has its listener");
    message(events, channel, payload).await;
}

#[tokio::test]
async fn a_channel_follows_its_slot_to_another_node() {
    let mut cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    let (subscriber, mut events) = redis.subscribe();
    let slot = slot_of(b"{a}bell");
    subscriber.ssubscribe(slot, b"{a}bell").await.expect("confirmed");
    live(&mut events, "{a}bell").await;

    let from = redis.node_of(slot).expect("served");
    let to = redis.nodes().into_iter().find(|node| *node != from).expect("three nodes");
    cluster.move_slot(slot, from.port(), to.port()).await;

    lost(&mut events, "{a}bell").await;
    live(&mut events, "{a}bell").await;
    assert_eq!(redis.node_of(slot), Ok(to));
    message_after_publish(&redis, &mut events, "{a}bell", "at its new place").await;
}
