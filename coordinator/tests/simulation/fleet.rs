//! A small fleet over the server in memory: one owner at a time, workers that speak the protocol, a client.

use std::{cell::RefCell, time::Duration};

use redis::Value;
use stepfleet_coordinator::{
    shell::owner::{Memory, Owner, OwnerError},
    store::{
        link::{Dial, LinkError},
        partition::{Partition, TurnError},
        reply, workflows,
    },
};
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId, RunId, StreamId, WorkerId},
    keys::{GROUP, Keys, PREFIX_DEFAULT, PartitionKeys},
    message::{Body, Command, Job, JobRef, JobResult, NewRun, Outcome, Results, Submit, Verb},
    name::Name,
    value::Payload,
    workflow::Workflow,
};

#[path = "line.rs"]
mod line;

pub(crate) use line::{Line, Stored};

/// The partition of every test here.
pub(crate) const PARTITION: PartitionId = PartitionId(0);

thread_local! {
    /// The key prefix of the test on this thread.
    pub(crate) static PREFIX: RefCell<String> = RefCell::new(PREFIX_DEFAULT.to_string());
}

/// Keys of the test's installation.
pub(crate) fn all_keys() -> Keys {
    PREFIX.with_borrow(|prefix| Keys::new(prefix))
}

/// Keys of the partition.
pub(crate) fn keys() -> PartitionKeys {
    all_keys().partition(PARTITION)
}

/// A client and its connection.
pub(crate) struct Client<D: Dial> {
    line: Line<D>,
    next: u64,
    now_ms: u64,
}

impl<D: Dial> Client<D> {
    pub(crate) fn new(dial: D, seed: u64) -> Self {
        Self { line: Line::within(dial, Duration::from_secs(3)), next: seed << 32, now_ms: 1_800_000_000_000 }
    }

    /// One trip, with a new connection after a lost one.
    pub(crate) async fn trip(&mut self, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        self.line.trip(pipe).await
    }

    /// Appends an entry to the log.
    pub(crate) async fn append(&mut self, body: Body) -> Result<StreamId, LinkError> {
        let id = self.line.append(&keys(), body).await?;
        self.now_ms = id.ms;
        Ok(id)
    }

    /// Fresh ids, of the time of the last entry: an owner trusts one that is young, and looks back for others.
    pub(crate) fn run_id(&mut self) -> RunId {
        self.next += 1;
        RunId::new(PARTITION, self.now_ms, self.next)
    }

    pub(crate) fn command_id(&mut self) -> CommandId {
        self.next += 1;
        CommandId(uuid::Uuid::from_u128(u128::from(self.next)))
    }

    /// Stores the plan and submits a run; `again` if the same run was sent before.
    pub(crate) async fn submit(
        &mut self,
        run: RunId,
        workflow: &Workflow,
        input: Option<&serde_json::Value>,
        again: bool,
    ) -> Result<CommandId, LinkError> {
        let plan = workflows::Stored::new(workflow);
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(keys().plan(&plan.hash)).arg(&plan.bytes[..]).arg("NX");
        self.trip(&pipe).await?;
        let input = input.map(|v| Payload::Inline(codec::pack(v).into()));
        let new = NewRun { run, plan: plan.hash, version: None, input, traceparent: None };
        let id = self.command_id();
        self.append(Body::Submit(Submit { id, actor: "test".into(), runs: vec![new], again })).await?;
        Ok(id)
    }

    pub(crate) async fn command(&mut self, run: RunId, verb: Verb) -> Result<CommandId, LinkError> {
        let id = self.command_id();
        let command = Command { id, actor: "test".into(), run, reason: None, verb, again: false, campaign: None };
        self.append(Body::Command(command)).await?;
        Ok(id)
    }
}

/// A worker that speaks the protocol: takes jobs, answers them in one entry.
pub(crate) struct Worker<D: Dial> {
    pub(crate) id: WorkerId,
    pub(crate) client: Client<D>,
    queue: Name,
}

