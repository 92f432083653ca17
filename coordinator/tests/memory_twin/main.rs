//! The memory twin against a real server: the same commands, the same replies.
//!
//! The server is the program in `STEPFLEET_TEST_SERVER`, else `valkey-server` or `redis-server` on the PATH. Random
//! sequences run over two connections on both sides; measured times, texts of errors and the order of what has none are
//! levelled. The server must be Redis 7.2, Valkey 8 or later: 7.0 makes a consumer only when it gets something, and prints
//! scores with 17 digits.

mod lines;
mod pair;

use anyhow::bail;
use pair::Pair;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use std::cell::RefCell;

/// How many random sequences; more with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

#[test]
fn the_twin_answers_like_a_real_server() -> anyhow::Result<()> {
    compare(lines::sequences())
}

#[test]
fn the_twin_touches_the_keys_that_a_real_server_touches() -> anyhow::Result<()> {
    compare(lines::watched_sequences())
}

/// Runs random sequences on both sides and shows the shortest one that is answered differently.
fn compare(sequences: impl Strategy<Value = Vec<(usize, String)>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pair = RefCell::new(runtime.block_on(Pair::open())?);
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&sequences, |steps| {
        let mut pair = pair.borrow_mut();
        let run = async {
            pair.reset().await?;
            for (connection, line) in &steps {
                pair.check(*connection, line).await?;
            }
            anyhow::Ok(())
        };
        runtime.block_on(run).map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, steps)) => {
            let lines: Vec<String> = steps.iter().map(|(connection, line)| format!("{connection}: {line}")).collect();
            bail!("{why}\nafter\n{}", lines.join("\n"))
        }
        Err(TestError::Abort(why)) => bail!("aborted: {why}"),
    }
}

#[test]
fn a_full_twin_refuses_what_a_full_server_refuses() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut pair = Pair::open().await?;
        let before = [
            "SET s1 1",
            "HSET h1 a 1",
            "ZADD z1 1 a 2 b",
            "RPUSH l1 a b c",
            "SADD t1 a",
            "XADD x1 1-1 f v",
            "XADD x1 2-1 f v",
            "XADD x1 3-1 f v",
            "XGROUP CREATE x1 g 0",
            "XREADGROUP GROUP g c COUNT 2 STREAMS x1 >",
        ];
        for line in before {
            pair.check(0, line).await?;
        }
        pair.check(1, "MULTI").await?;
        pair.check(1, "SET s1 2").await?;
        pair.both(0, "CONFIG SET maxmemory 1").await?;
        pair.twin_server.set_full(true);
        let full = [
            "SET s1 3",
            "COPY s1 s2",
            "APPEND s1 3",
            "INCR s1",
            "INCRBY s1 2",
            "HSET h1 b 1",
            "HSETNX h1 b 1",
            "HINCRBY h1 a 1",
            "ZADD z1 3 c",
            "SADD t1 b",
            "RPUSH l1 d",
            "LPUSH l1 d",
            "LSET l1 0 x",
            "XADD x1 4-1 f v",
            "XGROUP CREATE x1 g2 0",
            "XGROUP CREATECONSUMER x1 g c9",
            "PEXPIRE s1 100000",
            "ZREM z1 a",
            "HDEL h1 zz",
            "LPOP l1",
            "LTRIM l1 0 0",
            "XACK x1 g 1-1",
            "XDEL x1 1-1",
            "XTRIM x1 MINID 3",
            "XREADGROUP GROUP g c COUNT 2 STREAMS x1 >",
            "XCLAIM x1 g c2 0 3-1 JUSTID",
            "XGROUP DELCONSUMER x1 g c2",
            "XGROUP DESTROY x1 g",
            "ZREMRANGEBYSCORE z1 -inf +inf",
            "SREM t1 a",
            "GET s1",
            "SPUBLISH a b",
            "WATCH s1",
            "MULTI",
            "SET s1 5",
            "EXEC",
            "MULTI",
            "EXEC",
            "MULTI",
            "DISCARD",
            "GET s1",
            "DEL s1",
        ];
        for line in full {
            pair.check(0, line).await?;
        }
        pair.check(1, "EXEC").await?;
        pair.check(1, "EXEC").await?;
        anyhow::Ok(())
    })
}

#[test]
fn the_pipeline_of_an_owner_gets_the_same_replies() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut pair = Pair::open().await?;
        let commit = "MULTI;HSET head seq 1 offset 1-1;XADD log 1-1 f v;XADD log 1-1 f v;INCR head;EXEC;WATCH head;\
                      HMGET head seq offset reign;XREAD COUNT 8 BLOCK 5 STREAMS log jobs 0 $;XREAD BLOCK 5 STREAMS log $;PING";
        let (real, twin) = pair.pipeline(0, commit).await?;
        assert_eq!(format!("{real:?}"), format!("{twin:?}"));
        pair.check(1, "HSET head reign other").await?;
        let (real, twin) = pair.pipeline(0, "MULTI;HSET head seq 2;EXEC;HGET head seq").await?;
        assert_eq!(format!("{real:?}"), format!("{twin:?}"));
        assert_eq!(real[2], redis::Value::Nil, "the watch belongs to the connection and was touched");
        anyhow::Ok(())
    })
}
