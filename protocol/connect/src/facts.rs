//! What the servers say of themselves, and whether Stepfleet can live on them.
//!
//! INFO is the source. CONFIG GET, which an ACL may forbid, only adds what INFO does not have.

use std::collections::HashMap;
use std::fmt;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, Value};

use crate::client::Redis;
use crate::error::Error;
use crate::limits::ASK_TIMEOUT;
use crate::link::{Party, ask, patience};
use crate::topology::NodeId;

/// The oldest version that works: sharded pub/sub came with it. Valkey counts from there on.
pub const VERSION_MIN: (u32, u32) = (7, 0);

/// One primary, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its address.
    pub addr: NodeId,
    /// The version it is compatible with for Redis, its own for Valkey, such as `8.1.4`.
    pub version: String,
    /// Valkey, not Redis.
    pub is_valkey: bool,
    /// A random name that changes whenever the server process starts.
    pub run_id: String,
    /// The memory limit in bytes; 0 is none.
    pub maxmemory: u64,
    /// What happens at the limit, such as `noeviction`.
    pub maxmemory_policy: String,
    /// Memory in use, in bytes.
    pub used_memory: u64,
    /// Whether the append-only file is on.
    pub appendonly: bool,
    /// How often that file is flushed, such as `everysec`; `None` if CONFIG GET is forbidden.
    pub appendfsync: Option<String>,
    /// The snapshot rules; empty is none; `None` if CONFIG GET is forbidden.
    pub save: Option<String>,
    /// `master` or `slave`, in the words of INFO.
    pub role: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, but somebody should know.
    Warning,
    /// A program must not start.
    Error,
}

/// One thing about the servers that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether to go on.
    pub severity: Severity,
    /// The node it is about.
    pub addr: NodeId,
    /// What was found, such as ``maxmemory-policy is `allkeys-lru` ``.
    pub what_found: String,
    /// What is allowed instead.
    pub allowed: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at `{}`: {}; allowed: {}; hint: {}", self.addr, self.what_found, self.allowed, self.hint)
    }
}

impl Redis {
    /// Asks every primary for its facts, one after the other.
    ///
    /// # Errors
    /// [`Error`] of the first node that cannot be reached or refuses INFO.
    pub async fn facts(&self) -> Result<Vec<NodeFacts>, Error> {
        let mut facts = Vec::new();
        for node in self.nodes() {
            facts.push(self.facts_of(node).await?);
        }
        Ok(facts)
    }

    async fn facts_of(&self, node: NodeId) -> Result<NodeFacts, Error> {
        let dialer = self.dialer();
        let mut connection =
            dialer.dial(node.target(), Party::Data, ProtocolVersion::RESP2, patience(ASK_TIMEOUT)).await?;
        let name = node.to_string();
        let answer = ask(&mut connection, &name, &redis::cmd("INFO")).await?;
        let info: String =
            redis::from_redis_value(answer).map_err(|error| Error::Refused { node: name, why: error.to_string() })?;
        let mut facts = read(node, &info);
        facts.appendfsync = config_of(&mut connection, "appendfsync").await;
        facts.save = config_of(&mut connection, "save").await;
        Ok(facts)
    }
}

