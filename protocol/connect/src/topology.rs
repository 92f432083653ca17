//! Which node serves which slot, as the servers say.

use std::fmt;
use std::sync::Arc;

use redis::{ProtocolVersion, Value};

use crate::error::Error;
use crate::limits::{ASK_TIMEOUT, SEED_PATIENCE};
use crate::link::{Dialer, Party, ask, hello, patience};
use crate::settings::{Topology, address};
use crate::slot::SLOTS;

/// A node, named by its address. Cheap to clone; two ids are equal if and only if the addresses are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<(String, u16)>);

impl NodeId {
    pub(crate) fn new(host: &str, port: u16) -> Self {
        Self(Arc::new((host.to_owned(), port)))
    }

    /// The host: a name or an address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.0
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.1
    }

    pub(crate) fn target(&self) -> (&str, u16) {
        (self.host(), self.port())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&address(self.host(), self.port()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The primaries and the slots they serve, at one moment. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// First slot, last slot, primary; sorted, without overlap.
    ranges: Vec<(u16, u16, NodeId)>,
}

impl Map {
    fn whole(node: NodeId) -> Self {
        Self { ranges: vec![(0, SLOTS - 1, node)] }
    }

    pub(crate) fn node_of(&self, slot: u16) -> Result<NodeId, Error> {
        let after = self.ranges.partition_point(|(first, _, _)| *first <= slot);
        match after.checked_sub(1).and_then(|at| self.ranges.get(at)) {
            Some((_, last, node)) if slot <= *last => Ok(node.clone()),
            _ => Err(Error::NoNode { slot }),
        }
    }

    /// Every primary once, in the order of addresses.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.ranges.iter().map(|(_, _, node)| node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }
}

/// Asks the servers of the settings, then those already `known`, until one of them tells; those that took too long are asked
/// again, with more time, when no other one told.
pub(crate) async fn resolve(dialer: &Dialer, known: &[NodeId]) -> Result<Map, Error> {
    let settings = dialer.settings();
    let seeds = settings.seeds.iter().map(|(host, port)| NodeId::new(host, *port));
    let mut askable: Vec<NodeId> = seeds.collect();
    if settings.topology == Topology::Cluster {
        askable.extend(known.iter().filter(|node| !settings.seeds.contains(&node.0)).cloned());
    }
    let (mut last, mut slow) = (None, Vec::new());
    // A Sentinel may name a primary that hangs, and a moment later another one.
    let may_pass = askable.len() > 1 || settings.topology == Topology::Sentinel;
    for node in askable {
        let answer = if may_pass {
            match tokio::time::timeout(SEED_PATIENCE, tell(dialer, &node)).await {
                Ok(answer) => answer,
                Err(_) => {
                    slow.push(node);
                    continue;
                }
            }
        } else {
            tell(dialer, &node).await
        };
        match answer {
            Err(error) if !matches!(error, Error::Setting { .. }) => last = Some(error),
            told => return told,
        }
    }
    for node in &slow {
        match tell(dialer, node).await {
            Err(error) if !matches!(error, Error::Setting { .. }) => last = Some(error),
            told => return told,
        }
    }
    Err(last.expect("settings have at least one seed"))
}

/// What one server says.
async fn tell(dialer: &Dialer, node: &NodeId) -> Result<Map, Error> {
    match dialer.settings().topology {
        Topology::Single => single(dialer, node).await,
        Topology::Sentinel => primary_by(dialer, node).await,
        Topology::Cluster => slots_by(dialer, node).await,
    }
}

async fn single(dialer: &Dialer, node: &NodeId) -> Result<Map, Error> {
    let mut connection = dialer.dial(node.target(), Party::Data, ProtocolVersion::RESP2, patience(ASK_TIMEOUT)).await?;
    let name = node.to_string();
    let hello = hello(&mut connection, &name).await?;
    if hello.mode == "cluster" {
        return Err(Error::Setting {
            field: "redis.url",
            found: format!("{} of a node of a Redis Cluster", dialer.settings()),
            allowed: "`redis-cluster://…` for a Cluster".to_owned(),
        });
    }
    if hello.role != "master" {
        return Err(Error::NotPrimary { node: name, role: hello.role });
    }
    Ok(Map::whole(node.clone()))
}

async fn primary_by(dialer: &Dialer, sentinel: &NodeId) -> Result<Map, Error> {
    let service = dialer.settings().service.as_deref().expect("a Sentinel URL has a service");
    let mut connection =
        dialer.dial(sentinel.target(), Party::Sentinel, ProtocolVersion::RESP2, patience(ASK_TIMEOUT)).await?;
    let name = sentinel.to_string();
    let question = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service).to_owned();
    let answer = ask(&mut connection, &name, &question).await?;
    let found: Option<(String, u16)> = redis::from_redis_value(answer)
        .map_err(|error| Error::Refused { node: name.clone(), why: error.to_string() })?;
    let (host, port) =
        found.ok_or_else(|| Error::Refused { node: name, why: format!("it knows no primary named `{service}`") })?;
    // A Sentinel that is behind names a server that is no longer the primary: another one may know better.
    let primary = NodeId::new(&host, port);
    single(dialer, &primary).await
}