impl<D: Dial> Worker<D> {
    pub(crate) fn new(dial: D, boot: u64) -> Self {
        let name = Name::new("w").expect("a legal name");
        let queue = Name::new("default").expect("a legal name");
        Self { id: WorkerId::new(&name, boot), client: Client::new(dial, 1_000 + boot), queue }
    }

    /// Takes up to `count` jobs.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Vec<(JobRef, Job)>, LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(self.id.as_str()).arg("COUNT").arg(count);
        pipe.arg("STREAMS").arg(keys().jobs(&self.queue)).arg(">");
        let replies = self.client.trip(&pipe).await?;
        let entries = replies.into_iter().next().map(reply::read).unwrap_or_default();
        let mut out = Vec::new();
        for (entry, fields) in entries {
            let (field, bytes) = &fields[0];
            let job: Job = codec::decode(field, bytes).expect("a job of ours");
            let of = JobRef { job: job.id, run: job.run, index: job.index, queue: self.queue.clone(), entry };
            out.push((of, job));
        }
        Ok(out)
    }

    pub(crate) async fn answer(&mut self, results: Vec<(JobRef, Outcome)>) -> Result<(), LinkError> {
        let results =
            results.into_iter().map(|(of, outcome)| JobResult { of, run_ms: 1, outcome, gate: None }).collect();
        self.client.append(Body::Results(Results { worker: self.id.clone(), results })).await.map(drop)
    }
}

/// Takes the partition anew, whatever happened before.
pub(crate) async fn own<D: Dial>(dial: &D, random: u64, memory: Memory) -> Result<Owner<D::Link>, OwnerError> {
    let partition = Partition::take(dial, &all_keys(), PARTITION, random).await?;
    Owner::begin(partition, "test", memory).await
}

/// A workflow of `steps`, each with what it needs, all of the handler `noop`.
pub(crate) fn workflow(steps: &[(&str, &[&str])]) -> Workflow {
    let steps: serde_json::Map<String, serde_json::Value> = steps
        .iter()
        .map(|(name, needs)| ((*name).to_string(), serde_json::json!({"handler": "noop", "needs": needs})))
        .collect();
    serde_json::from_value(serde_json::json!({"workflow": "w", "steps": steps})).expect("a legal workflow")
}

/// A chain of `n` steps.
pub(crate) fn chain(n: usize) -> Workflow {
    let steps: serde_json::Map<String, serde_json::Value> = (0..n)
        .map(|i| {
            let needs: Vec<String> = if i == 0 { vec![] } else { vec![format!("s{}", i - 1)] };
            (format!("s{i}"), serde_json::json!({"handler": "noop", "needs": needs}))
        })
        .collect();
    serde_json::from_value(serde_json::json!({"workflow": "chain", "steps": steps})).expect("a legal workflow")
}

/// What is stored of a run.
pub(crate) async fn stored<D: Dial>(client: &mut Client<D>, run: RunId) -> Result<Option<Stored>, LinkError> {
    client.line.stored(&keys(), run).await
}

/// Whether an owner ended in a way that the next one mends.
pub(crate) fn is_doubt(error: &OwnerError) -> bool {
    matches!(error, OwnerError::Turn(TurnError::Link(_) | TurnError::Fenced | TurnError::Refused(_)))
}

impl<D: Dial> Worker<D> {
    /// The worker's own pending list, read until it is known.
    pub(crate) async fn own_pending(&mut self) -> Vec<(JobRef, Job)> {
        loop {
            let mut pipe = redis::pipe();
            pipe.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(self.id.as_str()).arg("COUNT").arg(100);
            pipe.arg("STREAMS").arg(keys().jobs(&self.queue)).arg("0");
            let Ok(replies) = self.client.trip(&pipe).await else { continue };
            let entries = replies.into_iter().next().map(reply::read).unwrap_or_default();
            return entries
                .into_iter()
                .filter_map(|(entry, fields)| {
                    let (field, bytes) = fields.first()?;
                    let job: Job = codec::decode(field, bytes).ok()?;
                    let of = JobRef { job: job.id, run: job.run, index: job.index, queue: self.queue.clone(), entry };
                    Some((of, job))
                })
                .collect();
        }
    }
}
