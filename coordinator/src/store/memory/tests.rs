//! What a comparison with a real server cannot show: time, faults, rollback.

use super::{Clock, Faults, MemoryLink, MemoryServer};
use crate::store::link::{Dial, Link, LinkError};
use redis::Value;
use std::time::Duration;
use tokio::time::Instant;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

fn server() -> MemoryServer {
    MemoryServer::new(Clock::starting_at(1_000_000))
}

async fn link(server: &MemoryServer) -> MemoryLink {
    server.dial().dial(0, RESPONSE_TIMEOUT).await.expect("the server is up")
}

/// Commands separated by `;`, words by blanks.
fn pipe(text: &str) -> redis::Pipeline {
    let mut pipe = redis::Pipeline::new();
    for line in text.split(';') {
        let mut cmd = redis::Cmd::new();
        line.split_whitespace().for_each(|word| {
            cmd.arg(word);
        });
        pipe.add_command(cmd);
    }
    pipe
}

async fn send(link: &mut MemoryLink, text: &str) -> Vec<Value> {
    link.trip(&pipe(text)).await.expect("the wire is perfect")
}

/// The last reply, in short.
async fn ask(link: &mut MemoryLink, text: &str) -> String {
    show(send(link, text).await.last().expect("one reply per command"))
}

fn show(value: &Value) -> String {
    match value {
        Value::Nil => "nil".into(),
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Okay => "OK".into(),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::ServerError(error) => error.code().to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn time_is_the_simulated_clock_and_its_jumps() {
    let server = server();
    let mut link = link(&server).await;
    assert_eq!(ask(&mut link, "TIME").await, "[1000 0]");
    tokio::time::advance(Duration::from_millis(1500)).await;
    assert_eq!(ask(&mut link, "TIME").await, "[1001 500000]");
    server.clock().jump_back(Duration::from_secs(1));
    assert_eq!(ask(&mut link, "TIME").await, "[1000 500000]");
    assert_eq!(ask(&mut link, "XADD x * f v").await, "1000500-0");
    server.clock().jump_back(Duration::from_secs(1));
    assert_eq!(ask(&mut link, "XADD x * f v").await, "1000500-1", "ids never go back");
}

#[tokio::test(start_paused = true)]
async fn a_key_expires_and_its_expiry_fails_a_watch() {
    let server = server();
    let mut link = link(&server).await;
    send(&mut link, "SET a 1 PX 1000;SET b 1;WATCH a").await;
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(ask(&mut link, "PTTL a").await, "1");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(ask(&mut link, "MULTI;SET b 2;EXEC").await, "nil");
    assert_eq!(ask(&mut link, "MGET a b").await, "[nil 1]");
    assert_eq!(ask(&mut link, "MULTI;SET b 2;EXEC").await, "[OK]", "EXEC ended the watch");
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_goes_on_behind_a_blocking_read() {
    let server = server();
    let (mut reader, mut writer) = (link(&server).await, link(&server).await);
    let waiting = tokio::spawn(async move { send(&mut reader, "SET seen 1;XREAD BLOCK 500 STREAMS x $;TIME").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ask(&mut writer, "GET seen").await, "1", "what is in front of the read took effect at once");
    assert_eq!(ask(&mut writer, "XADD x 5-1 f v").await, "5-1");
    let replies = waiting.await.expect("no panic");
    assert_eq!(show(&replies[1]), "[[x [[5-1 [f v]]]]]");
    assert_eq!(show(&replies[2]), "[1000 200000]");
}

#[tokio::test(start_paused = true)]
async fn a_blocking_read_ends_with_nil_when_its_time_is_over() {
    let server = server();
    let mut link = link(&server).await;
    let replies = send(&mut link, "XREAD BLOCK 500 STREAMS x 0;TIME").await;
    assert_eq!((show(&replies[0]), show(&replies[1])), ("nil".into(), "[1000 500000]".into()));
    assert_eq!(ask(&mut link, "MULTI;XREAD BLOCK 500 STREAMS x 0;EXEC").await, "[nil]", "nothing blocks in EXEC");
    assert_eq!(ask(&mut link, "TIME").await, "[1000 500000]");
}

#[tokio::test(start_paused = true)]
async fn a_trip_is_bounded_by_the_response_time_out() {
    let server = server();
    let mut link = link(&server).await;
    let before = Instant::now();
    let outcome = link.trip(&pipe("XREAD BLOCK 0 STREAMS x $")).await;
    assert!(matches!(outcome, Err(LinkError::TimedOut)), "{outcome:?}");
    assert_eq!(before.elapsed(), RESPONSE_TIMEOUT);
    assert!(link.trip(&pipe("PING")).await.is_err(), "the link is dead");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_group_read_takes_one_entry_and_the_longest_waiting_comes_first() {
    let server = server();
    let mut writer = link(&server).await;
    send(&mut writer, "XGROUP CREATE x g 0 MKSTREAM").await;
    let readers = ["c1", "c2"].map(|name| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut link = link(&server).await;
            ask(&mut link, &format!("XREADGROUP GROUP g {name} COUNT 1 BLOCK 1000 STREAMS x >")).await
        })
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    send(&mut writer, "XADD x 1-1 f v").await;
    let [first, second] = readers;
    assert_eq!(first.await.expect("no panic"), "[[x [[1-1 [f v]]]]]");
    assert_eq!(second.await.expect("no panic"), "nil");
    assert_eq!(ask(&mut writer, "XPENDING x g").await, "[1 1-1 1-1 [[c1 1]]]");
}

#[tokio::test(start_paused = true)]
async fn a_commit_inside_exec_wakes_a_blocked_reader_and_a_destroyed_group_refuses_it() {
    let server = server();
    let mut writer = link(&server).await;
    send(&mut writer, "XGROUP CREATE x g 0 MKSTREAM").await;
    for (commit, answer) in
        [("MULTI;XADD x 1-1 f v;SET a 1;EXEC", "[[x [[1-1 [f v]]]]]"), ("XGROUP DESTROY x g", "NOGROUP")]
    {
        let mut reader = link(&server).await;
        let waiting =
            tokio::spawn(async move { ask(&mut reader, "XREADGROUP GROUP g c BLOCK 1000 STREAMS x >").await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        send(&mut writer, commit).await;
        assert_eq!(waiting.await.expect("no panic"), answer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_exec_succeeds_on_its_own_connection_unless_its_watch_was_touched() {
    for (meanwhile, outcome) in [("GET a", "late"), ("SET head new", "nil")] {
        let server = server();
        let mut old = link(&server).await;
        send(&mut old, "SET head old;WATCH head").await;
        server.set_faults(Faults { late_exec: 1.0, late_by_max: Duration::from_secs(60), ..Faults::default() });
        assert!(old.trip(&pipe("MULTI;SET a late;EXEC;TIME")).await.is_err());
        server.set_faults(Faults::default());
        drop(old);
        let mut new = link(&server).await;
        assert_eq!(ask(&mut new, "GET a").await, "nil", "it is still on its way");
        send(&mut new, meanwhile).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(ask(&mut new, "GET a").await, outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_exec_dies_with_its_connection() {
    let server = server();
    let mut old = link(&server).await;
    server.set_faults(Faults { late_exec: 1.0, late_by_max: Duration::from_secs(60), ..Faults::default() });
    assert!(old.trip(&pipe("MULTI;SET a late;EXEC")).await.is_err());
    server.set_faults(Faults::default());
    server.cut();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(ask(&mut link(&server).await, "GET a").await, "nil");
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_changes_nothing_and_a_lost_reply_everything() {
    for (faults, outcome) in [
        (Faults { lose_request: 1.0, ..Faults::default() }, "nil"),
        (Faults { lose_reply: 1.0, ..Faults::default() }, "1"),
    ] {
        let server = server();
        let mut old = link(&server).await;
        server.set_faults(faults);
        assert!(matches!(old.trip(&pipe("SET a 1")).await, Err(LinkError::Lost(_))));
        server.set_faults(Faults::default());
        assert!(old.trip(&pipe("PING")).await.is_err(), "the link is dead");
        assert_eq!(ask(&mut link(&server).await, "GET a").await, outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn one_seed_tells_one_story() {
    let mut stories = Vec::new();
    for seed in [7, 7, 8] {
        let server = server();
        let late_by_max = Duration::from_millis(50);
        let latency_max = Duration::from_millis(5);
        server.set_faults(Faults {
            seed,
            lose_request: 0.2,
            lose_reply: 0.2,
            late_exec: 0.2,
            late_by_max,
            latency_max,
        });
        let started = Instant::now();
        let mut story = Vec::new();
        for _ in 0..50 {
            let outcome = link(&server).await.trip(&pipe("MULTI;INCR a;EXEC")).await;
            story.push(format!("{:?} {outcome:?}", started.elapsed()));
        }
        stories.push(story);
    }
    assert_eq!(stories[0], stories[1]);
    assert_ne!(stories[0], stories[2]);
}

#[tokio::test(start_paused = true)]
async fn restore_goes_back_and_cuts_everyone() {
    let server = server();
    let (mut first, mut blocked) = (link(&server).await, link(&server).await);
    let run_id = ask(&mut first, "INFO server").await;
    send(&mut first, "SET a 1;XADD x 1-1 f v;SCRIPT LOAD text").await;
    let snapshot = server.snapshot();
    send(&mut first, "SET a 2;XADD x 2-1 f v;WATCH a").await;
    let waiting = tokio::spawn(async move { blocked.trip(&pipe("XREAD BLOCK 2000 STREAMS x $")).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    server.restore(&snapshot);
    assert!(matches!(waiting.await.expect("no panic"), Err(LinkError::Lost(_))));
    assert!(matches!(first.trip(&pipe("PING")).await, Err(LinkError::Lost(_))));
    let mut second = link(&server).await;
    assert_eq!(ask(&mut second, "GET a").await, "1");
    assert_eq!(ask(&mut second, "XADD x 2-1 f other").await, "2-1", "the id is free again");
    assert_ne!(ask(&mut second, "INFO server").await, run_id);
}

#[tokio::test(start_paused = true)]
async fn nobody_connects_to_a_server_that_is_down() {
    let server = server();
    let mut old = link(&server).await;
    let mut news = server.subscribe("news");
    send(&mut old, "SET a 1").await;
    server.down();
    assert!(old.trip(&pipe("GET a")).await.is_err());
    assert!(server.dial().dial(0, RESPONSE_TIMEOUT).await.is_err());
    assert_eq!(news.recv().await, None);
    server.up();
    assert_eq!(ask(&mut link(&server).await, "GET a").await, "1");
}

#[tokio::test(start_paused = true)]
async fn a_full_server_refuses_what_grows_and_everything_that_is_queued() {
    let server = server();
    let mut link = link(&server).await;
    send(&mut link, "SET a 1;MULTI;SET a 2").await;
    server.set_full(true);
    assert_eq!(ask(&mut link, "EXEC").await, "EXECABORT");
    assert_eq!(ask(&mut link, "SET a 3").await, "OOM");
    assert_eq!(ask(&mut link, "PEXPIRE a 5000").await, "1");
    assert_eq!(ask(&mut link, "MULTI;DEL a").await, "OOM");
    assert_eq!(ask(&mut link, "EXEC").await, "EXECABORT");
    assert_eq!(ask(&mut link, "DEL a").await, "1");
    server.set_full(false);
    assert_eq!(ask(&mut link, "MULTI;SET a 4;EXEC").await, "[OK]");
}

#[tokio::test(start_paused = true)]
async fn a_script_is_answered_by_its_twin_once_it_is_loaded() {
    const SOURCE: &str = "return redis.call('INCRBY', KEYS[1], ARGV[1])";
    let server = server();
    server.register_script(SOURCE, |db, keys, args| db.call(&[b"INCRBY", &keys[0], &args[0]]));
    let mut link = link(&server).await;
    let sha = redis::Script::new(SOURCE).get_hash().to_owned();
    let call = format!("EVALSHA {sha} 1 a 5");
    assert_eq!(ask(&mut link, &call).await, "NOSCRIPT");
    let mut load = redis::Pipeline::new();
    load.cmd("SCRIPT").arg("LOAD").arg(SOURCE);
    link.trip(&load).await.expect("the wire is perfect");
    assert_eq!(ask(&mut link, &format!("WATCH a;{call}")).await, "5");
    assert_eq!(ask(&mut link, &format!("MULTI;{call};EXEC")).await, "nil", "a script touches what is watched");
    assert_eq!(ask(&mut link, &format!("MULTI;{call};EXEC")).await, "[10]");
}

#[tokio::test(start_paused = true)]
async fn a_message_reaches_every_subscriber_and_is_counted() {
    let server = server();
    let mut link = link(&server).await;
    let (mut first, mut second) = (server.subscribe("bell"), server.subscribe("bell"));
    assert_eq!(ask(&mut link, "MULTI;SPUBLISH bell ring;EXEC").await, "[2]");
    assert_eq!(first.recv().await.as_deref(), Some(b"ring".as_slice()));
    drop(first);
    assert_eq!(ask(&mut link, "PUBLISH bell again").await, "1");
    assert_eq!(second.recv().await.as_deref(), Some(b"ring".as_slice()));
}
