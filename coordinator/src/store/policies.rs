//! The fleet's policies: one document with a version that grows by one with every change, and copies of the last hundred
//! versions. Who writes it is an operator; owners only read it, once a second.

use redis::{Cmd, Value};
use serde::Serialize;
use stepfleet_protocol::{
    codec,
    failure::cut,
    keys::{Keys, slot_of},
    policy::Policies,
};

use super::{
    ask::{self, AskError},
    client::{Client, ClientError},
    reply, script,
};

/// Versions of which a copy is kept.
pub const VERSIONS_KEPT: u64 = 100;
/// Bytes of the difference in an audit entry; the rest is cut.
const DETAIL_BYTES_MAX: usize = 64 << 10;
const FIELDS: [&str; 5] = ["version", "doc", "at", "actor", "reason"];

/// One version of the fleet's policies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// The version; 0 if nobody ever wrote one.
    pub version: u64,
    /// What was written.
    pub policies: Policies,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Who wrote it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
}

/// A change of the policies.
#[derive(Debug, Clone)]
pub struct Change {
    /// The version that is changed; 0 if there must be none.
    pub expected: u64,
    /// What holds from now on.
    pub policies: Policies,
    /// The difference, for the audit.
    pub diff: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Who asks.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is the version of this number now.
    Version(u64),
    /// The present version is another one than was expected. Nothing was done.
    Changed {
        /// The present version.
        present: u64,
    },
}

/// An entry of the audit.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    v: u8,
    actor: &'a str,
    action: &'a str,
    target: &'a str,
    reason: Option<&'a str>,
    outcome: &'a str,
    detail: String,
}

/// The version of the present policies, as a number; nil if nobody ever wrote any.
pub fn version(keys: &Keys) -> Cmd {
    let mut get = redis::cmd("HGET");
    get.arg(keys.fleet_policies()).arg("version");
    get
}

/// The present policies, for [`read`].
pub fn present(keys: &Keys) -> Cmd {
    of(&keys.fleet_policies())
}

fn of(key: &str) -> Cmd {
    let mut get = redis::cmd("HMGET");
    get.arg(key).arg(&FIELDS);
    get
}

/// The reply to [`present`]; none if there are no such policies.
///
/// # Errors
/// What is stored cannot be read.
pub fn read(found: &Value) -> Result<Option<Stored>, ClientError> {
    let broken = ClientError::Broken("the fleet's policies");
    let Some([version, doc, at, actor, reason]) = reply::array(found).and_then(|f| <&[Value; 5]>::try_from(f).ok())
    else {
        return Err(broken);
    };
    if matches!(version, Value::Nil) {
        return Ok(None);
    }
    let number = |value| reply::number(value).and_then(|n| u64::try_from(n).ok());
    let policies = reply::bytes(doc).and_then(|bytes| codec::unpack(bytes).ok());
    let (Some(version), Some(policies)) = (number(version), policies) else { return Err(broken) };
    let text = |value| reply::text(value).unwrap_or_default().to_owned();
    let (actor, reason) = (text(actor), Some(text(reason)).filter(|r| !r.is_empty()));
    Ok(Some(Stored { version, policies, at_ms: number(at).unwrap_or(0), actor, reason }))
}

/// Writes a change with its audit entry, if nobody came first. Replies as `apply_policies.lua` says; see [`applied`].
pub fn apply_policies(keys: &Keys, change: &Change) -> Cmd {
    let next = change.expected + 1;
    let entry = Entry {
        v: codec::VERSION,
        actor: &change.actor,
        action: "policies.apply",
        target: "policies",
        reason: change.reason.as_deref(),
        outcome: "done",
        detail: cut(change.diff.clone(), DETAIL_BYTES_MAX),
    };
    let mut eval = redis::cmd("EVAL");
    eval.arg(script::APPLY_POLICIES).arg(4);
    // Version 0 has no copy: before the hundredth change nothing is taken away.
    let old = keys.fleet_policies_of(next.saturating_sub(VERSIONS_KEPT));
    eval.arg(keys.fleet_policies()).arg(keys.fleet_audit()).arg(keys.fleet_policies_of(next)).arg(old);
    eval.arg(change.expected).arg(codec::pack(&change.policies)).arg(change.at_ms);
    eval.arg(&change.actor).arg(change.reason.as_deref().unwrap_or_default()).arg(codec::pack(&entry));
    eval
}

/// The reply to [`apply_policies`]; none if it is of an impossible shape.
pub fn applied(found: &Value) -> Option<Applied> {
    match reply::number(found)? {
        version @ 1.. => Some(Applied::Version(version.unsigned_abs())),
        present => Some(Applied::Changed { present: (present + 1).unsigned_abs() }),
    }
}

impl Client {
    /// The present policies; version 0 and empty if nobody ever wrote any.
    ///
    /// # Errors
    /// Redis' fault, or what is stored cannot be read.
    pub async fn policies(&self) -> Result<Stored, ClientError> {
        let found = ask::one(&self.redis, &self.keys.fleet_policies(), present(&self.keys)).await?;
        Ok(read(&found)?.unwrap_or_default())
    }

    /// One of the last hundred versions; none if it is not kept, or never was.
    ///
    /// # Errors
    /// As [`Self::policies`].
    pub async fn policies_of(&self, version: u64) -> Result<Option<Stored>, ClientError> {
        let key = self.keys.fleet_policies_of(version);
        read(&ask::one(&self.redis, &key, of(&key)).await?)
    }

    /// At most `limit` of the last 100 versions, those before `before` if it is given, newest first.
    ///
    /// # Errors
    /// As [`Self::policies`].
    pub async fn policies_history(&self, before: Option<u64>, limit: u64) -> Result<Vec<Stored>, ClientError> {
        let key = self.keys.fleet_policies();
        let latest = ask::one(&self.redis, &key, version(&self.keys)).await?;
        let latest = reply::number(&latest).map_or(0, i64::unsigned_abs);
        let oldest = latest.saturating_sub(VERSIONS_KEPT) + 1;
        let end = before.unwrap_or(u64::MAX).min(latest + 1);
        let first = end.saturating_sub(limit).max(oldest);
        let mut out = Vec::new();
        // One by one: a version may be large.
        for version in (first..end).rev() {
            out.extend(self.policies_of(version).await?);
        }
        Ok(out)
    }

    /// Makes a change, if nobody came first.
    ///
    /// # Errors
    /// Redis' fault; after `Unavailable` it is unknown whether the change was made.
    pub async fn apply_policies(&self, change: &Change) -> Result<Applied, ClientError> {
        let mut pipe = redis::pipe();
        pipe.add_command(apply_policies(&self.keys, change));
        let slot = slot_of(self.keys.fleet_policies().as_bytes());
        let replies = ask::all_good(ask::ask(&self.redis, slot, &pipe).await?)?;
        let unexpected = AskError::Unexpected("the script of the policies");
        Ok(replies.first().and_then(applied).ok_or(unexpected)?)
    }
}
