//! One plain connection: the seam between the store and a server.
//!
//! Everything the store does goes through [`Link::trip`]: commands out in one write, replies back in order. There are two
//! kinds of server behind it, a real Redis and the memory twin, and one suite that runs over both. A link never reconnects
//! and is never shared, because WATCH and MULTI belong to the connection.

use std::future::Future;

/// Why a trip ended without replies. Whether the server executed any of the commands is unknown.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The connection is gone: closed, reset or refused.
    #[error("connection to the server lost: {0}")]
    Lost(String),
    /// No reply within the response time-out.
    #[error("no reply from the server in time")]
    TimedOut,
}

/// One plain connection to the server that holds a partition's slot.
pub trait Link: Send {
    /// Sends every command of `pipe` in one write and waits for all replies: one [`redis::Value`] per command, an error
    /// of a command in its own place as [`redis::Value::ServerError`]. After an `Err` the link is dead.
    fn trip(&mut self, pipe: &redis::Pipeline) -> impl Future<Output = Result<Vec<redis::Value>, LinkError>> + Send;
}

/// Makes links.
pub trait Dial: Clone + Send + Sync + 'static {
    /// What it makes.
    type Link: Link;

    /// Opens a link to the primary that serves `slot` (0 on a single server). `response_timeout` bounds every trip; a
    /// blocking read must stay below it.
    fn dial(
        &self,
        slot: u16,
        response_timeout: std::time::Duration,
    ) -> impl Future<Output = Result<Self::Link, LinkError>> + Send;

    /// A number for the node that serves `slot` now, so that short commands for several slots can share a link.
    fn node(&self, slot: u16) -> u64;

    /// Whether streams of several partitions may be on different nodes, so that idle workers need a doorbell.
    fn is_cluster(&self) -> bool;

    /// Looks again which node serves what. Called after a link was lost.
    fn refresh(&self) -> impl Future<Output = ()> + Send;
}
