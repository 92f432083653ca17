//! The memory twin against a real server: the same commands, the same replies.
//!
//! The server is the program in `STEPFLEET_TEST_SERVER`, else `valkey-server` or `redis-server` on the PATH. Random
//! sequences run over two connections on both sides; measured times, texts of errors and the order of what has none are
//! levelled.

use anyhow::{Context, bail};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use redis::Value;
use redis::aio::ConnectionLike;
use std::cell::RefCell;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use stepfleet_coordinator::store::link::{Dial, Link};
use stepfleet_coordinator::store::memory::{Clock, MemoryLink, MemoryServer};

/// A server of this test's own, ended with it.
struct Server {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> anyhow::Result<std::path::PathBuf> {
    if let Some(path) = std::env::var_os("STEPFLEET_TEST_SERVER") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places =
        std::env::split_paths(&path).flat_map(|folder| ["valkey-server", "redis-server"].map(|name| folder.join(name)));
    places.find(|place| place.is_file()).context(
        "this test needs a real server: install `valkey-server` or `redis-server`, or set STEPFLEET_TEST_SERVER to one",
    )
}

async fn start() -> anyhow::Result<(Server, redis::Client)> {
    let folder = tempfile::tempdir()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let program = program()?;
    let child = Command::new(&program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let server = Server { child, _folder: folder };
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while client.get_multiplexed_async_connection().await.is_err() {
        if std::time::Instant::now() > deadline {
            bail!("`{}` does not answer on port {port}", program.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((server, client))
}

/// Both sides, with two connections each.
struct Pair {
    _server: Server,
    real: [redis::aio::MultiplexedConnection; 2],
    twin: [MemoryLink; 2],
    twin_server: MemoryServer,
    /// The commands that each connection has in its queue.
    queued: [Vec<String>; 2],
}

impl Pair {
    async fn open() -> anyhow::Result<Self> {
        let (server, client) = start().await?;
        let wait = Duration::from_secs(20);
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(wait));
        let real = [
            client.get_multiplexed_async_connection_with_config(&config).await?,
            client.get_multiplexed_async_connection_with_config(&config).await?,
        ];
        let twin_server = MemoryServer::new(Clock::default());
        let twin = [twin_server.dial().dial(0, wait).await?, twin_server.dial().dial(0, wait).await?];
        Ok(Self { _server: server, real, twin, twin_server, queued: Default::default() })
    }

    /// Leaves both sides empty and no connection inside MULTI.
    async fn reset(&mut self) -> anyhow::Result<()> {
        for connection in 0..2 {
            self.both(connection, "DISCARD").await?;
            self.both(connection, "UNWATCH").await?;
        }
        self.both(0, "FLUSHALL").await?;
        self.queued = Default::default();
        Ok(())
    }

    async fn both(&mut self, connection: usize, line: &str) -> anyhow::Result<(Value, Value)> {
        let mut pipe = redis::Pipeline::new();
        let mut cmd = redis::Cmd::new();
        line.split_whitespace().for_each(|word| {
            cmd.arg(word);
        });
        pipe.add_command(cmd);
        let mut real = self.real[connection].req_packed_commands(&pipe, 0, 1).await?;
        let mut twin = self.twin[connection].trip(&pipe).await?;
        Ok((real.remove(0), twin.remove(0)))
    }

    /// Sends one line to both and compares.
    async fn check(&mut self, connection: usize, line: &str) -> anyhow::Result<()> {
        let (real, twin) = self.both(connection, line).await?;
        if twin == Value::SimpleString("QUEUED".into()) {
            self.queued[connection].push(line.to_owned());
        }
        let queue =
            if ["EXEC", "DISCARD"].contains(&line) { std::mem::take(&mut self.queued[connection]) } else { Vec::new() };
        let (level_real, level_twin) = (level(line, &queue, real.clone()), level(line, &queue, twin.clone()));
        if level_real != level_twin {
            bail!("`{line}` on connection {connection}:\n  real {real:?}\n  twin {twin:?}\n  queue {queue:?}");
        }
        Ok(())
    }
}

/// Takes out what may differ.
fn level(line: &str, queue: &[String], value: Value) -> Value {
    let words: Vec<&str> = line.split_whitespace().collect();
    match value {
        Value::ServerError(error) => Value::SimpleString(format!("error {}", error.code())),
        Value::Array(items) if words[0] == "EXEC" => {
            assert_eq!(items.len(), queue.len(), "EXEC answers every queued command");
            Value::Array(items.into_iter().zip(queue).map(|(item, line)| level(line, &[], item)).collect())
        }
        Value::Array(items) => Value::Array(level_items(&words, items)),
        Value::Int(left) if words[0] == "PTTL" && left > 0 => Value::Int(1),
        other => other,
    }
}

fn level_items(words: &[&str], mut items: Vec<Value>) -> Vec<Value> {
    let elapsed = |value: &mut Value| {
        if let Value::Int(ms) = value {
            *ms = (*ms).min(0);
        }
    };
    match words {
        ["SMEMBERS" | "KEYS", ..] => items.sort_by_key(|item| format!("{item:?}")),
        ["HGETALL", ..] => {
            let mut pairs: Vec<Vec<Value>> = items.chunks(2).map(<[Value]>::to_vec).collect();
            pairs.sort_by_key(|pair| format!("{pair:?}"));
            items = pairs.concat();
        }
        // Rows of id, consumer, idle time, deliveries.
        ["XPENDING", _, _, _, ..] => items.iter_mut().for_each(|row| {
            if let Value::Array(row) = row {
                elapsed(&mut row[2]);
            }
        }),
        ["XINFO", "CONSUMERS", ..] => items.iter_mut().for_each(|row| {
            if let Value::Array(row) = row {
                elapsed(&mut row[5]);
                if let Some(inactive) = row.get_mut(7) {
                    elapsed(inactive);
                }
            }
        }),
        ["XINFO", "STREAM", ..] => {
            items.drain(2..6);
        }
        _ => {}
    }
    items
}

/// Lines with places to fill: see [`fill`].
const LINES: &[&str] = &[
    "SET {s} {v} {setopt}",
    "GET {s}",
    "MGET {s} {s} {h}",
    "DEL {any} {any}",
    "UNLINK {any}",
    "EXISTS {any} {any}",
    "TYPE {any}",
    "PEXPIRE {any} {ttl} {expopt}",
    "EXPIRE {any} {ttl}",
    "PTTL {any}",
    "PERSIST {any}",
    "APPEND {s} {v}",
    "STRLEN {s}",
    "GETRANGE {s} {i} {i}",
    "INCR {s}",
    "INCRBY {s} {i}",
    "HSET {h} {m} {v}",
    "HSET {h} {m} {v} {m} {v}",
    "HSETNX {h} {m} {v}",
    "HGET {h} {m}",
    "HMGET {h} {m} {m}",
    "HGETALL {h}",
    "HDEL {h} {m} {m}",
    "HLEN {h}",
    "HEXISTS {h} {m}",
    "HINCRBY {h} {m} {i}",
    "ZADD {z} {zopt} {score} {m}",
    "ZADD {z} {zopt} {score} {m} {score} {m}",
    "ZADD {z} {score} {m} {score} {m}",
    "ZINCRBY {z} {score} {m}",
    "ZREM {z} {m} {m}",
    "ZSCORE {z} {m}",
    "ZCARD {z}",
    "ZCOUNT {z} {edge} {edge}",
    "ZRANGE {z} {i} {i} {scores}",
    "ZRANGE {z} {i} {i} REV {scores}",
    "ZRANGE {z} {edge} {edge} BYSCORE {limit} {scores}",
    "ZRANGE {z} {edge} {edge} BYSCORE REV {limit} {scores}",
    "ZRANGE {z} {lex} {lex} BYLEX {limit}",
    "ZRANGE {z} {lex} {lex} BYLEX REV {limit}",
    "ZRANGE {z} {i} {i} {limit}",
    "ZRANGEBYSCORE {z} {edge} {edge} {limit} {scores}",
    "ZREVRANGEBYSCORE {z} {edge} {edge} {scores} {limit}",
    "ZREMRANGEBYSCORE {z} {edge} {edge}",
    "SADD {t} {m} {m}",
    "SREM {t} {m} {m}",
    "SMEMBERS {t}",
    "SISMEMBER {t} {m}",
    "SCARD {t}",
    "RPUSH {l} {m} {v}",
    "LPUSH {l} {m}",
    "LPOP {l}",
    "RPOP {l}",
    "LPOP {l} {i}",
    "RPOP {l} {i}",
    "LRANGE {l} {i} {i}",
    "LLEN {l}",
    "LSET {l} {i} {v}",
    "LINDEX {l} {i}",
    "LTRIM {l} {i} {i}",
    "KEYS {glob}",
    "NOSUCH thing",
    "GET",
    "ZADD {z} 1",
    "SPUBLISH nobody {v}",
    "PING",
    "MULTI",
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH {any}",
    "WATCH {s} {x}",
    "UNWATCH",
    "FLUSHALL",
];

/// Streams have the most rules, so their lines are drawn more often.
const STREAM_LINES: &[&str] = &[
    "XADD {x} {up} f {v}",
    "XADD {x} {up} f {v}",
    "XADD {x} {up} f {v} g {v}",
    "XADD {x} {id} f {v}",
    "XADD {x} {trim} {up} f {v}",
    "XADD {x} NOMKSTREAM {up} f {v}",
    "XADD {x} {up}",
    "XLEN {x}",
    "XRANGE {x} {from} {to} {count}",
    "XREVRANGE {x} {to} {from} {count}",
    "XDEL {x} {id} {id}",
    "XTRIM {x} {trim}",
    "XREAD {count} STREAMS {x} {id}",
    "XREAD {count} STREAMS {x} {x} {id} {id}",
    "XREAD STREAMS {x} $",
    "XREAD COUNT 1 BLOCK 1 STREAMS {x} {id}",
    "XGROUP CREATE {x} {g} {gid} MKSTREAM",
    "XGROUP CREATE {x} {g} {gid}",
    "XGROUP DESTROY {x} {g}",
    "XGROUP CREATECONSUMER {x} {g} {c}",
    "XGROUP DELCONSUMER {x} {g} {c}",
    "XGROUP NONSENSE {x} {g}",
    "XREADGROUP GROUP {g} {c} {count} STREAMS {x} >",
    "XREADGROUP GROUP {g} {c} {count} STREAMS {x} >",
    "XREADGROUP GROUP {g} {c} NOACK COUNT 1 STREAMS {x} >",
    "XREADGROUP GROUP {g} {c} {count} STREAMS {x} {x} > >",
    "XREADGROUP GROUP {g} {c} COUNT 2 BLOCK 1 STREAMS {x} >",
    "XREADGROUP GROUP {g} {c} {count} STREAMS {x} {id}",
    "XREADGROUP GROUP {g} {c} STREAMS {x} $",
    "XACK {x} {g} {id} {id}",
    "XPENDING {x} {g}",
    "XPENDING {x} {g} {from} {to} 10",
    "XPENDING {x} {g} - + 3 {c}",
    "XPENDING {x} {g} IDLE 0 - + 10",
    "XINFO GROUPS {x}",
    "XINFO STREAM {x}",
    "XINFO CONSUMERS {x} {g}",
    "XCLAIM {x} {g} {c} 0 {id} {id}",
    "XCLAIM {x} {g} {c} 0 {id} JUSTID",
    "XCLAIM {x} {g} {c} 100000 {id}",
];

/// The words that a place may be filled with.
fn choices(place: &str) -> &'static [&'static str] {
    match place {
        "s" => &["s1", "s2"],
        "h" => &["h1", "h2"],
        "z" => &["z1", "z1", "z2"],
        "t" => &["t1"],
        "l" => &["l1", "l2"],
        "x" => &["x1", "x1", "x2"],
        "any" => &["s1", "s2", "h1", "z1", "t1", "l1", "x1", "x2", "none"],
        "v" => &["1", "7", "-3", "text", "9223372036854775807", "0x", "1.5"],
        "m" => &["a", "b", "c", "d", "ab", "B"],
        "i" => &["0", "1", "2", "-1", "-2", "5", "-7", "x"],
        "score" => &[
            "1",
            "2",
            "-1",
            "1.5",
            "2",
            "0.1",
            "inf",
            "-inf",
            "1e20",
            "1e22",
            "1e-7",
            "3.14159",
            "1767225600123",
            "nope",
        ],
        "edge" => &["-inf", "+inf", "1", "(1", "2", "(2", "1.5", "0", "x", "(1e20"],
        "lex" => &["-", "+", "[a", "(a", "[b", "(c", "[d", "b"],
        "scores" => &["", "WITHSCORES"],
        "limit" => &["", "LIMIT 0 1", "LIMIT 1 2", "LIMIT 0 -1", "LIMIT -1 2", "LIMIT 1"],
        "zopt" => &["", "NX", "XX", "GT", "LT", "CH", "XX CH", "GT CH", "NX GT", "XX LT", "NX XX"],
        "setopt" => &["", "", "NX", "XX", "PX 100000", "EX 100 NX", "XX KEEPTTL", "KEEPTTL", "PX 0", "NX XX"],
        "expopt" => &["", "", "NX", "XX", "GT", "LT", "NX XX"],
        "ttl" => &["100000", "200000", "-1", "0", "x"],
        "glob" => &["*", "s*", "?1", "[sx]1", "[^s]*", "none", "\\s1", "[a-s]?"],
        "count" => &["", "", "COUNT 1", "COUNT 2", "COUNT 0"],
        "trim" => &["MAXLEN 2", "MAXLEN = 1", "MINID 5-0", "MINID = 20", "MAXLEN -1", "MAXLEN 0", "MAXLEN 1 LIMIT 2"],
        "from" => &["-", "3-1", "(5-1", "10", "7"],
        "to" => &["+", "20-1", "(25-1", "9", "30"],
        "gid" => &["0", "$", "5-1", "0-0"],
        "g" => &["g", "g", "g2"],
        "c" => &["c1", "c1", "c2"],
        other => panic!("no words for the place `{other}`"),
    }
}

/// Fills the places of a line. `up` is an id above those of earlier lines, `id` is one of theirs or nearly.
fn fill(line: &str, at: usize, picks: &[u16]) -> String {
    let mut picks = picks.iter().cycle();
    let mut filled = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('{') {
        let (place, after) = after.split_once('}').expect("a place is closed");
        let pick = usize::from(*picks.next().expect("a cycle has no end"));
        filled.push_str(before);
        match place {
            "up" if pick.is_multiple_of(4) => filled.push_str(&format!("{}-*", at + 1)),
            "up" => filled.push_str(&format!("{}-1", at + 1)),
            "id" => filled.push_str(&format!("{}-{}", pick % (at + 2), [1, 1, 1, 0][pick / 256 % 4])),
            _ => {
                // Rarely a key of another type, to meet WRONGTYPE.
                let wrong = pick % 61 == 60 && ["s", "h", "z", "t", "l", "x"].contains(&place);
                let words = choices(if wrong { "any" } else { place });
                filled.push_str(words[pick / 7 % words.len()]);
            }
        }
        rest = after;
    }
    filled + rest
}

fn sequences() -> impl Strategy<Value = Vec<(usize, String)>> {
    let line = prop_oneof![3 => prop::sample::select(LINES), 4 => prop::sample::select(STREAM_LINES)];
    let step = (0..2_usize, line, prop::collection::vec(any::<u16>(), 8));
    prop::collection::vec(step, 1..60).prop_map(|steps| {
        let filled =
            steps.into_iter().enumerate().map(|(at, (connection, line, picks))| (connection, fill(line, at, &picks)));
        filled.collect()
    })
}

/// How many random sequences; more with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

#[test]
fn the_twin_answers_like_a_real_server() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pair = RefCell::new(runtime.block_on(Pair::open())?);
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&sequences(), |steps| {
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
