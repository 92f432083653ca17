//! A dial over others: spreads the slots over several nodes, counts, and takes its time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, Value};
use stepfleet_coordinator::store::link::{Dial, Link, LinkError};
use stepfleet_protocol::keys::SLOTS;

/// Links to several nodes, each of which serves as many slots in a row.
#[derive(Clone)]
pub(crate) struct Wire<D> {
    nodes: Vec<D>,
    /// What every trip takes on top.
    pub(crate) latency: Duration,
    /// What a look at the topology takes.
    pub(crate) refresh: Duration,
    /// What making a connection to the last node takes.
    pub(crate) far: Duration,
    dials: Arc<AtomicU64>,
    trips: Arc<AtomicU64>,
    /// The node that answers nothing, counted from 1.
    frozen: Arc<AtomicU64>,
}

impl<D: Dial> Wire<D> {
    pub(crate) fn over(nodes: Vec<D>) -> Self {
        let (dials, trips, frozen) = (Arc::default(), Arc::default(), Arc::default());
        Self { nodes, latency: Duration::ZERO, refresh: Duration::ZERO, far: Duration::ZERO, dials, trips, frozen }
    }

    /// This node answers nothing any more, like a process that is stopped: connections to it are made all the same.
    pub(crate) fn freeze(&self, node: usize) {
        self.frozen.store(node as u64 + 1, Ordering::SeqCst);
    }

    /// Links opened so far.
    pub(crate) fn dials(&self) -> u64 {
        self.dials.load(Ordering::SeqCst)
    }

    /// Trips over all links so far.
    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(Ordering::SeqCst)
    }

    fn at(&self, slot: u16) -> usize {
        usize::from(slot) * self.nodes.len() / usize::from(SLOTS)
    }
}

impl<D: Dial> Dial for Wire<D> {
    type Link = WireLink<D::Link>;

    async fn dial(&self, slot: u16, response_timeout: Duration) -> Result<Self::Link, LinkError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let node = self.at(slot);
        if node + 1 == self.nodes.len() && !self.far.is_zero() {
            tokio::time::sleep(self.far).await;
        }
        let link = self.nodes[node].dial(slot, response_timeout).await?;
        let (trips, frozen) = (Arc::clone(&self.trips), Arc::clone(&self.frozen));
        Ok(WireLink { link, latency: self.latency, trips, frozen, number: node as u64 + 1, response_timeout })
    }

    fn node(&self, slot: u16) -> u64 {
        self.at(slot) as u64
    }

    fn is_cluster(&self) -> bool {
        self.nodes.len() > 1
    }

    async fn refresh(&self) {
        tokio::time::sleep(self.refresh).await;
    }
}

/// A link of a [`Wire`].
pub(crate) struct WireLink<L> {
    link: L,
    latency: Duration,
    trips: Arc<AtomicU64>,
    frozen: Arc<AtomicU64>,
    number: u64,
    response_timeout: Duration,
}

impl<L: Link> Link for WireLink<L> {
    async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        self.trips.fetch_add(1, Ordering::SeqCst);
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        if self.frozen.load(Ordering::SeqCst) == self.number {
            tokio::time::sleep(self.response_timeout).await;
            return Err(LinkError::TimedOut);
        }
        self.link.trip(pipe).await
    }
}
