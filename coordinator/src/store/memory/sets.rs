//! Plain sets. Members are answered in their byte order.

use super::db::Db;
use super::reply::{Reply, bulk, int, yes};
use redis::Value;

pub(super) fn sadd(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let set = db.open_set(&args[1])?;
    let added = args[2..].iter().filter(|member| set.insert((*member).clone())).count();
    if added > 0 {
        db.touch(&args[1]);
    }
    Ok(int(added))
}

pub(super) fn srem(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let Some(set) = db.find_set(&args[1])? else { return Ok(Value::Int(0)) };
    let removed = args[2..].iter().filter(|member| set.remove(*member)).count();
    if removed > 0 {
        db.touch(&args[1]);
        db.sweep(&args[1]);
    }
    Ok(int(removed))
}

pub(super) fn smembers(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let members = db.find_set(&args[1])?.map_or_else(Vec::new, |set| set.iter().cloned().map(bulk).collect());
    Ok(Value::Array(members))
}

pub(super) fn sismember(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(yes(db.find_set(&args[1])?.is_some_and(|set| set.contains(&args[2]))))
}

pub(super) fn scard(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_set(&args[1])?.map_or(0, |set| set.len())))
}
