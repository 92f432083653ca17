//! XREAD and XREADGROUP.
//!
//! A read that finds nothing and was told to block leaves a [`Wait`] behind; waiting itself is the connection's business.

use super::db::{Db, Wait};
use super::groups::no_group;
use super::reply::{Refusal, Reply, bulk, parse_int, word};
use super::stream::{Id, Pending, entry_value};
use redis::Value;
use std::time::Duration;

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// Behind this id.
    After(Id),
    /// `>`: what the group has not delivered.
    New,
}

/// A parsed read.
struct Read<'a> {
    group: Option<(&'a [u8], &'a [u8])>,
    count: usize,
    block: Option<Option<Duration>>,
    no_ack: bool,
    streams: Vec<(&'a Vec<u8>, From)>,
    ids_at: usize,
}

pub(super) fn read(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let grouped = word(&args[0]) == "XREADGROUP";
    let mut read = parse(args, grouped)?;
    resolve(db, &mut read, args)?;
    let mut found = Vec::new();
    for (key, from) in &read.streams {
        let entries = match (read.group, from) {
            (Some((group, consumer)), From::After(id)) => Some(history(db, key, (group, consumer), (*id, read.count))?),
            (Some((group, consumer)), _) => deliver(db, key, (group, consumer), &read)?,
            (None, From::After(id)) => plain(db, key, *id, read.count)?,
            (None, From::New) => None,
        };
        if let Some(entries) = entries {
            found.push(Value::Array(vec![bulk((*key).clone()), Value::Array(entries)]));
        }
    }
    if !found.is_empty() {
        return Ok(Value::Array(found));
    }
    if let Some(block) = read.block {
        let mut command = args.to_vec();
        for (place, (_, from)) in command[read.ids_at..].iter_mut().zip(&read.streams) {
            if let From::After(id) = from {
                *place = id.to_string().into_bytes();
            }
        }
        let keys = read.streams.iter().map(|(key, _)| key.to_vec()).collect();
        db.wait = Some(Wait { command, keys, block });
    }
    Ok(Value::Nil)
}

fn parse(args: &[Vec<u8>], grouped: bool) -> Result<Read<'_>, Refusal> {
    let mut read = Read { group: None, count: usize::MAX, block: None, no_ack: false, streams: Vec::new(), ids_at: 0 };
    let mut at = 1;
    let streams_at = loop {
        let option = args.get(at).ok_or_else(Refusal::syntax)?;
        let value = |offset: usize| args.get(at + offset).ok_or_else(Refusal::syntax);
        at += match word(option).as_str() {
            "STREAMS" => break at + 1,
            "COUNT" => {
                let count = parse_int(value(1)?)?;
                read.count = usize::try_from(count).ok().filter(|count| *count > 0).unwrap_or(usize::MAX);
                2
            }
            "BLOCK" => {
                let ms =
                    parse_int(value(1)?).map_err(|_| Refusal::new("ERR timeout is not an integer or out of range"))?;
                let ms = u64::try_from(ms).map_err(|_| Refusal::new("ERR timeout is negative"))?;
                read.block = Some((ms > 0).then(|| Duration::from_millis(ms)));
                2
            }
            "GROUP" if grouped => {
                read.group = Some((value(1)?.as_slice(), value(2)?.as_slice()));
                3
            }
            "NOACK" if grouped => {
                read.no_ack = true;
                1
            }
            _ => return Err(Refusal::syntax()),
        };
    };
    let rest = &args[streams_at..];
    if rest.is_empty() || !rest.len().is_multiple_of(2) {
        return Err(Refusal::new(format!(
            "ERR Unbalanced '{}' list of streams: for each stream key an ID or '$' must be specified.",
            word(&args[0]).to_lowercase()
        )));
    }
    if grouped && read.group.is_none() {
        return Err(Refusal::new("ERR Missing GROUP option for XREADGROUP"));
    }
    read.ids_at = streams_at + rest.len() / 2;
    Ok(read)
}

