//! The table of data commands: names, numbers of arguments, and which of them a full server refuses.

use super::db::{Db, Run};
use super::reply::{Refusal, Reply, word};
use super::{facts, groups, hashes, keys, lists, reads, sets, streams, strings, zsets};

/// What is known about a command.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    name: &'static str,
    /// How many arguments, the name included; negative means at least.
    arity: i32,
    /// Whether it may use more memory, so that a full server refuses it.
    pub(super) grows: bool,
    pub(super) run: Run,
}

const fn plain(name: &'static str, arity: i32, run: Run) -> Spec {
    Spec { name, arity, grows: false, run }
}

const fn grows(name: &'static str, arity: i32, run: Run) -> Spec {
    Spec { name, arity, grows: true, run }
}

/// A command of the connection, carried out by the session; listed for its arguments.
const fn session(name: &'static str, arity: i32) -> Spec {
    Spec { name, arity, grows: false, run: misplaced }
}

fn misplaced(_db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Err(Refusal::new(format!("ERR This command is not allowed from script: {}", word(&args[0]).to_lowercase())))
}

const COMMANDS: &[Spec] = &[
    session("MULTI", 1),
    session("EXEC", 1),
    session("DISCARD", 1),
    session("WATCH", -2),
    session("UNWATCH", 1),
    session("PING", -1),
    session("CLIENT ID", 2),
    session("CLIENT SETNAME", 3),
    session("CLIENT SETINFO", 4),
    session("INFO", -1),
    session("SCRIPT LOAD", 3),
    session("SCRIPT EXISTS", -3),
    session("SCRIPT FLUSH", -2),
    session("EVAL", -3),
    session("EVALSHA", -3),
    plain("TIME", 1, keys::time),
    plain("DEL", -2, keys::del),
    plain("UNLINK", -2, keys::del),
    plain("EXISTS", -2, keys::exists),
    plain("TYPE", 2, keys::kind),
    plain("EXPIRE", -3, keys::expire),
    plain("PEXPIRE", -3, keys::pexpire),
    plain("PERSIST", 2, keys::persist),
    grows("COPY", -3, keys::copy),
    plain("PTTL", 2, keys::pttl),
    plain("KEYS", 2, keys::keys),
    plain("SCAN", -2, keys::scan),
    plain("FLUSHALL", -1, keys::flushall),
    plain("PUBLISH", 3, keys::publish),
    plain("SPUBLISH", 3, keys::publish),
    plain("PUBSUB SHARDNUMSUB", -2, keys::shardnumsub),
    plain("GET", 2, strings::get),
    plain("MGET", -2, strings::mget),
    grows("SET", -3, strings::set),
    grows("APPEND", 3, strings::append),
    plain("STRLEN", 2, strings::strlen),
    plain("GETRANGE", 4, strings::getrange),
    grows("INCR", 2, strings::incr),
    grows("INCRBY", 3, strings::incrby),
    grows("HSET", -4, hashes::hset),
    grows("HSETNX", 4, hashes::hsetnx),
    plain("HGET", 3, hashes::hget),
    plain("HMGET", -3, hashes::hmget),
    plain("HGETALL", 2, hashes::hgetall),
    plain("HDEL", -3, hashes::hdel),
    plain("HLEN", 2, hashes::hlen),
    plain("HEXISTS", 3, hashes::hexists),
    grows("HINCRBY", 4, hashes::hincrby),
    grows("ZADD", -4, zsets::zadd),
    grows("ZINCRBY", 4, zsets::zincrby),
    plain("ZREM", -3, zsets::zrem),
    plain("ZSCORE", 3, zsets::zscore),
    plain("ZCARD", 2, zsets::zcard),
    plain("ZCOUNT", 4, zsets::zcount),
    plain("ZRANGE", -4, zsets::zrange),
    plain("ZRANGEBYSCORE", -4, zsets::zrangebyscore),
    plain("ZREVRANGEBYSCORE", -4, zsets::zrevrangebyscore),
    plain("ZREMRANGEBYSCORE", 4, zsets::zremrangebyscore),
    grows("SADD", -3, sets::sadd),
    plain("SREM", -3, sets::srem),
    plain("SMEMBERS", 2, sets::smembers),
    plain("SISMEMBER", 3, sets::sismember),
    plain("SCARD", 2, sets::scard),
    grows("RPUSH", -3, lists::rpush),
    grows("LPUSH", -3, lists::lpush),
    plain("LPOP", -2, lists::lpop),
    plain("RPOP", -2, lists::rpop),
    plain("LRANGE", 4, lists::lrange),
    plain("LLEN", 2, lists::llen),
    grows("LSET", 4, lists::lset),
    plain("LINDEX", 3, lists::lindex),
    plain("LTRIM", 4, lists::ltrim),
    grows("XADD", -5, streams::xadd),
    plain("XLEN", 2, streams::xlen),
    plain("XRANGE", -4, streams::xrange),
    plain("XREVRANGE", -4, streams::xrevrange),
    plain("XDEL", -3, streams::xdel),
    plain("XTRIM", -4, streams::xtrim),
    plain("XREAD", -4, reads::read),
    plain("XREADGROUP", -7, reads::read),
    grows("XGROUP CREATE", -5, groups::create),
    grows("XGROUP CREATECONSUMER", 5, groups::create_consumer),
    plain("XGROUP DELCONSUMER", 5, groups::delete_consumer),
    plain("XGROUP DESTROY", 4, groups::destroy),
    plain("XACK", -4, groups::xack),
    plain("XPENDING", -3, groups::xpending),
    plain("XCLAIM", -6, groups::xclaim),
    plain("XINFO STREAM", 3, facts::stream),
    plain("XINFO GROUPS", 3, facts::groups),
    plain("XINFO CONSUMERS", 4, facts::consumers),
];

/// Commands that are told apart by their second word.
const FAMILIES: [&str; 5] = ["CLIENT", "PUBSUB", "SCRIPT", "XGROUP", "XINFO"];

/// The command that `args` names, if the server has it and the number of arguments is right.
pub(super) fn find(args: &[Vec<u8>]) -> Result<Spec, Refusal> {
    let mut name = args.first().map_or_else(String::new, |name| word(name));
    let family = FAMILIES.contains(&name.as_str());
    if let Some(verb) = args.get(1).filter(|_| family) {
        name = format!("{name} {}", word(verb));
    }
    let wrong_count = |name: &str| {
        let name = name.to_lowercase().replace(' ', "|");
        Refusal::new(format!("ERR wrong number of arguments for '{name}' command"))
    };
    let Some(spec) = COMMANDS.iter().find(|spec| spec.name == name) else {
        return Err(match name.split_once(' ') {
            Some((family, verb)) => Refusal::new(format!("ERR unknown subcommand '{verb}'. Try {family} HELP.")),
            None if family => wrong_count(&name),
            None => unknown(args),
        });
    };
    let count = i32::try_from(args.len()).unwrap_or(i32::MAX);
    if (spec.arity > 0 && count != spec.arity) || count < -spec.arity {
        return Err(wrong_count(&name));
    }
    Ok(*spec)
}

fn unknown(args: &[Vec<u8>]) -> Refusal {
    let given = String::from_utf8_lossy(args.first().map_or(b"".as_slice(), Vec::as_slice)).into_owned();
    let rest: String = args.iter().skip(1).map(|arg| format!("'{}' ", String::from_utf8_lossy(arg))).collect();
    Refusal::new(format!("ERR unknown command '{given}', with args beginning with: {rest}"))
}
