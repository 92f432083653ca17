//! A stream as data: entries, consumer groups, and the counters that a server keeps about them.

use super::reply::Refusal;
use redis::Value;
use std::collections::BTreeMap;

/// The id of an entry: milliseconds and a sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Id {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl Id {
    pub(super) const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };
    pub(super) const ZERO: Self = Self { ms: 0, seq: 0 };

    /// `ms` or `ms-seq`; a missing sequence number is `seq`.
    pub(super) fn parse(arg: &[u8], seq: u64) -> Result<Self, Refusal> {
        let invalid = || Refusal::new("ERR Invalid stream ID specified as stream command argument");
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| plain).ok_or_else(invalid)
        };
        let text = std::str::from_utf8(arg).map_err(|_| invalid())?;
        match text.split_once('-') {
            None => Ok(Self { ms: number(text)?, seq }),
            Some((ms, seq)) => Ok(Self { ms: number(ms)?, seq: number(seq)? }),
        }
    }

    pub(super) fn next(self) -> Option<Self> {
        match self.seq.checked_add(1) {
            Some(seq) => Some(Self { ms: self.ms, seq }),
            None => self.ms.checked_add(1).map(|ms| Self { ms, seq: 0 }),
        }
    }

    pub(super) fn previous(self) -> Option<Self> {
        match self.seq.checked_sub(1) {
            Some(seq) => Some(Self { ms: self.ms, seq }),
            None => self.ms.checked_sub(1).map(|ms| Self { ms, seq: u64::MAX }),
        }
    }

    pub(super) fn value(self) -> Value {
        Value::BulkString(self.to_string().into_bytes())
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// One stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    /// Fields and values in turn, by id.
    pub(super) entries: BTreeMap<Id, Vec<Vec<u8>>>,
    pub(super) last: Id,
    /// The highest id that XDEL removed; trimming does not count.
    pub(super) max_deleted: Id,
    pub(super) added: u64,
    pub(super) groups: BTreeMap<Vec<u8>, Group>,
}

/// One consumer group.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// The last id that was delivered.
    pub(super) last: Id,
    /// How many entries were ever delivered, where that is known.
    pub(super) read: Option<u64>,
    pub(super) pending: BTreeMap<Id, Pending>,
    pub(super) consumers: BTreeMap<Vec<u8>, Consumer>,
}

/// A delivered entry that nobody acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) consumer: Vec<u8>,
    pub(super) delivered_ms: i64,
    pub(super) deliveries: i64,
}

/// A consumer of a group.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    /// When it last asked.
    pub(super) seen_ms: i64,
    /// When it last got something.
    pub(super) active_ms: Option<i64>,
}

/// How a stream is shortened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trim {
    MaxLen(usize),
    MinId(Id),
}

impl Stream {
    pub(super) fn first(&self) -> Id {
        self.entries.keys().next().copied().unwrap_or(Id::ZERO)
    }

    /// Shortens the stream exactly and answers how many entries went.
    pub(super) fn trim(&mut self, trim: Trim) -> usize {
        let before = self.entries.len();
        match trim {
            Trim::MaxLen(length) => {
                while self.entries.len() > length {
                    self.entries.pop_first();
                }
            }
            Trim::MinId(id) => {
                while self.entries.first_key_value().is_some_and(|(first, _)| *first < id) {
                    self.entries.pop_first();
                }
            }
        }
        before - self.entries.len()
    }

    /// Whether an entry was deleted out of the middle at or after `from`.
    fn has_hole_after(&self, from: Id) -> bool {
        !self.entries.is_empty()
            && self.max_deleted != Id::ZERO
            && self.first() <= self.max_deleted
            && from <= self.max_deleted
    }

    /// How many entries were added up to `id`, where the counters can tell.
    fn count_up_to(&self, id: Id) -> Option<u64> {
        let length = self.entries.len() as u64;
        if self.added == 0 {
            return Some(0);
        }
        if length == 0 && id <= self.last {
            return Some(self.added);
        }
        if id != Id::ZERO && id < self.max_deleted {
            return None;
        }
        if id >= self.last {
            return (id == self.last).then_some(self.added);
        }
        let unbroken = self.max_deleted == Id::ZERO || self.max_deleted < self.first();
        match id.cmp(&self.first()) {
            std::cmp::Ordering::Less if unbroken => Some(self.added - length),
            std::cmp::Ordering::Equal if unbroken => Some(self.added - length + 1),
            _ => None,
        }
    }

    /// How many entries the group has yet to read; `None` where the server cannot tell either.
    pub(super) fn lag(&self, group: &Group) -> Option<u64> {
        if self.added == 0 {
            return Some(0);
        }
        if self.entries.is_empty() {
            return (group.last <= self.last).then_some(0);
        }
        if group.last < self.first() && self.max_deleted < self.first() {
            return Some(self.entries.len() as u64);
        }
        match group.read {
            Some(read) if !self.has_hole_after(group.last) => Some(self.added - read),
            _ => self.count_up_to(group.last).map(|read| self.added - read),
        }
    }

    /// Moves a group's position to `id`, keeping its counter where that stays true.
    pub(super) fn advance(&mut self, group: &[u8], id: Id) {
        let Some(found) = self.groups.get(group) else { return };
        if id <= found.last {
            return;
        }
        let read = match found.read {
            Some(read) if found.last >= self.first() && !self.has_hole_after(found.last) => Some(read + 1),
            old => {
                if self.added > 0 {
                    self.count_up_to(id)
                } else {
                    old
                }
            }
        };
        let found = self.groups.get_mut(group).expect("found above");
        found.read = read;
        found.last = id;
    }
}

impl Group {
    /// The consumer of this name, made if there is none; `now_ms` becomes the time it was last seen.
    pub(super) fn consumer(&mut self, name: &[u8], now_ms: i64) -> &mut Consumer {
        let consumer = self.consumers.entry(name.to_vec()).or_insert(Consumer { seen_ms: now_ms, active_ms: None });
        consumer.seen_ms = now_ms;
        consumer
    }
}

/// An entry as replies show it: its id and its fields in one flat array.
pub(super) fn entry_value(id: Id, fields: &[Vec<u8>]) -> Value {
    let fields = fields.iter().map(|field| Value::BulkString(field.clone())).collect();
    Value::Array(vec![id.value(), Value::Array(fields)])
}
