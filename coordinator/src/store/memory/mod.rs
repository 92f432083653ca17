//! The memory twin: a Redis server in process, at the level of connections.
//!
//! The real store runs over it unchanged, with WATCH, MULTI, EXEC and blocking reads in one pipeline, under simulated time
//! and with seeded faults. Replies have the shapes of RESP2 and come in an order that depends on nothing but the calls;
//! `coordinator/tests/memory_twin` compares them with a real server. Scripts are twins in Rust, found by the source of
//! the Lua they stand for. Deliberately absent: databases, users, persistence, replication, RESP3, Lua, and every command
//! that the store does not use.

mod channels;
mod clock;
mod commands;
mod db;
mod facts;
mod faults;
mod groups;
mod hashes;
mod keys;
mod link;
mod lists;
mod pattern;
mod reads;
mod reply;
mod session;
mod sets;
mod stream;
mod streams;
mod strings;
mod zset;
mod zsets;

#[cfg(test)]
mod tests;

pub use clock::Clock;
pub use db::Db;
pub use faults::Faults;
pub use link::{MemoryDial, MemoryLink};

use super::script;
use faults::Dice;
use session::{State, Step};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// `maxmemory` until a simulation sets another one, in bytes.
const LIMIT_BYTES: u64 = 100 * 1024 * 1024;

/// A simulated server; clones are the same server.
#[derive(Clone)]
pub struct MemoryServer {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for MemoryServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryServer").finish_non_exhaustive()
    }
}

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

impl Inner {
    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a script's twin leaves the data as it was; the test that caused it fails anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(&self, session: u64, args: &[Vec<u8>]) -> Option<Step> {
        let now_us = self.clock.now_us();
        self.lock().execute(session, args, now_us)
    }
}

/// All data of a server at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    keys: db::Keys,
}

impl MemoryServer {
    /// An empty server that is up, and has the twins of the store's own scripts.
    pub fn new(clock: Clock) -> Self {
        let server = Self { inner: Arc::new(Inner { clock, state: Mutex::default() }) };
        server.set_full(false);
        server.register_script(script::DELETE_CONSUMER, script::delete_consumer_twin);
        server.register_script(script::APPLY_POLICIES, script::apply_policies_twin);
        server
    }

    /// Makes connections to this server.
    pub fn dial(&self) -> MemoryDial {
        MemoryDial { server: self.clone() }
    }

    /// The server's clock; shifting it shifts the server's time.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Makes `twin` answer for the Lua script with this source, by EVAL and EVALSHA. It runs as one command and must
    /// reply in RESP2 shapes. A script is still to be loaded before EVALSHA finds it.
    pub fn register_script(
        &self,
        source: &str,
        twin: impl Fn(&mut Db, &[Vec<u8>], &[Vec<u8>]) -> redis::Value + Send + Sync + 'static,
    ) {
        self.inner.lock().register(source, Arc::new(twin));
    }

    /// Listens to a channel of PUBLISH and SPUBLISH. It ends when the connections are cut, or when 1024 messages wait.
    pub fn subscribe(&self, channel: impl AsRef<[u8]>) -> mpsc::Receiver<Vec<u8>> {
        self.inner.lock().db.channels.subscribe(channel.as_ref())
    }

    /// Changes how the wire misbehaves from the next trip on; the draws begin anew.
    pub fn set_faults(&self, faults: Faults) {
        self.inner.lock().dice = Dice::new(faults);
    }

    /// Copies all data.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { keys: self.inner.lock().db.keys.clone() }
    }

    /// Goes back to an earlier moment, as a failover to a replica that lags does: every connection is cut, the run id is
    /// another one, scripts must be loaded again. Time goes on.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.inner.lock();
        state.db.keys.clone_from(&snapshot.keys);
        state.reincarnate();
    }

    /// As [`MemoryServer::restore`], of the keys that `belongs` names alone: those of one node of several.
    pub fn restore_part(&self, snapshot: &Snapshot, belongs: impl Fn(&[u8]) -> bool) {
        let mut state = self.inner.lock();
        state.db.keys.retain(|key, _| !belongs(key));
        let earlier = snapshot.keys.iter().filter(|(key, _)| belongs(key));
        state.db.keys.extend(earlier.map(|(key, item)| (key.clone(), item.clone())));
        state.reincarnate();
    }

    /// Ends every connection; blocked reads and late commands are lost with theirs. New connections are taken.
    pub fn cut(&self) {
        self.inner.lock().cut();
    }

    /// Cuts every connection and takes no new one until [`MemoryServer::up`]. The data stays.
    pub fn down(&self) {
        let mut state = self.inner.lock();
        state.down = true;
        state.cut();
    }

    /// Takes connections again.
    pub fn up(&self) {
        self.inner.lock().down = false;
    }

    /// Sets what INFO tells about memory. Above `limit_bytes` the server is full and refuses what may grow; a limit of 0
    /// is none.
    pub fn set_memory(&self, used_bytes: u64, limit_bytes: u64) {
        let mut state = self.inner.lock();
        (state.used_bytes, state.limit_bytes) = (used_bytes, limit_bytes);
        state.db.full = limit_bytes > 0 && used_bytes > limit_bytes;
    }

    /// Makes the server full, or a quarter full.
    pub fn set_full(&self, full: bool) {
        self.set_memory(if full { LIMIT_BYTES + 1 } else { LIMIT_BYTES / 4 }, LIMIT_BYTES);
    }
}
