//! Streams without groups: adding, trimming, deleting and looking up entries.

use super::db::Db;
use super::reply::{Refusal, Reply, int, parse_int, word};
use super::stream::{Id, Trim, entry_value};
use redis::Value;

/// The options in front of an entry's id, and where the id is.
struct AddOptions {
    make: bool,
    trim: Option<Trim>,
    id_at: usize,
}

fn add_options(args: &[Vec<u8>]) -> Result<AddOptions, Refusal> {
    let mut options = AddOptions { make: true, trim: None, id_at: 2 };
    while let Some(option) = args.get(options.id_at) {
        match word(option).as_str() {
            "NOMKSTREAM" => {
                options.make = false;
                options.id_at += 1;
            }
            "MAXLEN" | "MINID" if options.trim.is_none() => {
                let (trim, used) = trim_options(&args[options.id_at..])?;
                options.trim = Some(trim);
                options.id_at += used;
            }
            _ => break,
        }
    }
    Ok(options)
}

/// `MAXLEN|MINID [=|~] threshold [LIMIT count]`; `~` trims exactly here, so LIMIT has no use. Answers how many arguments
/// that took.
fn trim_options(args: &[Vec<u8>]) -> Result<(Trim, usize), Refusal> {
    let strategy = word(&args[0]);
    let about = args.get(1).is_some_and(|arg| arg == b"~");
    let mut used = if about || args.get(1).is_some_and(|arg| arg == b"=") { 2 } else { 1 };
    let threshold = args.get(used).ok_or_else(Refusal::syntax)?;
    let trim = match strategy.as_str() {
        "MAXLEN" => {
            let length = usize::try_from(parse_int(threshold)?);
            Trim::MaxLen(length.map_err(|_| Refusal::new("ERR The MAXLEN argument must be >= 0."))?)
        }
        "MINID" => Trim::MinId(Id::parse(threshold, 0)?),
        _ => return Err(Refusal::syntax()),
    };
    used += 1;
    if args.get(used).is_some_and(|arg| word(arg) == "LIMIT") {
        parse_int(args.get(used + 1).ok_or_else(Refusal::syntax)?)?;
        if !about {
            return Err(Refusal::new("ERR syntax error, LIMIT cannot be used without the special ~ option"));
        }
        used += 2;
    }
    Ok((trim, used))
}

pub(super) fn xadd(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let options = add_options(args)?;
    let Some(wanted) = args.get(options.id_at) else { return Err(wrong_count("xadd")) };
    let fields = &args[options.id_at + 1..];
    let too_small = || Refusal::new("ERR The ID specified in XADD is equal or smaller than the target stream top item");
    let explicit = match wanted.as_slice() {
        b"*" => None,
        text if text.ends_with(b"-*") => Some((Id::parse(&text[..text.len() - 2], 0)?, true)),
        text => Some((Id::parse(text, 0)?, false)),
    };
    if fields.is_empty() || !fields.len().is_multiple_of(2) {
        return Err(wrong_count("xadd"));
    }
    if explicit == Some((Id::ZERO, false)) {
        return Err(Refusal::new("ERR The ID specified in XADD must be greater than 0-0"));
    }
    let now = Id { ms: u64::try_from(db.now_ms()).unwrap_or(0), seq: 0 };
    let last = match db.find_stream(&args[1])? {
        None if !options.make => return Ok(Value::Nil),
        found => found.map_or(Id::ZERO, |stream| stream.last),
    };
    let after = last.next().ok_or_else(too_small)?;
    let id = match explicit {
        None => now.max(after),
        Some((id, true)) if id.ms == last.ms => after,
        Some((id, _)) => id,
    };
    if id <= last || explicit.is_some_and(|(wanted, _)| wanted.ms != id.ms) {
        return Err(too_small());
    }
    let stream = db.open_stream(&args[1])?;
    stream.entries.insert(id, fields.to_vec());
    stream.last = id;
    stream.added += 1;
    if let Some(trim) = options.trim {
        stream.trim(trim);
    }
    db.touch(&args[1]);
    Ok(id.value())
}

fn wrong_count(command: &str) -> Refusal {
    Refusal::new(format!("ERR wrong number of arguments for '{command}' command"))
}

pub(super) fn xtrim(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (trim, used) = trim_options(&args[2..])?;
    if args.len() > 2 + used {
        return Err(Refusal::syntax());
    }
    let Some(stream) = db.find_stream(&args[1])? else { return Ok(Value::Int(0)) };
    let gone = stream.trim(trim);
    if gone > 0 {
        db.touch(&args[1]);
    }
    Ok(int(gone))
}

pub(super) fn xdel(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let ids = args[2..].iter().map(|id| Id::parse(id, 0)).collect::<Result<Vec<_>, _>>();
    let Some(stream) = db.find_stream(&args[1])? else { return Ok(Value::Int(0)) };
    let mut gone = 0;
    for id in ids? {
        if stream.entries.remove(&id).is_some() {
            gone += 1;
            stream.max_deleted = stream.max_deleted.max(id);
        }
    }
    if gone > 0 {
        db.touch(&args[1]);
    }
    Ok(int(gone))
}

pub(super) fn xlen(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_stream(&args[1])?.map_or(0, |stream| stream.entries.len())))
}

pub(super) fn xrange(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    range(db, args, (&args[2], &args[3]), false)
}

pub(super) fn xrevrange(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    range(db, args, (&args[3], &args[2]), true)
}

fn range(db: &mut Db, args: &[Vec<u8>], (low, high): (&[u8], &[u8]), reversed: bool) -> Reply {
    let (low, high) = (low_edge(low)?, high_edge(high)?);
    let count = match &args[4..] {
        [] => None,
        [option, count] if word(option) == "COUNT" => Some(parse_int(count)?.max(0)),
        _ => return Err(Refusal::syntax()),
    };
    let empty = || Value::Array(Vec::new());
    let Some(stream) = db.find_stream(&args[1])? else { return Ok(empty()) };
    if count == Some(0) {
        return Ok(Value::Nil);
    }
    if low > high {
        return Ok(empty());
    }
    let most = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let entries = stream.entries.range(low..=high).map(|(id, fields)| entry_value(*id, fields));
    Ok(Value::Array(if reversed { entries.rev().take(most).collect() } else { entries.take(most).collect() }))
}

/// The lower end of a range: `-`, an id, or `(` and an id for the one after it.
pub(super) fn low_edge(arg: &[u8]) -> Result<Id, Refusal> {
    match arg {
        b"-" => Ok(Id::ZERO),
        b"+" => Ok(Id::MAX),
        [b'(', id @ ..] => {
            Id::parse(id, 0)?.next().ok_or_else(|| Refusal::new("ERR invalid start ID for the interval"))
        }
        id => Id::parse(id, 0),
    }
}

/// The upper end of a range: `+`, an id, or `(` and an id for the one before it.
pub(super) fn high_edge(arg: &[u8]) -> Result<Id, Refusal> {
    match arg {
        b"-" => Ok(Id::ZERO),
        b"+" => Ok(Id::MAX),
        [b'(', id @ ..] => {
            let id = Id::parse(id, u64::MAX)?;
            id.previous().ok_or_else(|| Refusal::new("ERR invalid end ID for the interval"))
        }
        id => Id::parse(id, u64::MAX),
    }
}
