//! Sorted set commands: writing, single members, counts and ranges.

use super::db::Db;
use super::reply::{Refusal, Reply, bulk, index_range, int, parse_int, parse_score, score_text, word};
use super::zset::ZSet;
use redis::Value;

/// ZADD with NX, XX, GT, LT and CH; INCR is not there.
pub(super) fn zadd(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let (mut only_new, mut only_old, mut greater, mut less, mut changed) = (false, false, false, false, false);
    let mut at = 2;
    while let Some(option) = args.get(at) {
        match word(option).as_str() {
            "NX" => only_new = true,
            "XX" => only_old = true,
            "GT" => greater = true,
            "LT" => less = true,
            "CH" => changed = true,
            _ => break,
        }
        at += 1;
    }
    let pairs = &args[at..];
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(Refusal::syntax());
    }
    if only_new && only_old {
        return Err(Refusal::new("ERR XX and NX options at the same time are not compatible"));
    }
    if (greater && less) || (only_new && (greater || less)) {
        return Err(Refusal::new("ERR GT, LT, and/or NX options at the same time are not compatible"));
    }
    let scores = pairs.chunks_exact(2).map(|pair| parse_score(&pair[0])).collect::<Result<Vec<_>, _>>()?;
    if only_old && db.find_zset(&args[1])?.is_none() {
        return Ok(Value::Int(0));
    }
    let moves = |old: f64, new: f64| match (greater, less) {
        (true, _) => new > old,
        (_, true) => new < old,
        (false, false) => new != old,
    };
    let zset = db.open_zset(&args[1])?;
    let (mut added, mut updated) = (0, 0);
    for (pair, score) in pairs.chunks_exact(2).zip(scores) {
        match zset.score(&pair[1]) {
            None if !only_old => {
                zset.insert(&pair[1], score);
                added += 1;
            }
            Some(old) if !only_new && moves(old, score) => {
                zset.insert(&pair[1], score);
                updated += 1;
            }
            None | Some(_) => {}
        }
    }
    if added + updated > 0 {
        db.touch(&args[1]);
    }
    Ok(int(if changed { added + updated } else { added }))
}

pub(super) fn zincrby(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let by = parse_score(&args[2])?;
    let zset = db.open_zset(&args[1])?;
    let old = zset.score(&args[3]);
    let score = old.unwrap_or(0.0) + by;
    if score.is_nan() {
        return Err(Refusal::new("ERR resulting score is not a number (NaN)"));
    }
    zset.insert(&args[3], score);
    // One more than infinity is the same: watchers notice nothing.
    if old != Some(score) {
        db.touch(&args[1]);
    }
    Ok(bulk(score_text(score)))
}

pub(super) fn zrem(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    remove(db, &args[1], &args[2..])
}

fn remove(db: &mut Db, key: &[u8], members: &[Vec<u8>]) -> Reply {
    let Some(zset) = db.find_zset(key)? else { return Ok(Value::Int(0)) };
    let removed = members.iter().filter(|member| zset.remove(member)).count();
    if removed > 0 {
        db.touch(key);
        db.sweep(key);
    }
    Ok(int(removed))
}

pub(super) fn zscore(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let score = db.find_zset(&args[1])?.and_then(|zset| zset.score(&args[2]));
    Ok(score.map_or(Value::Nil, |score| bulk(score_text(score))))
}

pub(super) fn zcard(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    Ok(int(db.find_zset(&args[1])?.map_or(0, |zset| zset.len())))
}

pub(super) fn zcount(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let span = ScoreSpan::parse(&args[2], &args[3])?;
    Ok(int(db.find_zset(&args[1])?.map_or(0, |zset| span.of(zset).len())))
}

pub(super) fn zremrangebyscore(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let span = ScoreSpan::parse(&args[2], &args[3])?;
    let members = match db.find_zset(&args[1])? {
        None => return Ok(Value::Int(0)),
        Some(zset) => span.of(zset).into_iter().map(|(member, _)| member).collect::<Vec<_>>(),
    };
    remove(db, &args[1], &members)
}

pub(super) fn zrangebyscore(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let options = RangeOptions::parse(&args[4..])?.only_limit_and_scores()?;
    let span = ScoreSpan::parse(&args[2], &args[3])?;
    let found = db.find_zset(&args[1])?.map_or_else(Vec::new, |zset| span.of(zset));
    Ok(options.answer(found))
}

pub(super) fn zrevrangebyscore(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let options = RangeOptions::parse(&args[4..])?.only_limit_and_scores()?;
    let span = ScoreSpan::parse(&args[3], &args[2])?;
    let mut found = db.find_zset(&args[1])?.map_or_else(Vec::new, |zset| span.of(zset));
    found.reverse();
    Ok(options.answer(found))
}

