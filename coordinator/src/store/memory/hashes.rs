//! Hashes. Fields are answered in their byte order.

use super::db::Db;
use super::reply::{Refusal, Reply, bulk, bulk_or_nil, int, parse_int, yes};
use redis::Value;

pub(super) fn hset(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    if !args.len().is_multiple_of(2) {
        return Err(Refusal::new("ERR wrong number of arguments for 'hset' command"));
    }
    let hash = db.open_hash(&args[1])?;
    let mut added = 0;
    for pair in args[2..].chunks_exact(2) {
        added += usize::from(hash.insert(pair[0].clone(), pair[1].clone()).is_none());
    }
    db.touch(&args[1]);
    Ok(int(added))
}

pub(super) fn hsetnx(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let hash = db.open_hash(&args[1])?;
    let absent = !hash.contains_key(&args[2]);
    if absent {
        hash.insert(args[2].clone(), args[3].clone());
        db.touch(&args[1]);
    }
    Ok(yes(absent))
}

pub(super) fn hget(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(bulk_or_nil(db.find_hash(&args[1])?.and_then(|hash| hash.get(&args[2]))))
}

pub(super) fn hmget(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let hash = db.find_hash(&args[1])?;
    let values = args[2..].iter().map(|field| bulk_or_nil(hash.as_ref().and_then(|hash| hash.get(field))));
    Ok(Value::Array(values.collect()))
}

pub(super) fn hgetall(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let mut flat = Vec::new();
    for (field, value) in db.find_hash(&args[1])?.into_iter().flatten() {
        flat.extend([bulk(field.clone()), bulk(value.clone())]);
    }
    Ok(Value::Array(flat))
}

pub(super) fn hdel(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let Some(hash) = db.find_hash(&args[1])? else { return Ok(Value::Int(0)) };
    let removed = args[2..].iter().filter(|field| hash.remove(*field).is_some()).count();
    if removed > 0 {
        db.touch(&args[1]);
        db.sweep(&args[1]);
    }
    Ok(int(removed))
}

pub(super) fn hlen(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_hash(&args[1])?.map_or(0, |hash| hash.len())))
}

pub(super) fn hexists(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(yes(db.find_hash(&args[1])?.is_some_and(|hash| hash.contains_key(&args[2]))))
}

pub(super) fn hincrby(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let by = parse_int(&args[3])?;
    let old = match db.find_hash(&args[1])?.and_then(|hash| hash.get(&args[2])) {
        None => 0,
        Some(text) => parse_int(text).map_err(|_| Refusal::new("ERR hash value is not an integer"))?,
    };
    let new = old.checked_add(by).ok_or_else(|| Refusal::new("ERR increment or decrement would overflow"))?;
    db.open_hash(&args[1])?.insert(args[2].clone(), new.to_string().into_bytes());
    db.touch(&args[1]);
    Ok(Value::Int(new))
}
