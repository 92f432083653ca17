//! The way to Redis that a program shares: it knows the topology and hands out connections.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use deadpool_redis::{Manager, Pool, PoolConfig, PoolError, Runtime, Timeouts};
use redis::ProtocolVersion;

use crate::error::Error;
use crate::limits::{
    CONNECT_TIMEOUT, POOL_CONNECTIONS_MAX, POOL_RESPONSE_TIMEOUT, POOL_WAIT, POOL_WAITS_MAX, REFRESH_INTERVAL_MIN,
};
use crate::link::{Dialer, Party, patience};
use crate::plain::Plain;
use crate::settings::{Settings, Topology};
use crate::topology::{Map, NodeId, resolve};

/// The servers of one [`Settings`]. Clones share everything.
///
/// Nothing follows a failover or a moved slot by itself: whoever meets a lost connection, `MOVED` or `READONLY` calls
/// [`Redis::refresh`] and asks again.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Dialer,
    map: RwLock<Arc<Map>>,
    refreshed: Mutex<Instant>,
    /// The pools of each node of the map that was asked for; those of nodes that left it are dropped.
    pools: Mutex<HashMap<(NodeId, Use), Pool>>,
}

/// What a pooled connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    /// Commands that are answered at once.
    Short,
    /// Commands that wait for a disk or for replicas, as long as those hang.
    Wait,
}

impl Use {
    fn connections_max(self) -> usize {
        match self {
            Self::Short => POOL_CONNECTIONS_MAX,
            Self::Wait => POOL_WAITS_MAX,
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({}, {:?})", self.shared.dialer.settings(), self.nodes())
    }
}

impl Redis {
    /// Finds the servers: checks that the one server is a primary, asks the Sentinels for it, or reads the slots of the
    /// Cluster.
    ///
    /// # Errors
    /// [`Error`] of the last server asked, or [`Error::Setting`] if the settings do not fit the servers.
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        let dialer = Dialer::new(settings)?;
        let map = resolve(&dialer, &[]).await?;
        Ok(Self {
            shared: Arc::new(Shared {
                dialer,
                map: RwLock::new(Arc::new(map)),
                refreshed: Mutex::new(Instant::now()),
                pools: Mutex::default(),
            }),
        })
    }

    /// How the servers are arranged.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.shared.dialer.settings().topology
    }

    /// The settings this was connected with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.shared.dialer.settings()
    }

    /// The primary that serves the slot, as last read; on one server or with Sentinel always the same for all slots.
    ///
    /// # Errors
    /// [`Error::NoNode`] if no node served it.
    pub fn node_of(&self, slot: u16) -> Result<NodeId, Error> {
        self.map().node_of(slot)
    }

    /// Every primary once, as last read. Never empty.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.map().nodes()
    }

    /// Reads the topology again, at most once in [`REFRESH_INTERVAL_MIN`]; a call that comes sooner does nothing.
    ///
    /// # Errors
    /// As [`Redis::connect`]; the topology stays as it was.
    pub async fn refresh(&self) -> Result<(), Error> {
        {
            let mut refreshed = self.shared.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
            if refreshed.elapsed() < REFRESH_INTERVAL_MIN {
                return Ok(());
            }
            *refreshed = Instant::now();
        }
        let map = Arc::new(resolve(&self.shared.dialer, &self.nodes()).await?);
        let nodes = map.nodes();
        *self.shared.map.write().unwrap_or_else(PoisonError::into_inner) = map;
        self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner).retain(|(node, _), _| nodes.contains(node));
        Ok(())
    }

    /// Opens one plain connection to the primary that serves the slot; see [`Plain`].
    ///
    /// `response_timeout` is for a whole trip: a trip that blocks for b needs b and two seconds.
    ///
    /// # Errors
    /// [`Error`]; [`Error::NotPrimary`] and [`Error::NoNode`] ask for a [`Redis::refresh`].
    pub async fn plain(&self, slot: u16, response_timeout: Duration) -> Result<Plain, Error> {
        self.plain_to(self.node_of(slot)?, response_timeout).await
    }

    /// As [`Redis::plain`], to this node.
    ///
    /// # Errors
    /// As [`Redis::plain`].
    pub async fn plain_to(&self, node: NodeId, response_timeout: Duration) -> Result<Plain, Error> {
        Plain::open(&self.shared.dialer, node, response_timeout).await
    }

    /// Lends a connection to the primary that serves the slot, for a short exclusive use; it goes back when dropped.
    ///
    /// Each checkout costs one round trip (UNWATCH and PING), which proves that the connection lives. The limits are
    /// [`POOL_CONNECTIONS_MAX`], [`POOL_WAIT`] and [`POOL_RESPONSE_TIMEOUT`]. Do not block on it. It speaks RESP2.
    ///
    /// # Errors
    /// [`Error::Busy`] if none came free in time, else as [`Redis::plain`].
    pub async fn pooled(&self, slot: u16) -> Result<deadpool_redis::Connection, Error> {
        self.lend(slot, Use::Short).await
    }

    /// As [`Redis::pooled`], of connections apart, at most [`POOL_WAITS_MAX`] to a node, for writes that wait for the disk or
    /// for replicas (`WAITAOF`, `WAIT`): while those hang the pool serves everybody else.
    ///
    /// # Errors
    /// As [`Redis::pooled`].
    pub async fn pooled_for_wait(&self, slot: u16) -> Result<deadpool_redis::Connection, Error> {
        self.lend(slot, Use::Wait).await
    }

    async fn lend(&self, slot: u16, to: Use) -> Result<deadpool_redis::Connection, Error> {
        let node = self.node_of(slot)?;
        let pool = self.pool(&node, to)?;
        pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => Error::of(&node.to_string(), &error),
            PoolError::Timeout(deadpool_redis::TimeoutType::Wait) => Error::Busy { node: node.to_string() },
            error => Error::Unreachable { node: node.to_string(), why: error.to_string() },
        })
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.shared.dialer
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.shared.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn pool(&self, node: &NodeId, of: Use) -> Result<Pool, Error> {
        let mut pools = self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (node.clone(), of);
        if let Some(pool) = pools.get(&place) {
            return Ok(pool.clone());
        }
        let client = self.shared.dialer.client(node.host(), node.port(), Party::Data, ProtocolVersion::RESP2)?;
        let manager = Manager::new_with_config(client.get_connection_info().clone(), patience(POOL_RESPONSE_TIMEOUT))
            .map_err(|error| Error::of(&node.to_string(), &error))?;
        let timeouts =
            Timeouts { wait: Some(POOL_WAIT), create: Some(CONNECT_TIMEOUT), recycle: Some(POOL_RESPONSE_TIMEOUT) };
        let mut config = PoolConfig::new(of.connections_max());
        config.timeouts = timeouts;
        let pool = Pool::builder(manager)
            .config(config)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with time-outs and a runtime can be built");
        pools.insert(place, pool.clone());
        Ok(pool)
    }
}
