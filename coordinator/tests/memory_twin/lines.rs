//! Random sequences of commands over a handful of keys.

use proptest::prelude::*;

/// Lines with places to fill: see [`fill`].
const LINES: &str = "\
SET {s} {v} {setopt}
GET {s}
MGET {s} {s} {h}
DEL {any} {any}
UNLINK {any}
EXISTS {any} {any}
COPY {s} {s} {replace}
COPY {h} {h} {replace}
TYPE {any}
PEXPIRE {any} {ttl} {expopt}
EXPIRE {any} {ttl}
PTTL {any}
PERSIST {any}
COPY {s} {s}
COPY {s} {h} REPLACE
APPEND {s} {v}
STRLEN {s}
GETRANGE {s} {i} {i}
INCR {s}
INCRBY {s} {i}
HSET {h} {m} {v}
HSET {h} {m} {v} {m} {v}
HSETNX {h} {m} {v}
HGET {h} {m}
HMGET {h} {m} {m}
HGETALL {h}
HDEL {h} {m} {m}
HLEN {h}
HEXISTS {h} {m}
HINCRBY {h} {m} {i}
ZADD {z} {zopt} {score} {m}
ZADD {z} {zopt} {score} {m} {score} {m}
ZADD {z} {score} {m} {score} {m}
ZINCRBY {z} {score} {m}
ZREM {z} {m} {m}
ZSCORE {z} {m}
ZCARD {z}
ZCOUNT {z} {edge} {edge}
ZRANGE {z} {i} {i} {scores}
ZRANGE {z} {i} {i} REV {scores}
ZRANGE {z} {edge} {edge} BYSCORE {limit} {scores}
ZRANGE {z} {edge} {edge} BYSCORE REV {limit} {scores}
ZRANGE {y} {lex} {lex} BYLEX {limit}
ZRANGE {y} {lex} {lex} BYLEX REV {limit}
ZADD {y} 0 {m} 0 {m} 0 {m}
ZREM {y} {m}
ZRANGE {y} 0 -1 WITHSCORES
ZRANGE {z} {i} {i} {limit}
ZRANGEBYSCORE {z} {edge} {edge} {limit} {scores}
ZREVRANGEBYSCORE {z} {edge} {edge} {scores} {limit}
ZREMRANGEBYSCORE {z} {edge} {edge}
SADD {t} {m} {m}
SREM {t} {m} {m}
SMEMBERS {t}
SISMEMBER {t} {m}
SCARD {t}
RPUSH {l} {m} {v}
LPUSH {l} {m}
LPOP {l}
RPOP {l}
LPOP {l} {i}
RPOP {l} {i}
LRANGE {l} {i} {i}
LLEN {l}
LSET {l} {i} {v}
LINDEX {l} {i}
LTRIM {l} {i} {i}
KEYS {glob}
NOSUCH thing
GET
ZADD {z} 1
SPUBLISH nobody {v}
PUBSUB SHARDNUMSUB nobody no-one
PING
MULTI
MULTI
MULTI
EXEC
EXEC
EXEC
EXEC
DISCARD
WATCH {any}
WATCH {s} {x}
UNWATCH
FLUSHALL";

