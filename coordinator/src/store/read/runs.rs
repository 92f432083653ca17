//! One run: its record, its steps page by page, its failures, its values.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use stepfleet_protocol::{
    codec,
    id::{PartitionId, RunId},
    keys::slot,
    limits::CHUNK_STEPS,
    state::State,
    workflow::Workflow,
};

use super::{super::client::Client, ClientError, count, reply};
use crate::{
    machine::{
        event::Timer,
        run::{AttemptError, Step, Undoing},
    },
    store::record::{self, RunRecord},
};

/// A run as it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id.
    pub id: RunId,
    /// Its record.
    pub record: RunRecord,
    /// W3C trace context.
    pub trace: Option<String>,
    /// What it follows; none if the plan is gone.
    pub workflow: Option<Arc<Workflow>>,
}

/// A value as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundValue {
    /// Its size.
    pub bytes: u64,
    /// Its MessagePack bytes; none if it is larger than was asked for.
    pub value: Option<Bytes>,
}

/// How many steps of a run there are to show: those that undo others only once something is undone.
pub fn shown_steps(run: &Found) -> u32 {
    let Some(workflow) = &run.workflow else { return 0 };
    let undoing = run.record.undoing != Undoing::None;
    let undo = workflow.steps.values().filter(|s| undoing && s.compensate.is_some()).count();
    (workflow.steps.len() + undo) as u32
}

impl Client {
    /// A run; none if there is no such run (any more).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn run(&self, id: RunId) -> Result<Option<Found>, ClientError> {
        let partition = id.partition();
        if !self.knows(partition).await? {
            return Ok(None);
        }
        let mut get = redis::cmd("HMGET");
        get.arg(self.keys.partition(partition).run(&id)).arg(record::FIELD_RECORD).arg(record::FIELD_TRACE);
        let fields = self.ask_partition(partition, get).await?;
        let fields = reply::array(&fields).unwrap_or_default();
        let Some(bytes) = fields.first().and_then(reply::bytes) else { return Ok(None) };
        let record = record::unpack_run(bytes).map_err(|_| ClientError::Broken("a run record"))?;
        let trace = fields.get(1).and_then(reply::text).map(str::to_owned);
        let workflow = self.plan(partition, &record.plan).await?;
        Ok(Some(Found { id, record, trace, workflow }))
    }

    /// The states of steps `from .. from + limit` of a run, as many as there are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn steps(&self, run: &Found, from: u32, limit: u32) -> Result<Vec<(u32, Step)>, ClientError> {
        let Some(workflow) = &run.workflow else { return Ok(Vec::new()) };
        let keys = self.keys.partition(run.id.partition());
        let regular = workflow.steps.len() as u32;
        let end = from.saturating_add(limit).min(shown_steps(run));
        let (mut commands, mut out) = (Vec::new(), Vec::new());
        let mut at = from;
        while at < end {
            let chunk = at / CHUNK_STEPS;
            let next = ((chunk + 1) * CHUNK_STEPS).min(end);
            let mut get = redis::cmd("HMGET");
            get.arg(if chunk == 0 { keys.run(&run.id) } else { keys.chunk(&run.id, chunk) });
            for index in at..next {
                get.arg(index);
            }
            commands.push((slot(run.id.partition()), get));
            at = next;
        }
        let mut index = from;
        for value in self.ask_all(commands).await? {
            for field in reply::array(&value).unwrap_or_default() {
                let step = match reply::bytes(field) {
                    Some(bytes) => record::unpack_step(bytes).map_err(|_| ClientError::Broken("a step state"))?,
                    None if index < regular => Step::fresh(workflow.steps[index as usize].needs.len() as u32),
                    None => Step::fresh(0),
                };
                out.push((index, step));
                index += 1;
            }
        }
        Ok(out)
    }

    /// When the next attempts of those of these steps that are retrying are due, by the step's number, in Unix milliseconds
    /// of the server. A step whose wait was over a moment ago is left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next_attempts(&self, run: RunId, steps: &[(u32, Step)]) -> Result<HashMap<u32, u64>, ClientError> {
        let waiting = steps.iter().filter(|(_, step)| step.state == State::Retrying);
        let waiting: Vec<(u32, Vec<u8>)> = waiting
            .filter_map(|(index, step)| {
                let timer = Timer::Retry { index: *index, job: step.job? };
                Some((*index, record::pack_timer(run, timer)))
            })
            .collect();
        if waiting.is_empty() {
            return Ok(HashMap::new());
        }
        let mut scores = redis::cmd("ZMSCORE");
        scores.arg(self.keys.partition(run.partition()).timers());
        for (_, timer) in &waiting {
            scores.arg(&timer[..]);
        }
        let found = self.ask_partition(run.partition(), scores).await?;
        let dues = reply::array(&found).unwrap_or_default().iter().map(reply::score);
        Ok(waiting.iter().zip(dues).filter_map(|((index, _), due)| Some((*index, due?))).collect())
    }

    /// The last failed attempts of a run's steps, latest first, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn errors(&self, run: RunId, limit: usize) -> Result<Vec<AttemptError>, ClientError> {
        let mut get = redis::cmd("LRANGE");
        get.arg(self.keys.partition(run.partition()).errors(&run)).arg(-(limit as i64)).arg(-1);
        let found = self.ask_partition(run.partition(), get).await?;
        let items = reply::array(&found).unwrap_or_default().iter().rev();
        Ok(items.filter_map(reply::bytes).filter_map(|b| codec::unpack(b).ok()).collect())
    }

    /// A value of a partition, if it is no larger than `bytes_max`; none if there is no such value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn value(
        &self,
        partition: PartitionId,
        id: &str,
        bytes_max: u64,
    ) -> Result<Option<FoundValue>, ClientError> {
        let key = self.keys.partition(partition).value(id);
        let mut size = redis::cmd("STRLEN");
        size.arg(&key);
        let bytes = count(Some(&self.ask_partition(partition, size).await?));
        if bytes == 0 {
            return Ok(None);
        }
        if bytes > bytes_max {
            return Ok(Some(FoundValue { bytes, value: None }));
        }
        let mut get = redis::cmd("GET");
        get.arg(&key);
        let found = self.ask_partition(partition, get).await?;
        Ok(reply::bytes(&found).map(|b| FoundValue { bytes, value: Some(Bytes::copy_from_slice(b)) }))
    }
}
