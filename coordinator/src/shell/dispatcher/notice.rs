//! What a subscriber is told.

use std::sync::Arc;

use stepfleet_protocol::{
    codec::{self, DecodeError},
    id::{PartitionId, RunId, StreamId},
    workflow::Workflow,
};

use super::super::core::Outbox;
use crate::{machine::decision::Transition, store::history, store::reply::Fields};

/// The transitions of one run in one commit.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The partition.
    pub partition: PartitionId,
    /// The entry of its outbox: with the run it tells this notice from every other.
    pub entry: StreamId,
    /// The run.
    pub run: RunId,
    /// What the run follows; none if run or plan are gone, and while [`super::Subscriber::wants`] is asked.
    pub workflow: Option<Arc<Workflow>>,
    /// The transitions, in order.
    pub transitions: Vec<Transition>,
}

impl Notice {
    /// The notices of an outbox entry.
    ///
    /// # Errors
    /// It cannot be read, or is of a newer version.
    pub(super) fn read(partition: PartitionId, entry: StreamId, fields: &Fields) -> Result<Vec<Self>, DecodeError> {
        let (field, bytes) = fields.first().ok_or_else(|| DecodeError::Malformed("no field".into()))?;
        let outbox: Outbox = codec::decode(field, bytes)?;
        let notice = |(run, packed): (RunId, bytes::Bytes)| {
            let transitions = history::unpack(&packed);
            Self { partition, entry, run, workflow: None, transitions }
        };
        Ok(outbox.runs.into_iter().map(notice).collect())
    }

    /// The name of a step, if it is known.
    pub fn step_name(&self, index: u32) -> Option<&str> {
        let steps = &self.workflow.as_ref()?.steps;
        steps.keys().nth(index as usize).map(|name| name.as_str())
    }
}
