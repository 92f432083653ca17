//! XINFO: what a server tells about a stream, its groups and their consumers.

use super::db::Db;
use super::groups::no_group;
use super::reply::{Refusal, Reply, bulk, int};
use super::stream::{Group, Id, Stream, entry_value};
use redis::Value;

fn find<'a>(db: &'a mut Db, key: &[u8]) -> Result<&'a mut Stream, Refusal> {
    db.find_stream(key)?.ok_or_else(|| Refusal::new("ERR no such key"))
}

pub(super) fn stream(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(stream_facts(find(db, &args[2])?))
}

pub(super) fn groups(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let stream = find(db, &args[2])?;
    let groups = stream.groups.iter().map(|(name, group)| group_facts(stream, name, group));
    Ok(Value::Array(groups.collect()))
}

pub(super) fn consumers(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    let stream = find(db, &args[2])?;
    let group = stream.groups.get(&args[3]).ok_or_else(|| no_group(&args[2], &args[3]))?;
    Ok(consumer_facts(group, now_ms))
}

fn facts(pairs: Vec<(&str, Value)>) -> Value {
    Value::Array(pairs.into_iter().flat_map(|(name, value)| [bulk(name), value]).collect())
}

fn counter(count: u64) -> Value {
    Value::Int(i64::try_from(count).expect("a counter fits 63 bits"))
}

fn stream_facts(stream: &Stream) -> Value {
    let entry = |pair: Option<(&Id, &Vec<Vec<u8>>)>| pair.map_or(Value::Nil, |(id, fields)| entry_value(*id, fields));
    facts(vec![
        ("length", int(stream.entries.len())),
        ("radix-tree-keys", Value::Int(1)),
        ("radix-tree-nodes", Value::Int(2)),
        ("last-generated-id", stream.last.value()),
        ("max-deleted-entry-id", stream.max_deleted.value()),
        ("entries-added", counter(stream.added)),
        ("recorded-first-entry-id", stream.first().value()),
        ("groups", int(stream.groups.len())),
        ("first-entry", entry(stream.entries.first_key_value())),
        ("last-entry", entry(stream.entries.last_key_value())),
    ])
}

fn group_facts(stream: &Stream, name: &[u8], group: &Group) -> Value {
    facts(vec![
        ("name", bulk(name)),
        ("consumers", int(group.consumers.len())),
        ("pending", int(group.pending.len())),
        ("last-delivered-id", group.last.value()),
        ("entries-read", group.read.map_or(Value::Nil, counter)),
        ("lag", stream.lag(group).map_or(Value::Nil, counter)),
    ])
}

fn consumer_facts(group: &Group, now_ms: i64) -> Value {
    let consumers = group.consumers.iter().map(|(name, consumer)| {
        let pending = group.pending.values().filter(|pending| pending.consumer == *name).count();
        facts(vec![
            ("name", bulk(name.clone())),
            ("pending", int(pending)),
            ("idle", Value::Int((now_ms - consumer.seen_ms).max(0))),
            ("inactive", Value::Int(consumer.active_ms.map_or(-1, |active_ms| (now_ms - active_ms).max(0)))),
        ])
    });
    Value::Array(consumers.collect())
}
