//! Who follows the outbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a subscriber is in one partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FollowedPartition {
    /// The partition.
    pub partition: u16,
    /// Everything up to this entry of the partition's outbox is delivered or set aside.
    pub entry: String,
    /// Entries behind it.
    pub lag: u64,
    /// Age of the oldest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
}

/// How far a subscriber is in the events of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FollowedFleet {
    /// Everything up to this entry of the fleet's audit stream is delivered, set aside or none of its affair.
    pub entry: String,
    /// Entries behind it.
    pub lag: u64,
    /// Age of the oldest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
}

/// A subscriber of the outbox. Counts are sums over partitions, since the subscriber first ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubscriberView {
    /// Its name.
    pub name: String,
    /// Entries that it has not seen.
    pub lag: u64,
    /// Age of the oldest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Entries that were delivered.
    pub delivered: u64,
    /// Entries that it refused to the last and that were set aside.
    pub undelivered: u64,
    /// Entries that were trimmed before it had seen them.
    pub missed: u64,
    /// Each partition by itself.
    pub partitions: Vec<FollowedPartition>,
    /// The events of the fleet: circuit breakers, queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FollowedFleet>,
}

/// An entry of the outbox that a subscriber did not take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UndeliveredView {
    /// `<partition>-<milliseconds>-<sequence>`, or `fleet-<milliseconds>-<sequence>`.
    pub id: String,
    /// When it was set aside.
    pub at: String,
    /// The subscriber.
    pub subscriber: String,
    /// The entry of the partition's outbox.
    pub entry: String,
    /// What the last try ended with.
    pub error: String,
    /// How often it was tried; 0 if the entry cannot be read.
    pub attempts: u32,
}
