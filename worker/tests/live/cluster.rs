//! A worker on a Cluster of three nodes.

use std::time::Duration;

use serde_json::json;
use stepfleet_protocol::{
    beat::Control,
    codec,
    id::PartitionId,
    keys::{Keys, slot, slot_of},
    message::{Body, JobResult, LogEntry, Outcome},
};

use crate::{
    connections::{ITS_OWN, POOL_MAX},
    owner::{job, keys, name, start},
    server::{Server, free_port, until},
};

/// The fields of a stream entry.
type Fields = Vec<(String, Vec<u8>)>;

/// Three primaries, a third of the slots each.
struct Cluster {
    nodes: Vec<Server>,
}

const RANGES: [(u16, u16); 3] = [(0, 5_461), (5_462, 10_922), (10_923, 16_383)];

impl Cluster {
    async fn start() -> Self {
        let mut nodes = Vec::new();
        let buses = [free_port(), free_port(), free_port()];
        for bus in buses {
            let bus = bus.to_string();
            let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
            nodes.push(Server::start_with(&arguments).await);
        }
        for (node, (first, last)) in nodes.iter().zip(RANGES) {
            let mut connection = node.connection().await;
            let add = redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).to_owned();
            add.query_async::<()>(&mut connection).await.expect("slots are added");
            for (other, bus) in nodes.iter().zip(buses) {
                let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(other.port()).arg(bus).to_owned();
                meet.query_async::<()>(&mut connection).await.expect("nodes meet");
            }
        }
        let cluster = Self { nodes };
        until("the cluster is whole", async || cluster.is_whole().await).await;
        cluster
    }

    async fn is_whole(&self) -> bool {
        for node in &self.nodes {
            let info: String = redis::cmd("CLUSTER")
                .arg("INFO")
                .query_async(&mut node.connection().await)
                .await
                .expect("the node answers");
            if !info.contains("cluster_state:ok") || !info.contains("cluster_size:3") {
                return false;
            }
        }
        true
    }

    async fn ask(&self, slot: u16, command: &redis::Cmd) -> redis::Value {
        let at = RANGES.iter().position(|(_, last)| slot <= *last).expect("a slot");
        command.query_async(&mut self.nodes[at].connection().await).await.expect("the node does it")
    }

    async fn results(&self, partitions: u16) -> Vec<JobResult> {
        let mut all = Vec::new();
        for partition in 0..partitions {
            let range = redis::cmd("XRANGE").arg(keys(partition).log()).arg("-").arg("+").to_owned();
            let rows = self.ask(slot(PartitionId(partition)), &range).await;
            let rows: Vec<(String, Fields)> = redis::from_redis_value(rows).expect("entries");
            for (_, fields) in rows {
                let (field, bytes) = &fields[0];
                if let Body::Results(results) =
                    codec::decode::<LogEntry>(field.as_bytes(), bytes).expect("an entry").body
                {
                    all.extend(results.results);
                }
            }
        }
        all
    }
}

/// Clients of a node, without the one that asks, when those of the test that are closed are gone.
async fn connections_of(node: &Server) -> usize {
    let mut asks = node.connection().await;
    let mut counts = [usize::MAX, 0];
    until("the number of clients stays", async || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut asks).await.expect("the node answers");
        counts = [counts[1], list.lines().count() - 1];
        counts[0] == counts[1] && counts[1] <= ITS_OWN + POOL_MAX
    })
    .await;
    counts[1]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_partitions_of_all_nodes() {
    let cluster = Cluster::start().await;
    let meta = Keys::default().meta();
    cluster.ask(slot_of(meta.as_bytes()), redis::cmd("HSET").arg(&meta).arg("partitions").arg(6)).await;
    let url = format!("redis-cluster://127.0.0.1:{}", cluster.nodes[0].port());
    let builder = stepfleet_worker::Worker::builder().redis(&url).name("w").queues(["p", "q"]).stock_handlers();
    let worker = start(builder.concurrency(4));
    for round in 0..4 {
        for partition in 0..6 {
            let wire = codec::encode(&job("sleep", json!({"duration": "5ms"})));
            let stream = keys(partition).jobs(&name(if round % 2 == 0 { "p" } else { "q" }));
            let add = redis::cmd("XADD").arg(stream).arg("*").arg(wire.field).arg(&wire.bytes).to_owned();
            cluster.ask(slot(PartitionId(partition)), &add).await;
        }
    }
    let mut results = Vec::new();
    until("all are done", async || {
        results = cluster.results(6).await;
        results.len() >= 24
    })
    .await;
    assert!(results.iter().all(|result| result.outcome == Outcome::Completed(None)), "{results:?}");
    for node in &cluster.nodes {
        let others = connections_of(node).await;
        assert!((ITS_OWN..=ITS_OWN + 4).contains(&others), "{others} connections of a worker to a node");
    }

    let late = job("sleep", json!({"duration": "1h"}));
    let wire = codec::encode(&late);
    let (of, at) = (keys(5), slot(PartitionId(5)));
    let add = redis::cmd("XADD").arg(of.jobs(&name("q"))).arg("*").arg(wire.field).arg(&wire.bytes).to_owned();
    cluster.ask(at, &add).await;
    for message in [Control::Jobs(name("q")), Control::Cancel(vec![late.id])] {
        let say = redis::cmd("SPUBLISH").arg(of.control()).arg(codec::pack(&message)).to_owned();
        until("the worker listens", async || cluster.ask(at, &say).await != redis::Value::Int(0)).await;
    }
    until("the cancel has come", async || {
        cluster.results(6).await.iter().any(|result| result.of.job == late.id && result.outcome == Outcome::Cancelled)
    })
    .await;
    worker.left().await;
}

