//! Events of the fleet: what was done to its circuit breakers, queues and policies.

use stepfleet_protocol::{
    audit::{AuditEntry, Verdict},
    codec::{self, DecodeError},
    id::StreamId,
};

use crate::store::reply::Fields;

/// One change of the fleet, as the audit store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetEvent {
    /// Its entry in the fleet's audit stream, which tells it from every other.
    pub entry: StreamId,
    /// What was done, about what, by whom and why. A circuit breaker that acts by itself has the actor `breaker`.
    pub change: AuditEntry,
}

impl FleetEvent {
    /// The change of an entry, if it is wanted; what was refused changed nothing.
    ///
    /// # Errors
    /// It cannot be read, or is of a newer version.
    pub(super) fn read(
        entry: StreamId,
        fields: &Fields,
        wants: impl Fn(&str) -> bool,
    ) -> Result<Option<Self>, DecodeError> {
        let (field, bytes) = fields.first().ok_or_else(|| DecodeError::Malformed("no field".into()))?;
        let change: AuditEntry = codec::decode(field, bytes)?;
        let wanted = change.outcome == Verdict::Done && wants(&change.action);
        Ok(wanted.then_some(Self { entry, change }))
    }
}