/// Looks at every stream, its group and its id in turn, and turns `$` into the id it means now.
fn resolve<'a>(db: &mut Db, read: &mut Read<'a>, args: &'a [Vec<u8>]) -> Result<(), Refusal> {
    let (keys, ids) = args[2 * read.ids_at - args.len()..].split_at(args.len() - read.ids_at);
    for (key, id) in keys.iter().zip(ids) {
        let stream = db.find_stream(key)?;
        if let Some((group, _)) = read.group
            && !stream.as_ref().is_some_and(|stream| stream.groups.contains_key(group))
        {
            return Err(no_group(key, group));
        }
        let from = match (id.as_slice(), read.group) {
            (b"$", None) => From::After(stream.map_or(Id::ZERO, |stream| stream.last)),
            (b">", Some(_)) => From::New,
            (b"$", Some(_)) => return Err(Refusal::new("ERR The $ ID is meaningless in the context of XREADGROUP")),
            (b">", None) => {
                return Err(Refusal::new("ERR The > ID can be specified only when calling XREADGROUP"));
            }
            (id, _) => From::After(Id::parse(id, 0)?),
        };
        read.streams.push((key, from));
    }
    Ok(())
}

fn plain(db: &mut Db, key: &[u8], after: Id, count: usize) -> Result<Option<Vec<Value>>, Refusal> {
    let (Some(stream), Some(from)) = (db.find_stream(key)?, after.next()) else { return Ok(None) };
    let entries: Vec<Value> = stream.entries.range(from..).take(count).map(|(id, f)| entry_value(*id, f)).collect();
    Ok((!entries.is_empty()).then_some(entries))
}

/// Delivers what the group has not seen.
fn deliver(
    db: &mut Db,
    key: &[u8],
    (group, consumer): (&[u8], &[u8]),
    read: &Read<'_>,
) -> Result<Option<Vec<Value>>, Refusal> {
    let now_ms = db.now_ms();
    let stream = db.find_stream(key)?.expect("checked before");
    let found = stream.groups.get_mut(group).expect("checked before");
    found.consumer(consumer, now_ms);
    if stream.entries.keys().next_back().is_none_or(|last| *last <= found.last) {
        return Ok(None);
    }
    if !read.no_ack {
        found.consumer(consumer, now_ms).active_ms = Some(now_ms);
    }
    let from = found.last.next().expect("an entry is above it");
    let ids: Vec<Id> = stream.entries.range(from..).take(read.count).map(|(id, _)| *id).collect();
    let mut entries = Vec::with_capacity(ids.len());
    for id in ids {
        stream.advance(group, id);
        entries.push(entry_value(id, &stream.entries[&id]));
        if !read.no_ack {
            let pending = Pending { consumer: consumer.to_vec(), delivered_ms: now_ms, deliveries: 1 };
            stream.groups.get_mut(group).expect("checked before").pending.insert(id, pending);
        }
    }
    Ok(Some(entries))
}

/// What is pending at the consumer itself; an entry that is gone shows nil instead of fields.
fn history(
    db: &mut Db,
    key: &[u8],
    (group, consumer): (&[u8], &[u8]),
    (after, count): (Id, usize),
) -> Result<Vec<Value>, Refusal> {
    let now_ms = db.now_ms();
    let stream = db.find_stream(key)?.expect("checked before");
    let found = stream.groups.get_mut(group).expect("checked before");
    found.consumer(consumer, now_ms);
    let Some(from) = after.next() else { return Ok(Vec::new()) };
    let own = found.pending.range_mut(from..).filter(|(_, pending)| pending.consumer == consumer);
    let entries = own.take(count).map(|(id, pending)| match stream.entries.get(id) {
        None => Value::Array(vec![id.value(), Value::Nil]),
        Some(fields) => {
            pending.delivered_ms = now_ms;
            pending.deliveries += 1;
            entry_value(*id, fields)
        }
    });
    Ok(entries.collect())
}