async fn config_of(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let answer = connection.send_packed_command(redis::cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
    match answer {
        Value::ServerError(_) => None,
        value => redis::from_redis_value::<HashMap<String, String>>(value).ok()?.remove(name),
    }
}

fn read(addr: NodeId, info: &str) -> NodeFacts {
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
    let text = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
    let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
    let valkey = fields.get("valkey_version");
    NodeFacts {
        addr,
        version: valkey.map_or_else(|| text("redis_version"), |version| (*version).to_owned()),
        is_valkey: valkey.is_some(),
        run_id: text("run_id"),
        maxmemory: number("maxmemory"),
        maxmemory_policy: text("maxmemory_policy"),
        used_memory: number("used_memory"),
        appendonly: text("aof_enabled") == "1",
        appendfsync: None,
        save: None,
        role: text("role"),
    }
}

/// Checks the facts: version at least [`VERSION_MIN`], `noeviction`, a primary, and persistence, which is a warning with
/// `dev`. An empty list is good.
#[must_use]
pub fn preflight(facts: &[NodeFacts], dev: bool) -> Vec<Finding> {
    facts.iter().flat_map(|facts| findings(facts, dev)).collect()
}

fn findings(facts: &NodeFacts, dev: bool) -> Vec<Finding> {
    let finding = |severity, what_found: String, allowed: &str, hint: &str| Finding {
        severity,
        addr: facts.addr.clone(),
        what_found,
        allowed: allowed.to_owned(),
        hint: hint.to_owned(),
    };
    let mut found = Vec::new();
    if version_of(&facts.version).is_none_or(|version| version < VERSION_MIN) {
        let what = format!("version is `{}`", facts.version);
        found.push(finding(Severity::Error, what, "Redis 7.0 or newer, or Valkey", "upgrade the server"));
    }
    if facts.role != "master" {
        let what = format!("role is `{}`", facts.role);
        found.push(finding(Severity::Error, what, "`master`", "point redis.url at the primary, or use Sentinel"));
    }
    if facts.maxmemory_policy != "noeviction" {
        let what = format!("maxmemory-policy is `{}`", facts.maxmemory_policy);
        found.push(finding(
            Severity::Error,
            what,
            "`noeviction`",
            "`CONFIG SET maxmemory-policy noeviction`, and in its configuration file",
        ));
    }
    let persistence = if dev { Severity::Warning } else { Severity::Error };
    match (facts.appendonly, facts.save.as_deref()) {
        (true, _) => {}
        (false, Some("")) => found.push(finding(
            persistence,
            "appendonly is `no` and save is empty".to_owned(),
            "appendonly `yes`",
            "`CONFIG SET appendonly yes`; a restart loses everything now",
        )),
        (false, Some(rules)) => found.push(finding(
            Severity::Warning,
            format!("appendonly is `no`, save is `{rules}`"),
            "appendonly `yes`",
            "`CONFIG SET appendonly yes`; a crash loses all since the last snapshot",
        )),
        (false, None) => found.push(finding(
            Severity::Warning,
            "appendonly is `no`, save is not readable".to_owned(),
            "appendonly `yes`",
            "`CONFIG SET appendonly yes`, or allow CONFIG GET to this user",
        )),
    }
    found
}

fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut NodeFacts)) -> NodeFacts {
        let info = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.4\r\nrun_id:ab\r\n\
                    used_memory:900\r\nmaxmemory:1000\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nrole:master\r\n";
        let mut facts = read(NodeId::new("h", 1), info);
        change(&mut facts);
        facts
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut NodeFacts), dev: bool, expected: &[(Severity, &str)]) {
        let found = preflight(&[facts(change)], dev);
        let shown: Vec<_> = found.iter().map(|finding| (finding.severity, finding.what_found.as_str())).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn info_is_read() {
        let facts = facts(|_| {});
        assert_eq!((facts.version.as_str(), facts.is_valkey, facts.run_id.as_str()), ("8.1.4", true, "ab"));
        assert_eq!((facts.maxmemory, facts.used_memory, facts.appendonly), (1000, 900, true));
    }

    #[test]
    fn what_loses_jobs_is_found() {
        use Severity::{Error, Warning};
        check(|_| {}, false, &[]);
        check(|facts| facts.version = "6.2.14".to_owned(), true, &[(Error, "version is `6.2.14`")]);
        check(|facts| facts.version = "next".to_owned(), true, &[(Error, "version is `next`")]);
        check(|facts| facts.role = "slave".to_owned(), true, &[(Error, "role is `slave`")]);
        let evicting = |facts: &mut NodeFacts| facts.maxmemory_policy = "allkeys-lru".to_owned();
        check(evicting, true, &[(Error, "maxmemory-policy is `allkeys-lru`")]);
        let volatile = |facts: &mut NodeFacts| (facts.appendonly, facts.save) = (false, Some(String::new()));
        check(volatile, false, &[(Error, "appendonly is `no` and save is empty")]);
        check(volatile, true, &[(Warning, "appendonly is `no` and save is empty")]);
        let unknown = |facts: &mut NodeFacts| facts.appendonly = false;
        check(unknown, false, &[(Warning, "appendonly is `no`, save is not readable")]);
        let snapshots = |facts: &mut NodeFacts| (facts.appendonly, facts.save) = (false, Some("60 1".to_owned()));
        check(snapshots, false, &[(Warning, "appendonly is `no`, save is `60 1`")]);
    }
}