/// Streams have the most rules, so their lines are drawn more often.
const STREAM_LINES: &str = "\
XADD {x} {up} f {v}
XADD {x} {up} f {v}
XADD {x} {up} f {v} g {v}
XADD {x} {id} f {v}
XADD {x} {trim} {up} f {v}
XADD {x} NOMKSTREAM {up} f {v}
XADD {x} {up}
XLEN {x}
XRANGE {x} {from} {to} {count}
XREVRANGE {x} {to} {from} {count}
XDEL {x} {id} {id}
XTRIM {x} {trim}
XREAD {count} STREAMS {x} {id}
XREAD {count} STREAMS {x} {x} {id} {id}
XREAD STREAMS {x} $
XREAD COUNT 1 BLOCK 1 STREAMS {x} {id}
XGROUP CREATE {x} {g} {gid} MKSTREAM
XGROUP CREATE {x} {g} {gid}
XGROUP DESTROY {x} {g}
XGROUP CREATECONSUMER {x} {g} {c}
XGROUP DELCONSUMER {x} {g} {c}
XGROUP NONSENSE {x} {g}
XREADGROUP GROUP {g} {c} {count} STREAMS {x} >
XREADGROUP GROUP {g} {c} {count} STREAMS {x} >
XREADGROUP GROUP {g} {c} NOACK COUNT 1 STREAMS {x} >
XREADGROUP GROUP {g} {c} {count} STREAMS {x} {x} > >
XREADGROUP GROUP {g} {c} COUNT 2 BLOCK 1 STREAMS {x} >
XREADGROUP GROUP {g} {c} {count} STREAMS {x} {id}
XREADGROUP GROUP {g} {c} STREAMS {x} $
XACK {x} {g} {id} {id}
XPENDING {x} {g}
XPENDING {x} {g} {from} {to} 10
XPENDING {x} {g} - + 3 {c}
XPENDING {x} {g} IDLE 0 - + 10
XINFO GROUPS {x}
XINFO STREAM {x}
XINFO CONSUMERS {x} {g}
XCLAIM {x} {g} {c} 0 {id} {id}
XCLAIM {x} {g} {c} 0 {id} JUSTID
XCLAIM {x} {g} {c} 100000 {id}";

/// The words that a place may be filled with.
fn choices(place: &str) -> &'static [&'static str] {
    match place {
        "s" => &["s1", "s2"],
        "h" => &["h1", "h2"],
        "z" => &["z1", "z1", "z2"],
        // Ranges by bytes are defined only where all scores are equal.
        "y" => &["y1"],
        "t" => &["t1"],
        "l" => &["l1", "l2"],
        "x" => &["x1", "x1", "x2"],
        "any" => &["s1", "s2", "h1", "z1", "t1", "l1", "x1", "x2", "none"],
        "v" => &["1", "7", "-3", "text", "9223372036854775807", "0x", "1.5"],
        "m" => &["a", "b", "c", "d", "ab", "B"],
        "i" => &["0", "1", "2", "-1", "-2", "5", "-7", "x"],
        "score" => &["1", "2", "-1", "1.5", "2", "0.25", "inf", "-inf", "1767225600123", "nope"],
        "edge" => &["-inf", "+inf", "1", "(1", "2", "(2", "1.5", "0", "x", "(1e20"],
        "lex" => &["-", "+", "[a", "(a", "[b", "(c", "[d", "b"],
        "scores" => &["", "WITHSCORES"],
        "limit" => &["", "LIMIT 0 1", "LIMIT 1 2", "LIMIT 0 -1", "LIMIT -1 2", "LIMIT 1"],
        "zopt" => &["", "NX", "XX", "GT", "LT", "CH", "XX CH", "GT CH", "NX GT", "XX LT", "NX XX"],
        "replace" => &["", "REPLACE"],
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

fn list(lines: &'static str) -> Vec<&'static str> {
    lines.lines().collect()
}

/// Up to 60 commands, each with the connection that sends it.
pub(super) fn sequences() -> impl Strategy<Value = Vec<(usize, String)>> {
    let line = prop_oneof![3 => prop::sample::select(list(LINES)), 4 => prop::sample::select(list(STREAM_LINES))];
    let step = (0..2_usize, line, prop::collection::vec(any::<u16>(), 8));
    prop::collection::vec(step, 1..60).prop_map(|steps| {
        let filled =
            steps.into_iter().enumerate().map(|(at, (connection, line, picks))| (connection, fill(line, at, &picks)));
        filled.collect()
    })
}

/// The same, each command sent by one connection while the other watches every key: whether the transaction behind it
/// passes tells which commands touch a key.
pub(super) fn watched_sequences() -> impl Strategy<Value = Vec<(usize, String)>> {
    let watch = "WATCH s1 s2 h1 h2 z1 z2 y1 t1 l1 l2 x1 x2 none";
    sequences().prop_map(move |steps| {
        let around = |(_, line): (usize, String)| {
            [(0, watch.to_owned()), (0, "MULTI".into()), (0, "PING".into()), (1, line), (0, "EXEC".into())]
        };
        // An LTRIM that removes nothing touches in some versions only.
        steps.into_iter().filter(|(_, line)| !line.starts_with("LTRIM")).flat_map(around).collect()
    })
}
