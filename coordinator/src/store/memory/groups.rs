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

fn no_such_group(key: &[u8], group: &[u8]) -> Refusal {
    let (key, group) = (String::from_utf8_lossy(key), String::from_utf8_lossy(group));
    Refusal::new(format!("NOGROUP No such consumer group '{group}' for key name '{key}'"))
}

fn open_group<'a>(db: &'a mut Db, args: &[Vec<u8>]) -> Result<&'a mut Group, Refusal> {
    let stream = db.find_stream(&args[2])?.ok_or_else(no_stream)?;
    stream.groups.get_mut(&args[3]).ok_or_else(|| no_such_group(&args[2], &args[3]))
}

pub(super) fn destroy(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let stream = db.find_stream(&args[2])?.ok_or_else(no_stream)?;
    let was = stream.groups.remove(&args[3]).is_some();
    if was {
        // Whoever waits at the group is to be refused now. Watchers of the stream notice nothing, as on a real server.
        db.roused.insert(args[2].clone());
    }
    Ok(yes(was))
}

pub(super) fn create_consumer(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    let group = open_group(db, args)?;
    let absent = !group.consumers.contains_key(&args[4]);
    if absent {
        group.consumer(&args[4], now_ms);
    }
    Ok(yes(absent))
}

/// Answers how many entries were pending at the consumer; they are gone with it.
pub(super) fn delete_consumer(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let group = open_group(db, args)?;
    let before = group.pending.len();
    group.pending.retain(|_, pending| pending.consumer != args[4]);
    group.consumers.remove(&args[4]);
    Ok(int(before - group.pending.len()))
}

pub(super) fn create(db: &mut Db, args: &[Vec<u8>]) -> Reply {
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
