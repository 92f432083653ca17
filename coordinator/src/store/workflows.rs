//! Registered workflows: every version that was ever registered under a name. Versions are never changed.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use stepfleet_protocol::{
    audit::{AuditEntry, action},
    codec,
    keys::slot_of,
    name::Name,
    workflow::Workflow,
};

use super::{
    admission::Load,
    ask,
    client::{Client, ClientError, lock},
    intent::Change,
    record, reply,
};

/// Field of a workflow's hash with the number of its latest version.
pub const FIELD_LATEST: &str = "latest";
/// Versions kept in mind.
const VERSIONS_KEPT: usize = 200;

/// A workflow as runs carry it: its plan key, its bytes, and what the door needs of it.
#[derive(Debug)]
pub struct Stored {
    /// Its name.
    pub name: Name,
    /// The registered version; none for an inline definition.
    pub version: Option<u32>,
    /// The plan key.
    pub hash: String,
    /// The bytes under the plan key.
    pub bytes: Bytes,
    /// The JSON Schema that inputs must satisfy.
    pub input: Option<serde_json::Value>,
}

impl Stored {
    /// A checked definition, to be carried by runs.
    pub fn new(workflow: &Workflow) -> Self {
        let plain = codec::pack(workflow);
        Self {
            name: workflow.workflow.clone(),
            version: None,
            hash: record::plan_hash(&plain),
            bytes: codec::compress(&plain).into(),
            input: workflow.input.clone(),
        }
    }

    fn read(bytes: &[u8], version: u32) -> Result<(Self, Workflow), ClientError> {
        let broken = |_| ClientError::Broken("a registered workflow");
        let plain = codec::decompress(bytes).map_err(broken)?;
        let workflow: Workflow = codec::unpack(&plain).map_err(broken)?;
        let stored = Self {
            name: workflow.workflow.clone(),
            version: Some(version),
            hash: record::plan_hash(&plain),
            bytes: Bytes::copy_from_slice(bytes),
            input: workflow.input.clone(),
        };
        Ok((stored, workflow))
    }
}

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The version that now is the latest.
    pub number: u32,
    /// Whether it is new; false if the latest one was the same.
    pub created: bool,
}

/// One version of a workflow, to be looked at.
#[derive(Debug)]
pub struct Shown {
    /// The version.
    pub version: u32,
    /// The latest version.
    pub latest: u32,
    /// Its plan key.
    pub hash: String,
    /// When each of the last hundred versions was registered, newest first, in Unix milliseconds.
    pub registered_ms: Vec<(u32, Option<u64>)>,
    /// The definition.
    pub workflow: Workflow,
}

impl Client {
    /// Registers a checked definition: a new version, unless the latest one is the same. `now_ms` is kept with it. A new
    /// version and its audit entry are one change; `actor` is who asks.
    ///
    /// # Errors
    /// Redis' fault, or [`ClientError::ServerFull`].
    pub async fn register(&self, workflow: &Workflow, actor: &str, now_ms: u64) -> Result<Version, ClientError> {
        let stored = Stored::new(workflow);
        let key = self.keys.workflow(&stored.name);
        self.admit_key(&key, Load::Command)?;
        let names = self.keys.workflows();
        // The set first: a name without a version is skipped by readers, a version without its name would be lost to them.
        let mut add = redis::cmd("SADD");
        add.arg(&names).arg(stored.name.as_str());
        ask::one(&self.redis, &names, add).await?;
        loop {
            let mut read = redis::cmd("HGET");
            read.arg(&key).arg(FIELD_LATEST);
            let latest = number(&ask::one(&self.redis, &key, read).await?);
            if latest > 0 {
                let newest = self.version_bytes(&key, &stored.name, latest).await?;
                if codec::decompress(&newest).is_ok_and(|plain| record::plan_hash(&plain) == stored.hash) {
                    return Ok(Version { number: latest, created: false });
                }
            }
            let next = latest + 1;
            let target = format!("workflow:{}@{next}", stored.name);
            let entry = AuditEntry::new(actor, action::WORKFLOW_REGISTER, target, now_ms);
            let done = self.change_hash((&key, FIELD_LATEST), &entry, |found| {
                if number(found) != latest {
                    // RACE: another registration came first; it is compared with in the next round.
                    return Change::None(false);
                }
                let mut write = redis::pipe();
                write.cmd("HSET").arg(&key).arg(format!("v{next}")).arg(&stored.bytes[..]);
                write.arg(format!("at{next}")).arg(now_ms).arg(FIELD_LATEST).arg(next);
                Change::Write(write, Box::new(entry.clone()), true)
            });
            if done.await? {
                return Ok(Version { number: next, created: true });
            }
        }
    }