/// ZRANGE by index, BYSCORE or BYLEX, each with REV, LIMIT and WITHSCORES.
pub(super) fn zrange(db: &mut Db, args: &[Vec<u8>]) -> Reply {
    let mut options = RangeOptions::parse(&args[4..])?;
    if options.by == By::Index && options.limit.take().is_some_and(|(_, count)| count != -1) {
        return Err(Refusal::new(
            "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
        ));
    }
    if options.by == By::Lex && options.with_scores {
        return Err(Refusal::new("ERR syntax error, WITHSCORES not supported in combination with BYLEX"));
    }
    let (low, high) = if options.reversed { (&args[3], &args[2]) } else { (&args[2], &args[3]) };
    let mut found = match options.by {
        By::Score => {
            let span = ScoreSpan::parse(low, high)?;
            db.find_zset(&args[1])?.map_or_else(Vec::new, |zset| span.of(zset))
        }
        By::Lex => {
            let (low, high) = (LexEdge::parse(low)?, LexEdge::parse(high)?);
            let zset = db.find_zset(&args[1])?;
            zset.map_or_else(Vec::new, |zset| {
                owned(zset.iter().filter(|(m, _)| low.admits_above(m) && high.admits_below(m)))
            })
        }
        By::Index => {
            let (start, stop) = (parse_int(&args[2])?, parse_int(&args[3])?);
            let mut all = db.find_zset(&args[1])?.map_or_else(Vec::new, |zset| owned(zset.iter()));
            if options.reversed {
                all.reverse();
            }
            let range = index_range(start, stop, all.len());
            return Ok(options.answer(range.map_or_else(Vec::new, |range| all[range].to_vec())));
        }
    };
    if options.reversed {
        found.reverse();
    }
    Ok(options.answer(found))
}

/// Members with their scores, in the order of the answer.
type Found = Vec<(Vec<u8>, f64)>;

fn owned<'a>(members: impl Iterator<Item = (&'a Vec<u8>, f64)>) -> Found {
    members.map(|(member, score)| (member.clone(), score)).collect()
}

/// What the two bounds of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Index,
    Score,
    Lex,
}

/// The options behind a range.
#[derive(Debug)]
struct RangeOptions {
    by: By,
    reversed: bool,
    with_scores: bool,
    /// How many to skip and how many to answer; negative means nothing, and all.
    limit: Option<(i64, i64)>,
}

impl RangeOptions {
    fn parse(args: &[Vec<u8>]) -> Result<Self, Refusal> {
        let mut options = Self { by: By::Index, reversed: false, with_scores: false, limit: None };
        let mut rest = args.iter();
        while let Some(option) = rest.next() {
            match word(option).as_str() {
                "BYSCORE" => options.by = By::Score,
                "BYLEX" => options.by = By::Lex,
                "REV" => options.reversed = true,
                "WITHSCORES" => options.with_scores = true,
                "LIMIT" => {
                    let (Some(offset), Some(count)) = (rest.next(), rest.next()) else { return Err(Refusal::syntax()) };
                    options.limit = Some((parse_int(offset)?, parse_int(count)?));
                }
                _ => return Err(Refusal::syntax()),
            }
        }
        Ok(options)
    }

    /// The older commands carry bounds and direction in their names.
    fn only_limit_and_scores(self) -> Result<Self, Refusal> {
        if self.by == By::Index && !self.reversed { Ok(self) } else { Err(Refusal::syntax()) }
    }

    fn answer(&self, found: Found) -> Value {
        let (skip, take) = match self.limit {
            None => (0, usize::MAX),
            Some((offset, _)) if offset < 0 => (0, 0),
            Some((offset, count)) => {
                (usize::try_from(offset).unwrap_or(usize::MAX), usize::try_from(count).unwrap_or(usize::MAX))
            }
        };
        let mut flat = Vec::new();
        for (member, score) in found.into_iter().skip(skip).take(take) {
            flat.push(bulk(member));
            if self.with_scores {
                flat.push(bulk(score_text(score)));
            }
        }
        Value::Array(flat)
    }
}

/// Two bounds on scores, each open or closed.
#[derive(Debug)]
struct ScoreSpan {
    low: (f64, bool),
    high: (f64, bool),
}

impl ScoreSpan {
    fn parse(low: &[u8], high: &[u8]) -> Result<Self, Refusal> {
        let edge = |arg: &[u8]| {
            let (number, open) = arg.strip_prefix(b"(").map_or((arg, false), |number| (number, true));
            let score = parse_score(number).map_err(|_| Refusal::new("ERR min or max is not a float"))?;
            Ok((score, open))
        };
        Ok(Self { low: edge(low)?, high: edge(high)? })
    }

    fn of(&self, zset: &ZSet) -> Found {
        let ((low, low_open), (high, high_open)) = (self.low, self.high);
        let from = zset.iter_from(low).skip_while(|(_, score)| low_open && *score == low);
        owned(from.take_while(|(_, score)| if high_open { *score < high } else { *score <= high }))
    }
}

/// One bound on members by their bytes.
#[derive(Debug)]
enum LexEdge {
    Lowest,
    Highest,
    Open(Vec<u8>),
    Closed(Vec<u8>),
}

impl LexEdge {
    fn parse(arg: &[u8]) -> Result<Self, Refusal> {
        match arg {
            b"-" => Ok(Self::Lowest),
            b"+" => Ok(Self::Highest),
            [b'(', bytes @ ..] => Ok(Self::Open(bytes.to_vec())),
            [b'[', bytes @ ..] => Ok(Self::Closed(bytes.to_vec())),
            _ => Err(Refusal::new("ERR min or max not valid string range item")),
        }
    }

    fn admits_above(&self, member: &[u8]) -> bool {
        match self {
            Self::Lowest => true,
            Self::Highest => false,
            Self::Open(edge) => member > edge.as_slice(),
            Self::Closed(edge) => member >= edge.as_slice(),
        }
    }

    fn admits_below(&self, member: &[u8]) -> bool {
        match self {
            Self::Lowest => false,
            Self::Highest => true,
            Self::Open(edge) => member < edge.as_slice(),
            Self::Closed(edge) => member <= edge.as_slice(),
        }
    }
}
