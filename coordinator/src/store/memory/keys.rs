//! Commands about keys of any type, and the server's time.

use super::db::{Db, Kind};
use super::pattern;
use super::reply::{Refusal, Reply, bulk, int, parse_int, word, yes};
use redis::Value;

pub(super) fn del(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let mut removed = 0;
    for key in &args[1..] {
        db.purge(key);
        removed += usize::from(db.remove(key));
    }
    Ok(int(removed))
}

pub(super) fn exists(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(args[1..].iter().filter(|key| db.item(key).is_some()).count()))
}

/// COPY within the one database, with REPLACE; the lifetime goes along.
pub(super) fn copy(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let replace = match &args[3..] {
        [] => false,
        [option] if word(option) == "REPLACE" => true,
        _ => return Err(Refusal::syntax()),
    };
    if args[1] == args[2] {
        return Err(Refusal::new("ERR source and destination objects are the same"));
    }
    let Some(item) = db.item(&args[1]).map(|item| item.clone()) else { return Ok(yes(false)) };
    if !replace && db.item(&args[2]).is_some() {
        return Ok(yes(false));
    }
    db.remove(&args[2]);
    db.keys.insert(args[2].clone(), item);
    db.touch(&args[2]);
    Ok(yes(true))
}

pub(super) fn kind(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let name = match db.item(&args[1]).map(|item| &item.kind) {
        None => "none",
        Some(Kind::Text(_)) => "string",
        Some(Kind::Hash(_)) => "hash",
        Some(Kind::Set(_)) => "set",
        Some(Kind::ZSet(_)) => "zset",
        Some(Kind::List(_)) => "list",
        Some(Kind::Stream(_)) => "stream",
    };
    Ok(Value::SimpleString(name.into()))
}

pub(super) fn expire(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    expire_in(db, args, 1000)
}

pub(super) fn pexpire(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    expire_in(db, args, 1)
}

/// EXPIRE and PEXPIRE with NX, XX, GT and LT; a time in the past removes the key.
fn expire_in(db: &mut Db, args: &[Vec<u8>], unit_ms: i64) -> Reply {
    let invalid = || Refusal::new(format!("ERR invalid expire time in '{}' command", word(&args[0]).to_lowercase()));
    let amount = parse_int(&args[2])?.checked_mul(unit_ms).ok_or_else(invalid)?;
    let due_ms = db.now_ms().checked_add(amount).ok_or_else(invalid)?;
    let now_ms = db.now_ms();
    let options: Vec<String> = args[3..].iter().map(|option| word(option)).collect();
    if let Some(unknown) = options.iter().find(|option| !["NX", "XX", "GT", "LT"].contains(&option.as_str())) {
        return Err(Refusal::new(format!("ERR Unsupported option {unknown}")));
    }
    let has = |option: &str| options.iter().any(|given| given == option);
    if (has("NX") && options.len() > 1) || (has("GT") && has("LT")) {
        return Err(Refusal::new("ERR NX and XX, GT or LT options at the same time are not compatible"));
    }
    let Some(item) = db.item(&args[1]) else { return Ok(Value::Int(0)) };
    let refused = match item.expires_ms {
        None => has("XX") || has("GT"),
        Some(old) => has("NX") || (has("GT") && due_ms <= old) || (has("LT") && due_ms >= old),
    };
    if refused {
        return Ok(Value::Int(0));
    }
    item.expires_ms = Some(due_ms);
    db.touch(&args[1]);
    if due_ms <= now_ms {
        db.remove(&args[1]);
    }
    Ok(Value::Int(1))
}

pub(super) fn pttl(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let now_ms = db.now_ms();
    Ok(Value::Int(match db.item(&args[1]).map(|item| item.expires_ms) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => at - now_ms,
    }))
}

pub(super) fn persist(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let had = db.item(&args[1]).is_some_and(|item| item.expires_ms.take().is_some());
    if had {
        db.touch(&args[1]);
    }
    Ok(yes(had))
}

pub(super) fn keys(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let names = db.names().into_iter().filter(|name| pattern::matches(&args[1], name));
    Ok(Value::Array(names.map(bulk).collect()))
}

/// SCAN answers everything at once with the cursor 0.
pub(super) fn scan(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    if args[1].iter().any(|byte| !byte.is_ascii_digit()) {
        return Err(Refusal::new("ERR invalid cursor"));
    }
    let mut wanted = b"*".to_vec();
    let mut rest = args[2..].iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(Refusal::syntax)?;
        match word(option).as_str() {
            "MATCH" => wanted.clone_from(value),
            "COUNT" if parse_int(value)? >= 1 => {}
            _ => return Err(Refusal::syntax()),
        }
    }
    let names = db.names().into_iter().filter(|name| pattern::matches(&wanted, name));
    Ok(Value::Array(vec![bulk("0"), Value::Array(names.map(bulk).collect())]))
}

pub(super) fn flushall(db: &mut Db, _args: &[Vec<u8>]) -> Reply {
    for name in db.names() {
        db.remove(&name);
    }
    Ok(Value::Okay)
}

pub(super) fn time(db: &mut Db, _args: &[Vec<u8>]) -> Reply {
    let (seconds, micros) = (db.now_us.div_euclid(1_000_000), db.now_us.rem_euclid(1_000_000));
    Ok(Value::Array(vec![bulk(seconds.to_string()), bulk(micros.to_string())]))
}

pub(super) fn shardnumsub(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let counts = args[2..].iter().flat_map(|channel| [bulk(channel.clone()), int(db.channels.count(channel))]);
    Ok(Value::Array(counts.collect()))
}

pub(super) fn publish(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.channels.publish(&args[1], &args[2])))
}
