//! The owner's round trip: `MULTI … EXEC · WATCH head · HMGET head · XREAD BLOCK · TIME` as one write on one connection.

mod common;

use std::time::{Duration, Instant};

use common::Server;
use redis::{Pipeline, Value};
use stepfleet_connect::{Plain, TripError};

const HEAD: &str = "sf:{0}:head";
const LOG: &str = "sf:{0}:log";
const BLOCK: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_millis(2300);

/// The tail of every trip: four commands.
fn look(pipeline: &mut Pipeline, after: &str) {
    pipeline.cmd("WATCH").arg(HEAD);
    pipeline.cmd("HMGET").arg(HEAD).arg("reign").arg("seq");
    let block = u64::try_from(BLOCK.as_millis()).expect("a short time");
    pipeline.cmd("XREAD").arg("COUNT").arg(512).arg("BLOCK").arg(block).arg("STREAMS").arg(LOG).arg(after);
    pipeline.cmd("TIME");
}

/// A commit that sets `seq` and whatever else is given: three commands around it and then the look.
fn commit(seq: u64, more: &[&[&str]], after: &str) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.cmd("MULTI");
    pipeline.cmd("HSET").arg(HEAD).arg("seq").arg(seq);
    for words in more {
        let command = pipeline.cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
    }
    pipeline.cmd("EXEC");
    look(&mut pipeline, after);
    pipeline
}

async fn owner(server: &Server) -> Plain {
    server.redis().await.plain(0, PATIENCE).await.expect("our server is a primary")
}

async fn seq(server: &Server) -> Option<u64> {
    let mut other = server.connection().await;
    redis::cmd("HGET").arg(HEAD).arg("seq").query_async(&mut other).await.expect("HGET")
}

#[tokio::test]
async fn the_exec_takes_effect_before_the_read_blocks_and_an_entry_ends_the_blocking() {
    let server = Server::start(&[]).await;
    let mut owner = owner(&server).await;
    let trip = commit(1, &[], "0");
    let begin = Instant::now();
    let (replies, blocked) = tokio::join!(owner.trip(&trip), async {
        common::until("the commit is visible", || async { seq(&server).await == Some(1) }).await;
        let visible = begin.elapsed();
        let mut other = server.connection().await;
        common::command(&mut other, &["XADD", LOG, "*", "e", "1"]).await;
        visible
    });
    let replies = replies.expect("the trip succeeds");
    assert!(begin.elapsed() < BLOCK, "the entry ended the blocking after {:?}", begin.elapsed());
    assert!(blocked < BLOCK, "the commit was visible while the read blocked");
    assert_eq!(replies.len(), 7);
    assert_eq!(replies[..2], [Value::Okay, Value::SimpleString("QUEUED".into())]);
    assert_eq!(replies[2], Value::Array(vec![Value::Int(1)]));
    assert_eq!(replies[3], Value::Okay);
    assert_eq!(replies[4], Value::Array(vec![Value::Nil, Value::BulkString(b"1".to_vec())]));
    assert!(matches!(&replies[5], Value::Array(streams) if streams.len() == 1), "{:?}", replies[5]);
    assert!(matches!(&replies[6], Value::Array(time) if time.len() == 2), "{:?}", replies[6]);
}

#[tokio::test]
async fn a_read_that_finds_nothing_is_nil_after_the_block() {
    let server = Server::start(&[]).await;
    let mut owner = owner(&server).await;
    let begin = Instant::now();
    let replies = owner.trip(&commit(1, &[], "0")).await.expect("the trip succeeds");
    assert_eq!(replies[5], Value::Nil);
    assert!(begin.elapsed() >= BLOCK);
}

