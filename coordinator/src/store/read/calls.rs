//! The external calls of a run's steps, as their workers recorded them.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::{
    call::{CallId, CallRecord},
    codec,
    id::JobId,
    keys::slot,
    limits::CHUNK_STEPS,
    state::State,
};

use super::{super::client::Client, ClientError, reply, runs::Found};
use crate::store::record;

/// Trips of one page at most: a scan may find nothing for a while.
const TRIPS_MAX: usize = 20;

/// A recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCall {
    /// Its id within the run.
    pub id: CallId,
    /// Its record.
    pub record: CallRecord,
    /// Whether the job that makes it is still at work, as far as the run knows.
    pub is_live: bool,
}

/// A page of calls.
#[derive(Debug, Default)]
pub struct Calls {
    /// In the order of steps, generations, attempts and calls; but for other pages.
    pub calls: Vec<FoundCall>,
    /// Where the next page begins; none at the end.
    pub next: Option<u64>,
}

impl Client {
    /// Recorded calls of a run, about `limit` of them: a scan stops where the server can go on. Records that cannot be
    /// read are left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn calls(&self, run: &Found, from: u64, limit: usize) -> Result<Calls, ClientError> {
        let partition = run.id.partition();
        let key = self.keys.partition(partition).calls(&run.id);
        let (mut found, mut cursor) = (BTreeMap::new(), from);
        for _ in 0..TRIPS_MAX {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&key).arg(cursor).arg("COUNT").arg(limit);
            let answer = self.ask_partition(partition, scan).await?;
            let [next, fields] = reply::array(&answer).unwrap_or_default() else {
                return Err(ClientError::Broken("a scan of calls"));
            };
            cursor = reply::text(next).and_then(|t| t.parse().ok()).ok_or(ClientError::Broken("a scan of calls"))?;
            for (field, bytes) in reply::pairs(fields.clone()) {
                let id = std::str::from_utf8(&field).ok().and_then(|text| text.parse::<CallId>().ok());
                if let (Some(id), Ok(record)) = (id, codec::unpack::<CallRecord>(&bytes)) {
                    found.insert(id, record);
                }
            }
            if cursor == 0 || found.len() >= limit {
                break;
            }
        }
        let at_work = self.jobs_at_work(run, found.keys().map(|id| id.index).collect()).await?;
        let live = |id: &CallId, record: &CallRecord| at_work.get(&id.index) == Some(&record.job);
        let calls = found.into_iter().map(|(id, record)| FoundCall { is_live: live(&id, &record), id, record });
        Ok(Calls { calls: calls.collect(), next: (cursor != 0).then_some(cursor) })
    }

    /// The jobs that these steps wait for.
    async fn jobs_at_work(&self, run: &Found, steps: BTreeSet<u32>) -> Result<BTreeMap<u32, JobId>, ClientError> {
        let keys = self.keys.partition(run.id.partition());
        let commands = steps.iter().map(|index| {
            let chunk = index / CHUNK_STEPS;
            let mut get = redis::cmd("HGET");
            get.arg(if chunk == 0 { keys.run(&run.id) } else { keys.chunk(&run.id, chunk) }).arg(index);
            (slot(run.id.partition()), get)
        });
        let states = self.ask_all(commands.collect()).await?;
        let jobs = steps.iter().zip(&states).filter_map(|(index, value)| {
            let step = reply::bytes(value).and_then(|bytes| record::unpack_step(bytes).ok())?;
            // A short job is queued to its end: nobody tells that it began.
            let at_work = matches!(step.state, State::Queued | State::Processing);
            Some((*index, step.job.filter(|_| at_work)?))
        });
        Ok(jobs.collect())
    }
}
