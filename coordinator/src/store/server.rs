//! The real servers behind the seam.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use redis::{Pipeline, Value};
use stepfleet_connect::{Plain, Redis, Topology, TripError};

use super::link::{Dial, Link, LinkError};

impl Link for Plain {
    async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        Plain::trip(self, pipe).await.map_err(|error| match error {
            TripError::Lost(why) => LinkError::Lost(why),
            TripError::TimedOut => LinkError::TimedOut,
        })
    }
}

impl Dial for Redis {
    type Link = Plain;

    async fn dial(&self, slot: u16, response_timeout: Duration) -> Result<Plain, LinkError> {
        self.plain(slot, response_timeout).await.map_err(|error| LinkError::Lost(error.to_string()))
    }

    fn node(&self, slot: u16) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.node_of(slot).ok().map(|node| node.to_string()).hash(&mut hasher);
        hasher.finish()
    }

    fn is_cluster(&self) -> bool {
        self.topology() == Topology::Cluster
    }

    async fn refresh(&self) {
        if let Err(error) = Redis::refresh(self).await {
            tracing::warn!(%error, "the topology could not be read");
        }
    }
}