    async fn version_bytes(&self, key: &str, name: &Name, version: u32) -> Result<Bytes, ClientError> {
        let mut get = redis::cmd("HGET");
        get.arg(key).arg(format!("v{version}"));
        match ask::one(&self.redis, key, get).await? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(ClientError::NoWorkflow(format!("{name}@{version}"))),
        }
    }

    /// A registered workflow for a submit: `version`, or the latest one.
    ///
    /// # Errors
    /// [`ClientError::NoWorkflow`], or Redis' fault.
    pub async fn registered(&self, name: &Name, version: Option<u32>) -> Result<Arc<Stored>, ClientError> {
        let key = self.keys.workflow(name);
        let version = match version {
            Some(version) => version,
            None => self.latest(name).await?,
        };
        let place = (name.to_string(), version);
        if let Some(stored) = lock(&self.shared.versions).get(&place) {
            return Ok(stored.clone());
        }
        let bytes = self.version_bytes(&key, name, version).await?;
        let stored = Arc::new(Stored::read(&bytes, version)?.0);
        let mut versions = lock(&self.shared.versions);
        if versions.len() >= VERSIONS_KEPT {
            versions.clear();
        }
        versions.insert(place, stored.clone());
        Ok(stored)
    }

    async fn latest(&self, name: &Name) -> Result<u32, ClientError> {
        let key = self.keys.workflow(name);
        let mut get = redis::cmd("HGET");
        get.arg(&key).arg(FIELD_LATEST);
        match number(&ask::one(&self.redis, &key, get).await?) {
            0 => Err(ClientError::NoWorkflow(name.to_string())),
            latest => Ok(latest),
        }
    }

    /// One version of a workflow, or the latest one.
    ///
    /// # Errors
    /// [`ClientError::NoWorkflow`], or Redis' fault.
    pub async fn show_workflow(&self, name: &Name, version: Option<u32>) -> Result<Shown, ClientError> {
        let key = self.keys.workflow(name);
        let latest = self.latest(name).await?;
        let version = version.unwrap_or(latest);
        let bytes = self.version_bytes(&key, name, version).await?;
        let (stored, workflow) = Stored::read(&bytes, version)?;
        let first = latest.saturating_sub(99).max(1);
        let mut get = redis::cmd("HMGET");
        get.arg(&key);
        for v in (first..=latest).rev() {
            get.arg(format!("at{v}"));
        }
        let times = ask::one(&self.redis, &key, get).await?;
        let times = reply::array(&times).unwrap_or_default();
        let times = times.iter().map(|t| reply::number(t).map(|n| n.max(0) as u64));
        let registered_ms = (first..=latest).rev().zip(times).collect();
        Ok(Shown { version, latest, hash: stored.hash, registered_ms, workflow })
    }

    /// Names of registered workflows behind `after`, in order, each with its latest version and when that was registered; at most
    /// `limit`, and whether there are more.
    ///
    /// # Errors
    /// Redis' fault.
    pub async fn list_workflows(
        &self,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<(Name, u32, Option<u64>)>, bool), ClientError> {
        let names = self.workflow_names().await?;
        let mut rest = names.into_iter().filter(|n| n.as_str() > after);
        let page: Vec<Name> = rest.by_ref().take(limit).collect();
        let more = rest.next().is_some();
        let mut out = Vec::with_capacity(page.len());
        for name in page {
            let key = self.keys.workflow(&name);
            let mut pipe = redis::pipe();
            pipe.cmd("HGET").arg(&key).arg(FIELD_LATEST);
            let replies = ask::all_good(ask::ask_twice(&self.redis, slot_of(key.as_bytes()), &pipe).await?)?;
            let latest = replies.first().map_or(0, number);
            if latest == 0 {
                continue;
            }
            let mut get = redis::cmd("HGET");
            get.arg(&key).arg(format!("at{latest}"));
            let at = reply::number(&ask::one(&self.redis, &key, get).await?).map(|n| n.max(0) as u64);
            out.push((name, latest, at));
        }
        Ok((out, more))
    }

    /// Every registered name, in order: read in steps, because there may be many.
    async fn workflow_names(&self) -> Result<Vec<Name>, ClientError> {
        let key = self.keys.workflows();
        let (mut names, mut cursor) = (std::collections::BTreeSet::new(), 0u64);
        loop {
            let mut scan = redis::cmd("SSCAN");
            scan.arg(&key).arg(cursor).arg("COUNT").arg(500);
            let found = ask::one(&self.redis, &key, scan).await?;
            let parts = reply::array(&found).unwrap_or_default();
            let items = parts.get(1).and_then(reply::array).unwrap_or_default();
            names.extend(items.iter().filter_map(reply::text).filter_map(|t| Name::new(t).ok()));
            cursor = parts.first().and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or(0);
            if cursor == 0 {
                return Ok(names.into_iter().collect());
            }
        }
    }
}

fn number(value: &Value) -> u32 {
    reply::number(value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}
