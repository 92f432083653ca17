//! What the simulated server holds: keys, their values and expiries, in an order that never depends on a hash.
//!
//! Every access goes through [`Db`], which removes expired keys lazily and notes the keys that a command touched, so that
//! the connections that watch them can be told.

use super::channels::Channels;
use super::reply::{Refusal, Reply};
use super::stream::Stream;
use super::zset::ZSet;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The fields of a hash.
pub(super) type Hash = BTreeMap<Vec<u8>, Vec<u8>>;
/// A list, head first.
pub(super) type List = VecDeque<Vec<u8>>;
/// A plain set.
pub(super) type Set = BTreeSet<Vec<u8>>;

/// The value of a key.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Text(Vec<u8>),
    Hash(Hash),
    Set(Set),
    ZSet(ZSet),
    List(List),
    Stream(Stream),
}

/// One key.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) kind: Kind,
    /// Unix milliseconds after which the key is gone.
    pub(super) expires_ms: Option<i64>,
}

/// All keys; this is what a snapshot copies.
pub(super) type Keys = BTreeMap<Vec<u8>, Item>;

/// A read that found nothing and may wait: the command with its ids resolved, to be tried again.
#[derive(Debug, Clone)]
pub(super) struct Wait {
    pub(super) command: Vec<Vec<u8>>,
    pub(super) keys: Vec<Vec<u8>>,
    /// `None` waits for ever.
    pub(super) block: Option<std::time::Duration>,
}

/// The data of one simulated server, as the Rust twin of a script sees it.
#[derive(Debug, Default)]
pub struct Db {
    pub(super) keys: Keys,
    pub(super) channels: Channels,
    /// What changed since the watchers were told.
    pub(super) touched: BTreeSet<Vec<u8>>,
    /// Where blocked readers should look again.
    pub(super) roused: BTreeSet<Vec<u8>>,
    pub(super) wait: Option<Wait>,
    pub(super) full: bool,
    pub(super) now_us: i64,
}

impl Db {
    /// Runs one data command as a script's `redis.call` would, an error as [`Value::ServerError`]; a full server refuses
    /// what may grow. Unlike `redis.call` an error does not end the caller.
    pub fn call(&mut self, args: &[&[u8]]) -> Value {
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.to_vec()).collect();
        let reply = match super::commands::find(&args) {
            Ok(spec) if self.full && spec.grows => Err(Refusal::out_of_memory()),
            Ok(spec) => (spec.run)(self, &args),
            Err(refusal) => Err(refusal),
        };
        self.wait = None;
        super::reply::settle(reply)
    }

    /// The server's time of this command, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        self.now_us.div_euclid(1000)
    }

    /// Removes the key if its time has passed.
    pub(super) fn purge(&mut self, key: &[u8]) {
        let now_ms = self.now_ms();
        if self.keys.get(key).and_then(|item| item.expires_ms).is_some_and(|at| at <= now_ms) {
            self.remove(key);
        }
    }

    /// Every key that has not expired, in order.
    pub(super) fn names(&mut self) -> Vec<Vec<u8>> {
        let names: Vec<Vec<u8>> = self.keys.keys().cloned().collect();
        names.iter().for_each(|name| self.purge(name));
        self.keys.keys().cloned().collect()
    }

    pub(super) fn item(&mut self, key: &[u8]) -> Option<&mut Item> {
        self.purge(key);
        self.keys.get_mut(key)
    }

    /// Removes a key; true if there was one.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        let was = self.keys.remove(key).is_some();
        if was {
            self.touch(key);
        }
        was
    }

    pub(super) fn touch(&mut self, key: &[u8]) {
        self.touched.insert(key.to_vec());
        self.roused.insert(key.to_vec());
    }

    /// Removes the key if a command left an empty collection behind. Streams may be empty.
    pub(super) fn sweep(&mut self, key: &[u8]) {
        let empty = self.keys.get(key).is_some_and(|item| match &item.kind {
            Kind::Text(_) | Kind::Stream(_) => false,
            Kind::Hash(hash) => hash.is_empty(),
            Kind::Set(set) => set.is_empty(),
            Kind::ZSet(zset) => zset.len() == 0,
            Kind::List(list) => list.is_empty(),
        });
        if empty {
            self.remove(key);
        }
    }
}

/// Typed access: `find` answers `None` for a missing key, `open` makes an empty one.
macro_rules! typed {
    ($find:ident, $open:ident, $variant:ident, $type:ty) => {
        impl Db {
            pub(super) fn $find(&mut self, key: &[u8]) -> Result<Option<&mut $type>, Refusal> {
                match self.item(key) {
                    None => Ok(None),
                    Some(Item { kind: Kind::$variant(value), .. }) => Ok(Some(value)),
                    Some(_) => Err(Refusal::wrong_type()),
                }
            }

            pub(super) fn $open(&mut self, key: &[u8]) -> Result<&mut $type, Refusal> {
                self.purge(key);
                let item = self
                    .keys
                    .entry(key.to_vec())
                    .or_insert_with(|| Item { kind: Kind::$variant(<$type>::default()), expires_ms: None });
                match &mut item.kind {
                    Kind::$variant(value) => Ok(value),
                    _ => Err(Refusal::wrong_type()),
                }
            }
        }
    };
}

typed!(find_text, open_text, Text, Vec<u8>);
typed!(find_hash, open_hash, Hash, Hash);
typed!(find_set, open_set, Set, Set);
typed!(find_zset, open_zset, ZSet, ZSet);
typed!(find_list, open_list, List, List);
typed!(find_stream, open_stream, Stream, Stream);

/// How a data command is carried out; the name is `args[0]`, the number of arguments is checked before.
pub(super) type Run = fn(&mut Db, &[Vec<u8>]) -> Reply;
