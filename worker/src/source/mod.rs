//! The source of jobs: readers of job streams, and what is done with what they read.

mod inbox;
mod plan;
mod reader;
mod reply;

use std::{collections::HashMap, sync::Arc};

use stepfleet_connect::{NodeId, Topology};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub(crate) use self::inbox::NO_HANDLER;
use self::reader::Reader;
use crate::{kit::Kit, limits::DOORBELL_WAIT, sink::Recall};

/// Reads jobs until the worker drains: one reader on one server, one a node on Cluster.
pub(crate) async fn run(kit: Arc<Kit>, recalls: mpsc::Sender<Recall>) {
    if kit.redis.topology() != Topology::Cluster {
        return Reader::new(kit, None, recalls, CancellationToken::new()).run().await;
    }
    let mut readers = JoinSet::new();
    let mut stops: HashMap<NodeId, CancellationToken> = HashMap::new();
    let mut every = tokio::time::interval(DOORBELL_WAIT);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !kit.drain.is_cancelled() {
        let nodes = kit.redis.nodes();
        stops.retain(|node, stop| {
            let stays = nodes.contains(node);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for node in nodes {
            stops.entry(node.clone()).or_insert_with(|| {
                let stop = CancellationToken::new();
                readers.spawn(Reader::new(Arc::clone(&kit), Some(node), recalls.clone(), stop.clone()).run());
                stop
            });
        }
        tokio::select! {
            _ = every.tick() => {}
            () = kit.drain.cancelled() => {}
            Some(_) = readers.join_next(), if !readers.is_empty() => {}
        }
    }
    while readers.join_next().await.is_some() {}
}
