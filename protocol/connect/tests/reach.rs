//! Finding the servers, pooled connections, facts, users with few rights.

mod common;

use std::time::Duration;

use common::{Cluster, Server, command};
use redis::AsyncCommands;
use stepfleet_connect::{Error, Redis, Settings, Severity, Topology, preflight, slot_of};

async fn connect(url: &str) -> Result<Redis, Error> {
    Redis::connect(Settings::parse(url).expect("the URL is right")).await
}

#[tokio::test]
async fn a_url_of_the_wrong_kind_is_told_at_once() {
    let server = Server::start(&[]).await;
    let cluster = Cluster::start().await;
    let as_cluster = format!("redis-cluster://127.0.0.1:{}", server.port);
    assert!(matches!(connect(&as_cluster).await, Err(Error::Setting { .. })));
    assert!(matches!(connect(&cluster.nodes[0].url()).await, Err(Error::Setting { .. })));
}

#[tokio::test]
async fn an_unreachable_server_is_temporary_and_a_wrong_password_is_not() {
    let mut server = Server::start(&[]).await;
    command(&mut server.connection().await, &["CONFIG", "SET", "requirepass", "right"]).await;
    let port = server.port;
    assert!(connect(&format!("redis://:right@127.0.0.1:{port}")).await.is_ok());
    for url in [format!("redis://:hunter2@127.0.0.1:{port}"), format!("redis://127.0.0.1:{port}")] {
        let error = connect(&url).await.expect_err("it is refused");
        assert!(!error.is_temporary(), "{error:?}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    server.down();
    let error = connect(&format!("redis://:right@127.0.0.1:{port}")).await.expect_err("nobody is there");
    assert!(error.is_temporary(), "{error:?}");
}

#[tokio::test]
async fn tls_to_a_server_without_tls_is_an_error_and_bad_files_are_named() {
    let server = Server::start(&[]).await;
    let url = format!("rediss://127.0.0.1:{}", server.port);
    assert!(matches!(connect(&url).await, Err(Error::Unreachable { .. })));
    let mut settings = Settings::parse(&url).expect("the URL is right");
    settings.ca_file = Some("no/such/ca.pem".into());
    let error = Redis::connect(settings).await.expect_err("there is no such file").to_string();
    assert!(error.contains("redis.ca_file") && error.contains("no/such/ca.pem"), "{error}");
}

#[tokio::test]
async fn a_replica_is_not_taken_for_the_primary() {
    let primary = Server::start(&[]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]).await;
    assert!(matches!(connect(&replica.url()).await, Err(Error::NotPrimary { .. })));
    // One that was the primary when we connected, and is no more.
    let redis = primary.redis().await;
    let mut other = primary.connection().await;
    command(&mut other, &["REPLICAOF", "127.0.0.1", &replica.port.to_string()]).await;
    assert!(matches!(redis.plain(0, Duration::from_secs(1)).await, Err(Error::NotPrimary { .. })));
}

#[tokio::test]
async fn a_pool_lends_connections_of_the_node_that_serves_the_slot() {
    let cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    assert_eq!((redis.topology(), redis.nodes().len()), (Topology::Cluster, 3));
    for key in ["{a}x", "{b}x", "{c}x"] {
        for round in 0..2 {
            let mut connection = redis.pooled(slot_of(key.as_bytes())).await.expect("a connection");
            let () = connection.set(key, round).await.expect("no MOVED");
        }
    }
}

#[tokio::test]
async fn a_moved_slot_is_found_by_a_refresh() {
    let mut cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    let slot = slot_of(b"{a}");
    let from = redis.node_of(slot).expect("served");
    let to = redis.nodes().into_iter().find(|node| *node != from).expect("three nodes");
    cluster.move_slot(slot, from.port(), to.port()).await;
    let mut plain = redis.plain(slot, Duration::from_secs(1)).await.expect("a connection");
    let reply = plain.one(redis::cmd("GET").arg("{a}")).await.expect("an answer");
    assert!(matches!(&reply, redis::Value::ServerError(error) if error.code() == "MOVED"), "{reply:?}");
    common::until("the refresh is not too soon after the last", || async {
        redis.refresh().await.expect("the cluster answers");
        redis.node_of(slot) == Ok(to.clone())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_hangs_holds_up_no_look_at_the_topology() {
    let cluster = Cluster::start().await;
    let redis = cluster.redis().await;
    cluster.nodes[0].freeze();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = std::time::Instant::now();
    redis.refresh().await.expect("others tell");
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn while_all_connections_for_waits_are_lent_the_pool_lends_others() {
    use stepfleet_connect::limits::POOL_WAITS_MAX;
    let server = Server::start(&[]).await;
    let redis = server.redis().await;
    let mut waits = Vec::new();
    for _ in 0..POOL_WAITS_MAX {
        waits.push(redis.pooled_for_wait(0).await.expect("there is one"));
    }
    let full = redis.pooled_for_wait(0).await.err().expect("there is none");
    assert!(matches!(full, Error::Busy { .. }), "{full}");
    redis.pooled(0).await.expect("these are others");
}

#[tokio::test]
async fn facts_are_read_and_judged() {
    let server =
        Server::start(&["--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let facts = server.redis().await.facts().await.expect("INFO is allowed");
    let node = &facts[0];
    assert_eq!((node.maxmemory, node.appendonly, node.role.as_str()), (100 << 20, true, "master"));
    assert_eq!((node.appendfsync.as_deref(), node.save.as_deref()), (Some("everysec"), Some("")));
    assert!(node.used_memory > 0 && node.run_id.len() == 40 && !node.version.is_empty());
    let findings = preflight(&facts, false);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(
        (findings[0].severity, findings[0].what_found.as_str()),
        (Severity::Error, "maxmemory-policy is `allkeys-lru`")
    );
}

#[tokio::test]
async fn a_user_without_dangerous_commands_works_and_its_facts_say_what_is_unknown() {
    let server = Server::start(&[]).await;
    let mut admin = server.connection().await;
    command(&mut admin, &["ACL", "SETUSER", "fleet", "on", ">s", "~*", "&*", "+@all", "-@dangerous", "+info"]).await;
    let redis = connect(&format!("redis://fleet:s@127.0.0.1:{}", server.port)).await.expect("HELLO is enough");
    redis.plain(0, Duration::from_secs(1)).await.expect("a connection");
    let (subscriber, _events) = redis.subscribe();
    subscriber.ssubscribe(0, b"x").await.expect("confirmed");
    let facts = redis.facts().await.expect("INFO is allowed");
    assert_eq!((facts[0].save.as_deref(), facts[0].appendfsync.as_deref()), (None, None));
}
