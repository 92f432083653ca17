//! A small fleet over the server in memory: one owner at a time, workers that speak the protocol, a client.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use redis::Value;
use stepfleet_coordinator::{
    machine::run::Step,
    shell::owner::{Memory, Owner, OwnerError},
    store::{
        history, kept,
        link::{Dial, Link, LinkError},
        partition::{Partition, TurnError},
        record, reply, workflows,
    },
};
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId, RunId, StreamId, WorkerId},
    keys::{GROUP, Keys, PREFIX_DEFAULT, PartitionKeys, slot},
    message::{Body, Command, Job, JobRef, JobResult, LogEntry, NewRun, Outcome, Results, Submit, Verb},
    name::Name,
    value::Payload,
    workflow::Workflow,
};

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
    dial: D,
    link: Option<D::Link>,
    next: u64,
    now_ms: u64,
}

impl<D: Dial> Client<D> {
    pub(crate) fn new(dial: D, seed: u64) -> Self {
        Self { dial, link: None, next: seed << 32, now_ms: 1_800_000_000_000 }
    }

    /// One trip, with a new connection after a lost one.
    pub(crate) async fn trip(&mut self, pipe: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        if self.link.is_none() {
            self.link = Some(self.dial.dial(slot(PARTITION), Duration::from_secs(3)).await?);
        }
        let result = self.link.as_mut().expect("just dialled").trip(pipe).await;
        if result.is_err() {
            self.link = None;
        }
        result
    }

    /// Appends an entry to the log.
    pub(crate) async fn append(&mut self, body: Body) -> Result<StreamId, LinkError> {
        let wire = codec::encode(&LogEntry::new(body));
        let mut pipe = redis::pipe();
        pipe.cmd("XADD").arg(keys().log()).arg("*").arg(wire.field).arg(wire.bytes);
        let replies = self.trip(&pipe).await?;
        if let Some(refused) = replies.first().and_then(reply::error) {
            return Err(LinkError::Lost(refused));
        }
        let id: StreamId = replies.first().and_then(reply::text).and_then(|t| t.parse().ok()).unwrap_or_default();
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

/// What is stored of a run: record, transitions.
pub(crate) struct Stored {
    pub(crate) record: stepfleet_coordinator::store::record::RunRecord,
    pub(crate) steps: BTreeMap<u32, stepfleet_coordinator::machine::run::Step>,
    pub(crate) history: Vec<stepfleet_coordinator::machine::decision::Transition>,
}

pub(crate) async fn stored<D: Dial>(client: &mut Client<D>, run: RunId) -> Result<Option<Stored>, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("HGETALL").arg(keys().run(&run)).cmd("GET").arg(keys().history(&run));
    let mut replies = client.trip(&pipe).await?.into_iter();
    let fields = reply::pairs(replies.next().expect("two replies"));
    let history = history::unpack(&kept::whole(&fields, replies.next().as_ref().and_then(reply::bytes)));
    let get = |name: &str| fields.iter().find(|(f, _)| f == name.as_bytes()).map(|(_, v)| v.clone());
    let Some(bytes): Option<Bytes> = get(record::FIELD_RECORD) else { return Ok(None) };
    let record = record::unpack_run(&bytes).expect("a record of ours");
    let mut steps = BTreeMap::new();
    let (mut fields, mut chunk) = (fields, 0);
    // A wide run has its steps in several hashes.
    while !fields.is_empty() {
        read_steps(&fields, &mut steps);
        chunk += 1;
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(keys().chunk(&run, chunk));
        fields = reply::pairs(client.trip(&pipe).await?.swap_remove(0));
    }
    Ok(Some(Stored { record, steps, history }))
}

fn read_steps(fields: &[(Bytes, Bytes)], steps: &mut BTreeMap<u32, Step>) {
    for (field, value) in fields {
        if let Some(index) = std::str::from_utf8(field).ok().and_then(|t| t.parse().ok()) {
            steps.insert(index, record::unpack_step(value).expect("a step of ours"));
        }
    }
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
