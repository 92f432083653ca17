//! Strings and counters.

use super::db::{Db, Item, Kind};
use super::reply::{Refusal, Reply, bulk, bulk_or_nil, index_range, int, parse_int, word};
use redis::Value;

pub(super) fn get(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(bulk_or_nil(db.find_text(&args[1])?.as_deref()))
}

pub(super) fn mget(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let values = args[1..].iter().map(|key| bulk_or_nil(db.find_text(key).ok().flatten().as_deref()));
    Ok(Value::Array(values.collect()))
}

/// SET with NX, XX, EX, PX and KEEPTTL.
pub(super) fn set(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (mut only_new, mut only_old, mut keep, mut expires_ms) = (false, false, false, None);
    let mut rest = args[3..].iter();
    while let Some(option) = rest.next() {
        match word(option).as_str() {
            "NX" if !only_old => only_new = true,
            "XX" if !only_new => only_old = true,
            "KEEPTTL" if expires_ms.is_none() => keep = true,
            unit @ ("EX" | "PX") if !keep && expires_ms.is_none() => {
                let amount = parse_int(rest.next().ok_or_else(Refusal::syntax)?)?;
                let ms = amount.checked_mul(if unit == "EX" { 1000 } else { 1 }).filter(|ms| *ms > 0);
                let ms = ms.ok_or_else(|| Refusal::new("ERR invalid expire time in 'set' command"))?;
                expires_ms = Some(db.now_ms() + ms);
            }
            _ => return Err(Refusal::syntax()),
        }
    }
    let old = db.item(&args[1]).map(|item| item.expires_ms);
    if (only_new && old.is_some()) || (only_old && old.is_none()) {
        return Ok(Value::Nil);
    }
    if keep {
        expires_ms = old.flatten();
    }
    db.keys.insert(args[1].clone(), Item { kind: Kind::Text(args[2].clone()), expires_ms });
    db.touch(&args[1]);
    Ok(Value::Okay)
}

pub(super) fn append(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let text = db.open_text(&args[1])?;
    text.extend_from_slice(&args[2]);
    let length = text.len();
    db.touch(&args[1]);
    Ok(int(length))
}

pub(super) fn strlen(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_text(&args[1])?.map_or(0, |text| text.len())))
}

pub(super) fn getrange(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (start, stop) = (parse_int(&args[2])?, parse_int(&args[3])?);
    let Some(text) = db.find_text(&args[1])? else { return Ok(bulk("")) };
    if start < 0 && stop < 0 && start > stop {
        return Ok(bulk(""));
    }
    // A stop before the beginning means the first byte, unlike in lists.
    let length = i64::try_from(text.len()).expect("a length fits 63 bits");
    let stop = if stop < 0 { (stop + length).max(0) } else { stop };
    Ok(index_range(start, stop, text.len()).map_or_else(|| bulk(""), |range| bulk(&text[range])))
}

pub(super) fn incr(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    add(db, &args[1], 1)
}

pub(super) fn incrby(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let by = parse_int(&args[2])?;
    add(db, &args[1], by)
}

fn add(db: &mut Db, key: &[u8], by: i64) -> Reply {
    let old = db.find_text(key)?.map_or(Ok(0), |text| parse_int(text))?;
    let new = old.checked_add(by).ok_or_else(|| Refusal::new("ERR increment or decrement would overflow"))?;
    *db.open_text(key)? = new.to_string().into_bytes();
    db.touch(key);
    Ok(Value::Int(new))
}
