//! Consumer groups: making them, acknowledging, claiming, and what is pending.

use super::db::Db;
use super::reply::{Refusal, Reply, bulk, int, parse_int, word, yes};
use super::stream::{Group, Id, Stream, entry_value};
use super::streams::{high_edge, low_edge};
use redis::Value;
use std::collections::BTreeMap;

/// The refusal where a key or a group is missing.
pub(super) fn no_group(key: &[u8], group: &[u8]) -> Refusal {
    let (key, group) = (String::from_utf8_lossy(key), String::from_utf8_lossy(group));
    Refusal::new(format!("NOGROUP No such key '{key}' or consumer group '{group}'"))
}

fn no_stream() -> Refusal {
    Refusal::new(
        "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM \
         option to create an empty stream automatically.",
    )
}

pub(super) fn xgroup(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let verb = word(&args[1]);
    let wanted = match verb.as_str() {
        "CREATE" => 5..=8,
        "DESTROY" => 4..=4,
        "CREATECONSUMER" | "DELCONSUMER" => 5..=5,
        _ => return Err(Refusal::new(format!("ERR unknown subcommand '{verb}'. Try XGROUP HELP."))),
    };
    if !wanted.contains(&args.len()) {
        let verb = verb.to_lowercase();
        return Err(Refusal::new(format!("ERR wrong number of arguments for 'xgroup|{verb}' command")));
    }
    if verb == "CREATE" {
        return create(db, args);
    }
    let now_ms = db.now_ms();
    let stream = db.find_stream(&args[2])?.ok_or_else(no_stream)?;
    if verb == "DESTROY" {
        return Ok(yes(stream.groups.remove(&args[3]).is_some()));
    }
    let found = stream.groups.get_mut(&args[3]).ok_or_else(|| {
        let (key, group) = (String::from_utf8_lossy(&args[2]), String::from_utf8_lossy(&args[3]));
        Refusal::new(format!("NOGROUP No such consumer group '{group}' for key name '{key}'"))
    })?;
    if verb == "CREATECONSUMER" {
        let absent = !found.consumers.contains_key(&args[4]);
        if absent {
            found.consumer(&args[4], now_ms);
        }
        return Ok(yes(absent));
    }
    let before = found.pending.len();
    found.pending.retain(|_, pending| pending.consumer != args[4]);
    found.consumers.remove(&args[4]);
    Ok(int(before - found.pending.len()))
}

fn create(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (mut make, mut read, mut rest) = (false, None, args[5..].iter());
    while let Some(option) = rest.next() {
        match word(option).as_str() {
            "MKSTREAM" => make = true,
            "ENTRIESREAD" => {
                let count = parse_int(rest.next().ok_or_else(Refusal::syntax)?)?;
                let wrong = || Refusal::new("ERR value for ENTRIESREAD must be positive or -1");
                read = if count == -1 { None } else { Some(u64::try_from(count).map_err(|_| wrong())?) };
            }
            _ => return Err(Refusal::syntax()),
        }
    }
    let absent = db.find_stream(&args[2])?.is_none();
    if absent && !make {
        return Err(no_stream());
    }
    let last = match args[4].as_slice() {
        b"$" => db.find_stream(&args[2])?.map_or(Id::ZERO, |stream| stream.last),
        id => Id::parse(id, 0)?,
    };
    let stream = db.open_stream(&args[2])?;
    let fresh = !stream.groups.contains_key(&args[3]);
    if fresh {
        stream.groups.insert(args[3].clone(), Group { last, read, ..Group::default() });
    }
    if absent {
        db.touch(&args[2]);
    }
    if fresh { Ok(Value::Okay) } else { Err(Refusal::new("BUSYGROUP Consumer Group name already exists")) }
}

pub(super) fn xack(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let ids = args[3..].iter().map(|id| Id::parse(id, 0)).collect::<Result<Vec<_>, _>>();
    let found = db.find_stream(&args[1])?.and_then(|stream| stream.groups.get_mut(&args[2]));
    let Some(group) = found else { return Ok(Value::Int(0)) };
    Ok(int(ids?.iter().filter(|id| group.pending.remove(id).is_some()).count()))
}