async fn slots_by(dialer: &Dialer, node: &NodeId) -> Result<Map, Error> {
    let mut connection = dialer.dial(node.target(), Party::Data, ProtocolVersion::RESP2, patience(ASK_TIMEOUT)).await?;
    let name = node.to_string();
    if hello(&mut connection, &name).await?.mode != "cluster" {
        return Err(Error::Setting {
            field: "redis.url",
            found: format!("{} with a server that is not in Cluster mode", dialer.settings()),
            allowed: "`redis://…` for one server".to_owned(),
        });
    }
    let answer = ask(&mut connection, &name, redis::cmd("CLUSTER").arg("SLOTS")).await?;
    map_of(answer, node).ok_or_else(|| Error::Refused { node: name, why: "its CLUSTER SLOTS names no slot".to_owned() })
}

/// Reads CLUSTER SLOTS. An empty or unknown host means the host that was asked.
fn map_of(answer: Value, asked: &NodeId) -> Option<Map> {
    let Value::Array(rows) = answer else { return None };
    let mut ranges: Vec<_> = rows.into_iter().map(|row| range_of(row, asked)).collect::<Option<_>>()?;
    ranges.sort();
    (!ranges.is_empty()).then_some(Map { ranges })
}

fn range_of(row: Value, asked: &NodeId) -> Option<(u16, u16, NodeId)> {
    let Value::Array(row) = row else { return None };
    let mut parts = row.into_iter();
    let mut number = || parts.next().and_then(|value| redis::from_redis_value::<u16>(value).ok());
    let (first, last) = (number()?, number()?);
    let Value::Array(primary) = parts.next()? else { return None };
    let mut primary = primary.into_iter();
    let host: Option<String> = redis::from_redis_value(primary.next()?).ok()?;
    let port: u16 = redis::from_redis_value(primary.next()?).ok()?;
    let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host().to_owned());
    (first <= last && last < SLOTS).then(|| (first, last, NodeId::new(&host, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: i64, last: i64, host: Option<&str>, port: i64) -> Value {
        let host = host.map_or(Value::Nil, |host| Value::BulkString(host.into()));
        let replica = Value::Array(vec![Value::BulkString("replica".into()), Value::Int(9)]);
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(vec![host, Value::Int(port)]), replica])
    }

    #[test]
    fn cluster_slots_become_a_map_with_gaps_kept() {
        let asked = NodeId::new("seed", 1);
        let rows = vec![row(200, 16383, Some("b"), 2), row(0, 99, None, 1), row(150, 160, Some(""), 3)];
        let map = map_of(Value::Array(rows), &asked).expect("rows are right");
        assert_eq!(map.node_of(0), Ok(asked));
        assert_eq!(map.node_of(99).map(|node| node.to_string()), Ok("seed:1".to_owned()));
        assert_eq!(map.node_of(100), Err(Error::NoNode { slot: 100 }));
        assert_eq!(map.node_of(155).map(|node| node.to_string()), Ok("seed:3".to_owned()));
        assert_eq!(map.node_of(16383).map(|node| node.to_string()), Ok("b:2".to_owned()));
        assert_eq!(map.nodes().len(), 3);
    }

    #[test]
    fn an_empty_or_strange_answer_is_no_map() {
        let asked = NodeId::new("seed", 1);
        assert_eq!(map_of(Value::Array(vec![]), &asked), None);
        assert_eq!(map_of(Value::Okay, &asked), None);
        assert_eq!(map_of(Value::Array(vec![row(0, 16384, None, 1)]), &asked), None);
        assert_eq!(map_of(Value::Array(vec![row(9, 3, None, 1)]), &asked), None);
    }
}
