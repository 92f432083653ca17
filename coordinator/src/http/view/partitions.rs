//! Partitions and their quarantines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A partition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartitionView {
    /// Its number.
    pub id: u16,
    /// The slot of Redis Cluster that it is in.
    pub slot: u16,
    /// Who owns it now; none if nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its present reign.
    pub reign: String,
    /// Commits so far.
    pub seq: u64,
    /// Everything up to this entry of its log is decided.
    pub offset: String,
    /// Log entries that are not decided yet.
    pub log_lag: u64,
    /// Timers that are set.
    pub timers: u64,
    /// Work items that are not finished.
    pub todo: u64,
    /// Open dead letters.
    pub dead_letters: u64,
    /// Entries in quarantine.
    pub quarantine: u64,
    /// Runs that go on.
    pub active: u64,
    /// Counters of what was dropped or repaired.
    #[serde(default)]
    pub counters: BTreeMap<String, i64>,
}

/// Asks for more partitions. Runs do not move; partitions are never taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddPartitions {
    /// How many there shall be in all, at most 4096.
    pub count: u16,
}

/// An entry that could not be decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuarantineView {
    /// `<partition>-<milliseconds>-<sequence>`.
    pub id: String,
    /// When it was put there.
    pub at: String,
    /// Why.
    pub why: String,
    /// Size of the entry.
    pub bytes: u64,
    /// What it says, if it can be read; only where one entry is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub entry: Option<serde_json::Value>,
    /// Its first 4,096 bytes in hex; only where one entry is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// An entry was taken out of quarantine for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Discarded {
    /// Its id.
    pub id: String,
}
