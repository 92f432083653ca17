//! A Cluster of real servers, formed by the harness itself.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, ensure};
use redis::cluster::ClusterClient;

use crate::server_options::Role;
use crate::{Server, ServerOptions, wait};

/// The number of slots of every Cluster.
pub const SLOTS: u16 = 16_384;
/// How long forming or healing may take on a busy machine.
const FORM_DEADLINE: Duration = Duration::from_secs(60);

/// Primaries that share all slots evenly, in order, and the replicas of each. Dropping it ends all nodes.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Server>,
    primaries: usize,
}

/// What a [`Cluster`] is started with.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many primaries; at least 1.
    pub primaries: usize,
    /// How many replicas each of them has.
    pub replicas_each: usize,
    /// After how long a silent node counts as failing. Short makes fail-overs quick and false alarms likely.
    pub node_timeout: Duration,
    /// What each node is started with.
    pub server: ServerOptions,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { primaries: 3, replicas_each: 0, node_timeout: Duration::from_secs(3), server: ServerOptions::new() }
    }
}

impl Cluster {
    /// Starts one of `primaries` nodes without replicas and waits until every node serves.
    ///
    /// # Errors
    /// As [`Cluster::launch`].
    pub async fn start(primaries: usize) -> anyhow::Result<Self> {
        Self::launch(ClusterOptions { primaries, ..ClusterOptions::default() }).await
    }

    /// Starts one and waits until every node reports `cluster_state:ok` and every replica follows.
    ///
    /// # Errors
    /// A node does not come up, or the nodes do not agree within a minute.
    pub async fn launch(options: ClusterOptions) -> anyhow::Result<Self> {
        let ClusterOptions { primaries, replicas_each, node_timeout, server } = options;
        ensure!(primaries >= 1, "a Cluster needs a primary");
        let server = server.role(Role::ClusterNode { node_timeout });
        let starts = (0..primaries * (1 + replicas_each)).map(|_| server.clone().start());
        let nodes = futures::future::try_join_all(starts).await?;
        let cluster = Self { nodes, primaries };
        cluster.form().await?;
        cluster.wait_until_ok(FORM_DEADLINE).await?;
        Ok(cluster)
    }

    /// All nodes: first the primaries as formed, in the order of their slots, then the replicas; replica `i` was given to
    /// primary `i` modulo the number of primaries. A fail-over swaps roles, not places.
    #[must_use]
    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// The node at that place, to kill, pause or restart it.
    pub fn node_mut(&mut self, place: usize) -> &mut Server {
        &mut self.nodes[place]
    }

    /// The URLs of all nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    /// The slots that primary `place` was given.
    #[must_use]
    pub fn slots_of(&self, place: usize) -> RangeInclusive<u16> {
        let border = |place: usize| {
            u16::try_from(usize::from(SLOTS) * place / self.primaries).expect("not above the number of slots")
        };
        border(place)..=border(place + 1) - 1
    }

    /// The place of the primary that was given `slot`.
    #[must_use]
    pub fn primary_of(&self, slot: u16) -> usize {
        (0..self.primaries)
            .find(|place| self.slots_of(*place).contains(&slot))
            .expect("every slot below 16384 was given to a primary")
    }

    /// A client for the whole Cluster.
    ///
    /// # Errors
    /// The URLs are not understood; with TLS or without the default user use the clients of the nodes.
    pub fn client(&self) -> anyhow::Result<ClusterClient> {
        Ok(ClusterClient::new(self.urls())?)
    }

