//! Links for short commands outside any transaction, one a node, opened again when lost.

use std::{collections::HashMap, time::Duration};

use redis::{Cmd, Value};
use stepfleet_protocol::keys::slot_of;

use crate::store::{
    link::{Dial, Link, LinkError},
    reply,
};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Links by node. One task uses them.
pub struct Links<D: Dial> {
    dial: D,
    by_node: HashMap<u64, D::Link>,
}

impl<D: Dial> Links<D> {
    /// None are open yet.
    pub fn new(dial: D) -> Self {
        Self { dial, by_node: HashMap::new() }
    }

    /// Sends commands about `key`, and others of its slot, in one trip.
    ///
    /// # Errors
    /// The link's, after which the topology has been looked at again; a refusal by the server (moved, read-only) counts as
    /// a lost link.
    pub async fn trip(&mut self, key: &str, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        let slot = slot_of(key.as_bytes());
        let node = self.dial.node(slot);
        let result = self.try_trip(node, slot, pipe).await;
        if result.is_err() {
            self.by_node.remove(&node);
            self.dial.refresh().await;
        }
        result
    }

    async fn try_trip(&mut self, node: u64, slot: u16, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        if !self.by_node.contains_key(&node) {
            let link = self.dial.dial(slot, RESPONSE_TIMEOUT).await?;
            self.by_node.insert(node, link);
        }
        let replies = self.by_node.get_mut(&node).expect("just opened").trip(pipe).await?;
        let moved =
            |text: &String| ["MOVED", "ASK", "READONLY", "CLUSTERDOWN", "LOADING"].iter().any(|w| text.starts_with(w));
        match replies.iter().filter_map(reply::error).find(moved) {
            Some(text) => Err(LinkError::Lost(text)),
            None => Ok(replies),
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As [`Self::trip`].
    pub async fn one(&mut self, key: &str, cmd: Cmd) -> Result<Value, LinkError> {
        let mut pipe = redis::pipe();
        pipe.add_command(cmd);
        let replies = self.trip(key, &pipe).await?;
        replies.into_iter().next().ok_or_else(|| LinkError::Lost("no reply".into()))
    }
}
