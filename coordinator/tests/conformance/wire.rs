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
    dials: Arc<AtomicU64>,
    trips: Arc<AtomicU64>,
}

impl<D: Dial> Wire<D> {
    pub(crate) fn over(nodes: Vec<D>) -> Self {
        Self { nodes, latency: Duration::ZERO, dials: Arc::default(), trips: Arc::default() }
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
        let link = self.nodes[self.at(slot)].dial(slot, response_timeout).await?;
        Ok(WireLink { link, latency: self.latency, trips: Arc::clone(&self.trips) })
    }

    fn node(&self, slot: u16) -> u64 {
        self.at(slot) as u64
    }

    fn is_cluster(&self) -> bool {
        self.nodes.len() > 1
    }

    async fn refresh(&self) {}
}

/// A link of a [`Wire`].
pub(crate) struct WireLink<L> {
    link: L,
    latency: Duration,
    trips: Arc<AtomicU64>,
}

impl<L: Link> Link for WireLink<L> {
    async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        self.trips.fetch_add(1, Ordering::SeqCst);
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        self.link.trip(pipe).await
    }
}
