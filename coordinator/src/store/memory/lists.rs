//! Lists.

use super::db::{Db, List};
use super::reply::{Refusal, Reply, bulk, bulk_or_nil, index_range, int, parse_int};
use redis::Value;

pub(super) fn rpush(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    push(db, args, |list, value| list.push_back(value))
}

pub(super) fn lpush(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    push(db, args, |list, value| list.push_front(value))
}

fn push(db: &mut Db, args: &[Vec<u8>], put: fn(&mut List, Vec<u8>)) -> Reply {
    let list = db.open_list(&args[1])?;
    args[2..].iter().for_each(|value| put(list, value.clone()));
    let length = list.len();
    db.touch(&args[1]);
    Ok(int(length))
}

pub(super) fn lpop(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    pop(db, args, List::pop_front)
}

pub(super) fn rpop(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    pop(db, args, List::pop_back)
}

/// Without a count the answer is one value or nil, with one an array, or nil for a missing key.
fn pop(db: &mut Db, args: &[Vec<u8>], take: fn(&mut List) -> Option<Vec<u8>>) -> Reply {
    let positive = || Refusal::new("ERR value is out of range, must be positive");
    let count = match args.get(2) {
        None => None,
        Some(arg) => Some(parse_int(arg).ok().and_then(|count| usize::try_from(count).ok()).ok_or_else(positive)?),
    };
    let Some(list) = db.find_list(&args[1])? else { return Ok(Value::Nil) };
    let taken: Vec<Vec<u8>> = std::iter::from_fn(|| take(list)).take(count.unwrap_or(1)).collect();
    if !taken.is_empty() {
        db.touch(&args[1]);
        db.sweep(&args[1]);
    }
    let mut taken = taken.into_iter().map(bulk);
    Ok(match count {
        None => taken.next().unwrap_or(Value::Nil),
        Some(_) => Value::Array(taken.collect()),
    })
}

pub(super) fn lrange(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (start, stop) = (parse_int(&args[2])?, parse_int(&args[3])?);
    let Some(list) = db.find_list(&args[1])? else { return Ok(Value::Array(Vec::new())) };
    let range = index_range(start, stop, list.len());
    let values = range.map_or_else(Vec::new, |range| list.range(range).map(|value| bulk(value.clone())).collect());
    Ok(Value::Array(values))
}

pub(super) fn llen(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_list(&args[1])?.map_or(0, |list| list.len())))
}

/// The position that an index means, negative counted from the end.
fn place(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let at = if index < 0 { index + length } else { index };
    usize::try_from(at).ok().filter(|_| at < length)
}

pub(super) fn lindex(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let Some(list) = db.find_list(&args[1])? else { return Ok(Value::Nil) };
    let index = parse_int(&args[2])?;
    Ok(bulk_or_nil(place(index, list.len()).and_then(|at| list.get(at))))
}

pub(super) fn lset(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let Some(list) = db.find_list(&args[1])? else { return Err(Refusal::new("ERR no such key")) };
    let index = parse_int(&args[2])?;
    let at = place(index, list.len()).ok_or_else(|| Refusal::new("ERR index out of range"))?;
    list[at].clone_from(&args[3]);
    db.touch(&args[1]);
    Ok(Value::Okay)
}

pub(super) fn ltrim(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (start, stop) = (parse_int(&args[2])?, parse_int(&args[3])?);
    let Some(list) = db.find_list(&args[1])? else { return Ok(Value::Okay) };
    let kept = index_range(start, stop, list.len());
    *list = kept.map_or_else(List::new, |range| list.range(range).cloned().collect());
    db.touch(&args[1]);
    db.sweep(&args[1]);
    Ok(Value::Okay)
}