/// Coordinators hold a worker that nobody hears on its channel for gone when it does not beat every second.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_channel_beats_on_while_another_node_answers_nothing() {
    let cluster = Cluster::start().await;
    let meta = Keys::default().meta();
    cluster.ask(slot_of(meta.as_bytes()), redis::cmd("HSET").arg(&meta).arg("partitions").arg(6)).await;
    let url = format!("redis-cluster://127.0.0.1:{}", cluster.nodes[0].port());
    let builder = stepfleet_worker::Worker::builder().redis(&url).name("w").queues(["q"]).stock_handlers();
    let _worker = start(builder.concurrency(8).drain_timeout(Duration::ZERO));
    // It has a job of every node, and asks there after each beat whether it is to stop.
    for partition in 0..6 {
        let wire = codec::encode(&job("sleep", json!({"duration": "1h"})));
        let stream = keys(partition).jobs(&name("q"));
        let add = redis::cmd("XADD").arg(stream).arg("*").arg(wire.field).arg(&wire.bytes).to_owned();
        cluster.ask(slot(PartitionId(partition)), &add).await;
    }
    let list = Keys::default().workers();
    let mut ids: Vec<String> = Vec::new();
    until("the worker is there", async || {
        let range = redis::cmd("ZRANGE").arg(&list).arg(0).arg(-1).to_owned();
        ids = redis::from_redis_value(cluster.ask(slot_of(list.as_bytes()), &range).await).expect("names");
        !ids.is_empty()
    })
    .await;
    let (own, channel) = (Keys::default().worker(&ids[0]), Keys::default().worker_control(&ids[0]));
    let (at, of_channel) = (slot_of(own.as_bytes()), slot_of(channel.as_bytes()));
    let node_of = |slot| RANGES.iter().position(|(_, last)| slot <= *last).expect("a slot");
    let other = (0..3).find(|node| ![node_of(at), node_of(of_channel)].contains(node)).expect("three nodes");
    let beats = async || {
        let value = cluster.ask(at, redis::cmd("HGET").arg(&own).arg("n")).await;
        redis::from_redis_value::<i64>(value).expect("a number")
    };
    let count = redis::cmd("PUBSUB").arg("SHARDNUMSUB").arg(&channel).to_owned();
    let listens = async || matches!(cluster.ask(of_channel, &count).await, redis::Value::Array(pair) if pair[1] == redis::Value::Int(1));
    until("it listens", listens).await;
    // From now on nobody may subscribe to anything there, and whoever did is thrown out.
    cluster.ask(of_channel, redis::cmd("ACL").arg("SETUSER").arg("default").arg("resetchannels")).await;
    until("it is deaf", async || !listens().await).await;
    // The others do not notice, and go on.
    for (slot, _) in RANGES {
        cluster.ask(slot, redis::cmd("CONFIG").arg("SET").arg("cluster-node-timeout").arg(60_000)).await;
    }
    cluster.nodes[other].freeze();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = beats().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let beats = beats().await - before;
    assert!(beats >= 5, "{beats} beats in eight seconds");
}
