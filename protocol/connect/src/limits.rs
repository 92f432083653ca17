//! Every number that bounds a connection, in one place.

use std::time::Duration;

/// A TCP, TLS and login handshake that takes longer has failed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a question about the topology or the server's facts may wait for its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// So long each server is given to tell the topology while others can be asked; only when none did are they given
/// [`ASK_TIMEOUT`]. A process that hangs takes connections, and would hold up each look by that.
pub const SEED_PATIENCE: Duration = Duration::from_millis(500);
/// Connections of the pool to one node, at most.
pub const POOL_CONNECTIONS_MAX: usize = 16;
/// Connections to one node, apart from the pool, on which callers wait for its disk or its replicas, at most.
pub const POOL_WAITS_MAX: usize = 64;
/// How long a caller waits for a free connection of the pool.
pub const POOL_WAIT: Duration = Duration::from_secs(2);
/// How long one command on a pooled connection may take.
pub const POOL_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The topology is read again at most this often, however many ask for it.
pub const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Events of a subscriber that wait for their reader; what comes on top is reported as `Overflow`.
pub const SUBSCRIBER_EVENTS_MAX: usize = 4096;
/// Requests to a subscriber that wait for it.
pub const SUBSCRIBER_ASKS_MAX: usize = 256;
/// A subscription connection is pinged this often, so that a silent half-open connection is found.
pub const SUBSCRIBER_PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long a subscriber waits before its first try to reconnect.
pub const RECONNECT_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait between two tries to reconnect.
pub const RECONNECT_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Servers in one URL, at most.
pub const SEEDS_MAX: usize = 64;
