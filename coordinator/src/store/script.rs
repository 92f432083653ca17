//! The scripts that run in Redis: what no transaction of one owner can do, because others write the same state.
//!
//! Each is a `.lua` file whose header says what it does, with a twin in Rust for the memory twin.

use redis::{Cmd, Value};

use super::{memory::Db, reply};
use crate::mutants::mutant;

/// Source of [`delete_consumer`].
pub const DELETE_CONSUMER: &str = include_str!("delete_consumer.lua");

/// Deletes `consumer` of `group` at the job stream `key` if nothing is pending at it. Replies 1 when it is gone, 0 when
/// something is pending.
pub fn delete_consumer(key: &str, group: &str, consumer: &str) -> Cmd {
    let mut eval = redis::cmd("EVAL");
    eval.arg(DELETE_CONSUMER).arg(1).arg(key).arg(group).arg(consumer);
    eval
}

/// What [`DELETE_CONSUMER`] does.
pub(super) fn delete_consumer_twin(db: &mut Db, keys: &[Vec<u8>], argv: &[Vec<u8>]) -> Value {
    let pending = db.call(&[b"XPENDING", &keys[0], &argv[0], b"-", b"+", b"1", &argv[1]]);
    if reply::error(&pending).is_some() {
        return pending;
    }
    let checks = !mutant("consumer_deleted_with_its_jobs");
    if checks && reply::array(&pending).is_some_and(|entries| !entries.is_empty()) {
        return Value::Int(0);
    }
    let deleted = db.call(&[b"XGROUP", b"DELCONSUMER", &keys[0], &argv[0], &argv[1]]);
    if reply::error(&deleted).is_some() { deleted } else { Value::Int(1) }
}

/// Source of the script that [`apply_policies`](super::policies::apply_policies) calls.
pub const APPLY_POLICIES: &str = include_str!("apply_policies.lua");

/// What [`APPLY_POLICIES`] does.
pub(super) fn apply_policies_twin(db: &mut Db, keys: &[Vec<u8>], argv: &[Vec<u8>]) -> Value {
    let found = reply::number(&db.call(&[b"HGET", &keys[0], b"version"])).unwrap_or(0);
    if argv[0] != found.to_string().as_bytes() {
        return Value::Int(-found - 1);
    }
    let version = (found + 1).to_string();
    for key in [&keys[0], &keys[2]] {
        let fields: [&[u8]; 12] = [
            b"HSET",
            key,
            b"version",
            version.as_bytes(),
            b"doc",
            &argv[1],
            b"at",
            &argv[2],
            b"actor",
            &argv[3],
            b"reason",
            &argv[4],
        ];
        db.call(&fields);
    }
    db.call(&[b"UNLINK", &keys[3]]);
    db.call(&[b"XADD", &keys[1], b"*", b"m", &argv[5]]);
    Value::Int(found + 1)
}
