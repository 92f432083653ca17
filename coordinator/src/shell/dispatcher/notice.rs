//! What a subscriber is told.

use stepfleet_protocol::{
    codec::{self, DecodeError},
    id::{PartitionId, RunId, StreamId},
};

use super::super::core::Outbox;
use crate::{
    machine::decision::{Transition, Why},
    store::{history, read::followed::Followed, reply::Fields},
};

/// The transitions of one run in one commit.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The partition.
    pub partition: PartitionId,
    /// The entry of its outbox: with the run it tells this notice from every other.
    pub entry: StreamId,
    /// The run.
    pub run: RunId,
    /// What the run follows, and its trace; none if run or plan are gone.
    pub followed: Option<Followed>,
    /// The transitions, in order.
    pub transitions: Vec<Transition>,
}

impl Notice {
    /// The notices of an outbox entry in which something happened for a wanted reason.
    ///
    /// # Errors
    /// It cannot be read, or is of a newer version.
    pub(super) fn read(
        (partition, entry): (PartitionId, StreamId),
        fields: &Fields,
        wants: impl Fn(Why) -> bool,
    ) -> Result<Vec<Self>, DecodeError> {
        let (field, bytes) = fields.first().ok_or_else(|| DecodeError::Malformed("no field".into()))?;
        let outbox: Outbox = codec::decode(field, bytes)?;
        let notice = |(run, packed): (RunId, bytes::Bytes)| {
            let transitions = history::unpack(&packed);
            Self { partition, entry, run, followed: None, transitions }
        };
        // Most runs go well, and nobody wants to hear of them: what is packed is looked at first.
        let wanted = outbox.runs.into_iter().filter(|(_, packed)| history::tells_of(packed, &wants));
        Ok(wanted.map(notice).collect())
    }

    /// The name of a step, if it is known.
    pub fn step_name(&self, index: u32) -> Option<&str> {
        let steps = &self.followed.as_ref()?.workflow.steps;
        steps.keys().nth(index as usize).map(|name| name.as_str())
    }
}
