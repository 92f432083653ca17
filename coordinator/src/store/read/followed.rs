//! What a follower of the outbox wants to know of runs.

use std::{collections::HashMap, sync::Arc};

use stepfleet_protocol::{id::RunId, keys::slot, trace::TraceContext, workflow::Workflow};

use super::super::{
    client::{Client, ClientError},
    record, reply,
};

/// Of a run.
#[derive(Debug, Clone)]
pub struct Followed {
    /// What it follows.
    pub workflow: Arc<Workflow>,
    /// Its trace, in hex digits, if it has one.
    pub trace: Option<String>,
}

/// The id in a stored trace context.
pub fn trace_id(stored: Option<&[u8]>) -> Option<String> {
    let context: TraceContext = std::str::from_utf8(stored?).ok()?.parse().ok()?;
    Some(context.trace_id())
}

impl Client {
    /// What these runs follow, and their traces. Runs and plans that are gone are left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn followed_by(&self, runs: Vec<RunId>) -> Result<HashMap<RunId, Followed>, ClientError> {
        let get = |run: &RunId| {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(self.keys.partition(run.partition()).run(run)).arg(record::FIELD_RECORD).arg(record::FIELD_TRACE);
            (slot(run.partition()), cmd)
        };
        let replies = self.ask_all(runs.iter().map(get).collect()).await?;
        let mut out = HashMap::new();
        for (run, value) in runs.into_iter().zip(replies) {
            let Some([packed, trace]) = reply::array(&value) else { continue };
            let Some(record) = reply::bytes(packed).and_then(|b| record::unpack_run(b).ok()) else { continue };
            let Some(workflow) = self.plan(run.partition(), &record.plan).await? else { continue };
            out.insert(run, Followed { workflow, trace: trace_id(reply::bytes(trace)) });
        }
        Ok(out)
    }
}