    /// Waits until every running node reports `cluster_state:ok` and knows of all nodes, and every running replica follows
    /// its primary.
    ///
    /// # Errors
    /// The deadline passed.
    pub async fn wait_until_ok(&self, deadline: Duration) -> anyhow::Result<()> {
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            wait::until(deadline, "the Cluster to be formed", async || {
                let info = ask(node, &["CLUSTER", "INFO"]).await?;
                ensure!(has(&info, "cluster_state:ok"), "{} says\n{info}", node.address());
                let known = format!("cluster_known_nodes:{}", self.nodes.len());
                ensure!(has(&info, &known), "{} says\n{info}", node.address());
                let info = ask(node, &["INFO", "replication"]).await?;
                let follows = has(&info, "role:master") || has(&info, "master_link_status:up");
                ensure!(follows, "{} says\n{info}", node.address());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Begins to move a slot: from now on its node refuses keys of it that are not there, and `to` takes them.
    ///
    /// # Errors
    /// A node refuses.
    pub async fn begin_move(&self, slot: u16, to: usize) -> anyhow::Result<()> {
        let from = self.primary_of(slot);
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let (slot, source_id, target_id) =
            (slot.to_string(), ask(source, &["CLUSTER", "MYID"]).await?, ask(target, &["CLUSTER", "MYID"]).await?);
        ask(target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]).await?;
        ask(source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]).await.map(drop)
    }

    /// Moves up to `most` keys of a slot that is being moved; how many it moved, which is 0 when none is left.
    ///
    /// # Errors
    /// A node refuses.
    pub async fn move_keys(&self, slot: u16, to: usize, most: usize) -> anyhow::Result<usize> {
        let mut connection = self.nodes[self.primary_of(slot)].connection().await?;
        let mut list = redis::cmd("CLUSTER");
        let keys: Vec<Vec<u8>> = list
            .arg("GETKEYSINSLOT")
            .arg(slot)
            .arg(most)
            .query_async(&mut connection)
            .await
            .context("list the keys")?;
        if keys.is_empty() {
            return Ok(0);
        }
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(5_000).arg("KEYS").arg(&keys);
        let _: String = migrate.query_async(&mut connection).await.context("move keys")?;
        Ok(keys.len())
    }

    /// Tells all primaries that the slot is `to`'s. [`Cluster::primary_of`] still names the one that it was given to.
    ///
    /// # Errors
    /// A node refuses, as long as keys are left.
    pub async fn end_move(&self, slot: u16, to: usize) -> anyhow::Result<()> {
        let id = ask(&self.nodes[to], &["CLUSTER", "MYID"]).await?;
        // The new one first: if the old one forgot the slot before, nobody would have it for a moment.
        let others = (0..self.primaries).filter(|place| *place != to);
        for place in std::iter::once(to).chain(others) {
            ask(&self.nodes[place], &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]).await?;
        }
        Ok(())
    }

    /// Gives slots, introduces all nodes to the first, and hands out the replicas.
    async fn form(&self) -> anyhow::Result<()> {
        for (place, node) in self.nodes.iter().enumerate() {
            // Epochs of their own, so that no two nodes have to settle a collision first.
            ask(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(place + 1).to_string()]).await?;
            if place < self.primaries {
                let slots = self.slots_of(place);
                let (first, last) = (slots.start().to_string(), slots.end().to_string());
                ask(node, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            }
        }
        let first = self.nodes.first().context("there is a node")?;
        for node in &self.nodes[1..] {
            let (port, bus_port) = (node.port().to_string(), node.bus_port().to_string());
            ask(first, &["CLUSTER", "MEET", node.ip(), &port, &bus_port]).await?;
        }
        for (index, replica) in self.nodes[self.primaries..].iter().enumerate() {
            let primary = ask(&self.nodes[index % self.primaries], &["CLUSTER", "MYID"]).await?;
            wait::until(FORM_DEADLINE, "a replica to hear of its primary", async || {
                ask(replica, &["CLUSTER", "REPLICATE", &primary]).await
            })
            .await?;
        }
        Ok(())
    }
}

/// Sends one command to one node and returns its reply as text.
async fn ask(node: &Server, words: &[&str]) -> anyhow::Result<String> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    let mut connection = node.connection().await?;
    command.query_async(&mut connection).await.with_context(|| format!("{words:?} on {}", node.address()))
}

fn has(info: &str, line: &str) -> bool {
    info.lines().any(|found| found == line)
}
