//! How a program finds and reaches Redis: one server, Sentinel or Cluster.
//!
//! [`Settings`] says where; [`Redis`] knows the topology and hands out connections: [`Plain`] for an owner or a blocking
//! reader, a pooled one for short exclusive use, a [`Subscriber`] for sharded pub/sub. [`preflight`] says whether the
//! servers are fit.
//!
//! Deliberately absent: keys, records, retries. Who loses a connection decides what that means.

mod client;
mod error;
mod facts;
pub mod limits;
mod link;
mod plain;
mod settings;
mod slot;
mod subscribe;
mod topology;

pub use client::Redis;
pub use error::Error;
pub use facts::{Finding, NodeFacts, Severity, VERSION_MIN, preflight};
pub use plain::{Plain, TripError};
pub use settings::{Secret, Settings, Topology};
pub use slot::{SLOTS, slot_of};
pub use subscribe::{Event, Events, Subscriber};
pub use topology::NodeId;