/// XPENDING: the summary, or `[IDLE ms] start end count [consumer]`.
pub(super) fn xpending(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    let idle = args.get(3).is_some_and(|arg| word(arg) == "IDLE");
    let (idle_ms, rest) = if idle {
        (parse_int(args.get(4).ok_or_else(Refusal::syntax)?)?, args.get(5..).unwrap_or_default())
    } else {
        (0, &args[3..])
    };
    let wanted = match rest {
        [] if !idle => None,
        [low, high, count, consumer @ ..] if consumer.len() <= 1 => {
            let count = usize::try_from(parse_int(count)?).unwrap_or(0);
            Some((low_edge(low)?, high_edge(high)?, count, consumer.first()))
        }
        _ => return Err(Refusal::syntax()),
    };
    let found = db.find_stream(&args[1])?.and_then(|stream| stream.groups.get(&args[2]));
    let group = found.ok_or_else(|| no_group(&args[1], &args[2]))?;
    let Some((low, high, count, consumer)) = wanted else { return Ok(pending_summary(group)) };
    if low > high {
        return Ok(Value::Array(Vec::new()));
    }
    let rows = group.pending.range(low..=high).filter(|(_, pending)| {
        consumer.is_none_or(|consumer| *consumer == pending.consumer) && now_ms - pending.delivered_ms >= idle_ms
    });
    let rows = rows.take(count).map(|(id, pending)| {
        let idle = Value::Int((now_ms - pending.delivered_ms).max(0));
        Value::Array(vec![id.value(), bulk(pending.consumer.clone()), idle, Value::Int(pending.deliveries)])
    });
    Ok(Value::Array(rows.collect()))
}

fn pending_summary(group: &Group) -> Value {
    let (Some((first, _)), Some((last, _))) = (group.pending.first_key_value(), group.pending.last_key_value()) else {
        return Value::Array(vec![Value::Int(0), Value::Nil, Value::Nil, Value::Nil]);
    };
    let mut counts: BTreeMap<&Vec<u8>, usize> = BTreeMap::new();
    for pending in group.pending.values() {
        *counts.entry(&pending.consumer).or_default() += 1;
    }
    let counts =
        counts.into_iter().map(|(name, count)| Value::Array(vec![bulk(name.clone()), bulk(count.to_string())]));
    Value::Array(vec![int(group.pending.len()), first.value(), last.value(), Value::Array(counts.collect())])
}

/// XCLAIM with JUSTID; the other options are not there.
pub(super) fn xclaim(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    let found = db.find_stream(&args[1])?.filter(|stream| stream.groups.contains_key(&args[2]));
    let Some(Stream { entries, groups, .. }) = found else { return Err(no_group(&args[1], &args[2])) };
    let idle_ms =
        parse_int(&args[4]).map_err(|_| Refusal::new("ERR Invalid min-idle-time argument for XCLAIM"))?.max(0);
    let just_id = args.last().is_some_and(|arg| word(arg) == "JUSTID");
    let ids = &args[5..args.len() - usize::from(just_id)];
    let ids = ids.iter().map(|id| Id::parse(id, 0)).collect::<Result<Vec<_>, _>>()?;
    let group = groups.get_mut(&args[2]).expect("filtered above");
    group.consumer(&args[3], now_ms);
    let mut claimed = Vec::new();
    for id in ids {
        let Some(pending) = group.pending.get_mut(&id) else { continue };
        let Some(fields) = entries.get(&id) else {
            group.pending.remove(&id);
            continue;
        };
        if now_ms - pending.delivered_ms < idle_ms {
            continue;
        }
        pending.consumer.clone_from(&args[3]);
        pending.delivered_ms = now_ms;
        pending.deliveries += i64::from(!just_id);
        claimed.push(if just_id { id.value() } else { entry_value(id, fields) });
    }
    if !claimed.is_empty() {
        group.consumer(&args[3], now_ms).active_ms = Some(now_ms);
    }
    Ok(Value::Array(claimed))
}

/// XINFO STREAM, GROUPS and CONSUMERS.
pub(super) fn xinfo(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    let missing = || Refusal::new("ERR no such key");
    let verb = word(&args[1]);
    let wanted = match verb.as_str() {
        "STREAM" | "GROUPS" => 3,
        "CONSUMERS" => 4,
        _ => return Err(Refusal::new(format!("ERR unknown subcommand '{verb}'. Try XINFO HELP."))),
    };
    if args.len() != wanted {
        let verb = verb.to_lowercase();
        return Err(Refusal::new(format!("ERR wrong number of arguments for 'xinfo|{verb}' command")));
    }
    let stream = db.find_stream(&args[2])?.ok_or_else(missing)?;
    match verb.as_str() {
        "STREAM" => Ok(stream_facts(stream)),
        "GROUPS" => {
            let groups = stream.groups.iter().map(|(name, group)| group_facts(stream, name, group));
            Ok(Value::Array(groups.collect()))
        }
        _ => {
            let group = stream.groups.get(&args[3]).ok_or_else(|| no_group(&args[2], &args[3]))?;
            Ok(consumer_facts(group, now_ms))
        }
    }
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