#[tokio::test]
async fn a_head_that_changed_since_the_watch_gives_a_nil_exec_and_writes_nothing() {
    let server = Server::start(&[]).await;
    let mut owner = owner(&server).await;
    owner.trip(&commit(1, &[], "0")).await.expect("the trip succeeds");
    let mut rival = server.connection().await;
    common::command(&mut rival, &["HSET", HEAD, "reign", "2-b"]).await;
    let replies = owner.trip(&commit(2, &[&["SET", "{0}x", "1"]], "0")).await.expect("the trip succeeds");
    assert_eq!(replies[3], Value::Nil, "the EXEC is refused: {replies:?}");
    assert_eq!(seq(&server).await, Some(1));
    // The look of the same trip shows who won.
    assert_eq!(replies[5], Value::Array(vec![Value::BulkString(b"2-b".to_vec()), Value::BulkString(b"1".to_vec())]));
}

#[tokio::test]
async fn an_unchanged_head_lets_the_next_commit_through() {
    let server = Server::start(&[]).await;
    let mut owner = owner(&server).await;
    for number in 1..=3 {
        let replies = owner.trip(&commit(number, &[], "0")).await.expect("the trip succeeds");
        assert!(matches!(replies[2], Value::Array(_)), "{replies:?}");
    }
    assert_eq!(seq(&server).await, Some(3));
}

#[tokio::test]
async fn errors_stay_in_their_own_place() {
    let server = Server::start(&[]).await;
    let mut owner = owner(&server).await;
    // A command that fails when it runs: an error inside the array, the others applied.
    let replies = owner.trip(&commit(1, &[&["LPUSH", HEAD, "x"], &["SET", "{0}x", "1"]], "0")).await.expect("the trip");
    let Value::Array(inside) = &replies[4] else { panic!("EXEC gave {:?}", replies[4]) };
    assert!(matches!(inside[..], [Value::Int(1), Value::ServerError(_), Value::Okay]), "{inside:?}");
    let Value::ServerError(error) = &inside[1] else { unreachable!("checked above") };
    assert_eq!(error.code(), "WRONGTYPE");
    // A command that is refused while queued: its own error, then EXECABORT, and the look is still answered.
    let replies = owner.trip(&commit(2, &[&["NOSUCHCOMMAND"]], "0")).await.expect("the trip succeeds");
    assert!(matches!(replies[2], Value::ServerError(_)), "{replies:?}");
    let Value::ServerError(abort) = &replies[3] else { panic!("EXEC gave {:?}", replies[3]) };
    assert_eq!(abort.code(), "EXECABORT");
    assert_eq!(replies[5], Value::Array(vec![Value::Nil, Value::BulkString(b"1".to_vec())]));
    assert_eq!(replies.len(), 8);
}

#[tokio::test]
async fn a_silent_server_times_the_trip_out_and_ends_the_connection() {
    let server = Server::start(&[]).await;
    let redis = server.redis().await;
    let mut owner = redis.plain(0, Duration::from_millis(200)).await.expect("our server is a primary");
    assert_eq!(
        owner.trip(&commit(1, &[], "0")).await,
        Err(TripError::TimedOut),
        "the block is longer than the time-out"
    );
    assert!(matches!(owner.one(&redis::cmd("PING")).await, Err(TripError::Lost(_))));
}

#[tokio::test]
async fn a_killed_or_abandoned_connection_is_lost_for_good() {
    let server = Server::start(&[]).await;
    let mut killed = owner(&server).await;
    let mut other = server.connection().await;
    common::command(&mut other, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    assert!(matches!(killed.trip(&commit(1, &[], "0")).await, Err(TripError::Lost(_))));
    assert!(matches!(killed.one(&redis::cmd("PING")).await, Err(TripError::Lost(_))), "it never reconnects");

    let mut abandoned = owner(&server).await;
    let trip = commit(1, &[], "$");
    assert!(tokio::time::timeout(BLOCK / 3, abandoned.trip(&trip)).await.is_err(), "it blocks");
    assert!(matches!(abandoned.one(&redis::cmd("PING")).await, Err(TripError::Lost(_))));
}
