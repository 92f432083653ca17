//! Runs and plans that an owner has loaded, and how they are loaded.
//!
//! Loading goes over the owner's own connection, in trips of bounded size.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use futures::FutureExt;
use redis::Value;
use stepfleet_protocol::{codec, gate::Gate, id::RunId, limits::CHUNK_STEPS, name::Name, workflow::Workflow};

use crate::{
    machine::{
        plan::Plan,
        run::{AttemptError, Run, Step},
    },
    store::{
        kept,
        link::Link,
        partition::{Partition, TurnError},
        record::{self, RecordError, RunRecord},
        reply,
    },
    workflow::template::{Source, Template},
};

/// Runs kept in mind; beyond it those that were not touched by the last batch may go.
pub const RUNS_MAX: usize = 200_000;
/// Plans kept in mind.
const PLANS_MAX: usize = 1_000;
/// Small values kept in mind.
const VALUES_MAX: usize = 10_000;
/// Chunks of step states that are read in one trip: 128 states of about 30 bytes each.
const CHUNKS_PER_TRIP: usize = 200;
/// Bytes of a plan that are read in one trip.
const PLAN_BYTES_PER_TRIP: usize = 1 << 20;

/// A workflow as its owner needs it: the plan for the machine, the inputs for the shell.
#[derive(Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Arc<Plan>,
    /// How the input of each step is made, in the order of the plan's steps.
    pub inputs: Vec<StepInput>,
    /// The dependency that each step speaks to.
    pub targets: Vec<Target>,
    /// The number of each step, by name.
    numbers: HashMap<Name, u32>,
}

/// How the input of a step is made.
#[derive(Debug)]
pub enum StepInput {
    /// There is none.
    None,
    /// Always the same value.
    Static(Bytes),
    /// One value passed on unread.
    Whole(Source),
    /// Rendered.
    Template(Box<Template>),
}

/// The dependency that a step speaks to, and so its circuit breaker.
#[derive(Debug)]
pub enum Target {
    /// That of its handler.
    Handler,
    /// It is named.
    Static(Gate),
    /// Its name is rendered.
    Template(Box<Template>),
}

impl Target {
    fn new(text: Option<&str>) -> Self {
        let Some(text) = text else { return Self::Handler };
        let template = Template::parse(&text.into()).expect("the door refuses expressions that cannot be compiled");
        if !template.is_static() {
            return Self::Template(Box::new(template));
        }
        let plain = template.render(&super::inputs::empty_scope());
        Self::Static(Gate::target(plain.as_ref().ok().and_then(|v| v.as_str()).unwrap_or(text)))
    }
}

impl Compiled {
    /// Compiles a workflow that the door has checked.
    pub fn new(hash: &str, workflow: &Workflow) -> Self {
        let input = |with: &serde_json::Value| match Template::parse(with) {
            Ok(t) if t.is_static() => {
                // Escapes are resolved by rendering, which needs nothing here.
                StepInput::Static(codec::pack(with).into()).unescaped(t)
            }
            Ok(t) => match t.whole() {
                Some(source) => StepInput::Whole(source.clone()),
                None => StepInput::Template(Box::new(t)),
            },
            Err(_) => unreachable!("the door refuses expressions that cannot be compiled"),
        };
        let regular = workflow.steps.values().map(|s| s.with.as_ref());
        let undo = workflow.steps.values().filter_map(|s| s.compensate.as_ref()).map(|c| c.with.as_ref());
        let inputs = regular.chain(undo).map(|with| with.map_or(StepInput::None, input)).collect();
        let regular = workflow.steps.values().map(|s| Target::new(s.breaker.as_deref()));
        let undo = workflow.steps.values().filter_map(|s| s.compensate.as_ref()).map(|_| Target::Handler);
        let targets = regular.chain(undo).collect();
        let numbers = (0..).zip(workflow.steps.keys()).map(|(number, name)| (name.clone(), number)).collect();
        Self { plan: Arc::new(Plan::compile(hash.into(), workflow)), inputs, targets, numbers }
    }

    /// The number of the step with this name.
    pub fn number_of(&self, name: &Name) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

impl StepInput {
    fn unescaped(self, template: Template) -> Self {
        let scope = super::inputs::empty_scope();
        match template.render(&scope) {
            Ok(value) => Self::Static(codec::pack(&value).into()),
            Err(_) => self,
        }
    }
}

/// What an owner has loaded.
#[derive(Debug, Default)]
pub struct Cache {
    /// Runs by id.
    pub runs: HashMap<RunId, Run>,
    /// Plans by key.
    pub plans: HashMap<Arc<str>, Arc<Compiled>>,
    /// Plans that no run follows and that are stored aside: who follows one again has to bring it back.
    pub aside: HashSet<Arc<str>>,
    /// Small values by id.
    pub values: HashMap<String, Bytes>,
}

impl Cache {
    /// Keeps a small value in mind, at least until this batch is committed: it may be nowhere else yet.
    pub fn keep_value(&mut self, id: String, bytes: Bytes) {
        self.values.insert(id, bytes);
    }

    /// Forgets what is beyond the limits. Call it when nothing is uncommitted.
    pub fn shrink(&mut self) {
        if self.runs.len() > RUNS_MAX {
            let mut left = self.runs.len() - RUNS_MAX / 2;
            self.runs.retain(|_, _| {
                left = left.saturating_sub(1);
                left == 0
            });
        }
        if self.plans.len() > PLANS_MAX {
            // A run in mind needs its plan here too.
            self.plans.retain(|_, compiled| Arc::strong_count(&compiled.plan) > 1);
        }
        if self.values.len() > VALUES_MAX {
            self.values.clear();
        }
    }

    /// Loads plans that are not here yet. Unknown ones stay away, and so do those that cannot be compiled, which are named.
    ///
    /// # Errors
    /// The trip's.
    pub async fn load_plans<L: Link>(
        &mut self,
        partition: &mut Partition<L>,
        hashes: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, TurnError> {
        let mut broken = BTreeSet::new();
        for hash in hashes {
            if self.plans.contains_key(&*hash) || !record::is_plan_hash(&hash) {
                continue;
            }
            let mut stored = read_plan(partition, partition.keys.plan(&hash)).await?;
            let aside = stored.is_empty();
            if aside {
                stored = read_plan(partition, partition.keys.plan_aside(&hash)).await?;
            }
            let workflow = codec::decompress(&stored).and_then(|plain| codec::unpack::<Workflow>(&plain));
            if let Ok(workflow) = workflow {
                // What no door has checked may break every rule.
                match catch_unwind(|| Compiled::new(&hash, &workflow)) {
                    Ok(compiled) => {
                        if aside {
                            self.aside.insert(compiled.plan.hash.clone());
                        }
                        self.plans.insert(compiled.plan.hash.clone(), Arc::new(compiled));
                    }
                    Err(_) => drop(broken.insert(hash)),
                }
            }
        }
        Ok(broken)
    }

    /// Loads runs that are not here yet. Unknown ones stay away, and so do broken ones, which are named.
    ///
    /// # Errors
    /// The trip's.
    pub async fn load_runs<L: Link>(
        &mut self,
        partition: &mut Partition<L>,
        ids: BTreeSet<RunId>,
    ) -> Result<Vec<BrokenRun>, TurnError> {
        let ids: Vec<RunId> = ids.into_iter().filter(|id| !self.runs.contains_key(id)).collect();
        let mut broken = Vec::new();
        for part in ids.chunks(CHUNKS_PER_TRIP) {
            let mut pipe = redis::pipe();
            for id in part {
                pipe.cmd("HGETALL").arg(partition.keys.run(id));
                pipe.cmd("EXISTS").arg(partition.keys.history(id));
            }
            let mut replies = partition.load(&pipe).await?.into_iter();
            let mut found = Vec::new();
            for id in part {
                let (fields, string) = (replies.next().unwrap_or(Value::Nil), replies.next());
                let has_string = string.as_ref().and_then(reply::number) == Some(1);
                match Stored::read(*id, fields, has_string) {
                    Ok(Some(stored)) => found.push(stored),
                    Ok(None) => {}
                    Err(error) => broken.push(BrokenRun { id: *id, error, record: None }),
                }
            }
            // A run whose plan stays away is broken below.
            self.load_plans(partition, found.iter().map(|s| s.record.plan.clone()).collect()).await?;
            for stored in found {
                let (id, record) = (stored.id, stored.bytes.clone());
                let restored = AssertUnwindSafe(self.restore(partition, stored)).catch_unwind().await;
                match restored.unwrap_or(Ok(Err(RecordError::Panicked)))? {
                    Ok(run) => drop(self.runs.insert(id, run)),
                    Err(error) => broken.push(BrokenRun { id, error, record: Some(record) }),
                }
            }
        }
        Ok(broken)
    }

    async fn restore<L: Link>(
        &self,
        partition: &mut Partition<L>,
        stored: Stored,
    ) -> Result<Result<Run, RecordError>, TurnError> {
        let Some(compiled) = self.plans.get(&*stored.record.plan) else {
            return Ok(Err(RecordError::Broken("plan of a run")));
        };
        let trace = stored.trace.as_deref();
        let mut run = record::restore_run(stored.id, &stored.record, trace, compiled.plan.clone());
        run.history_chunks = kept::chunks_of(&stored.steps, stored.has_string);
        if let Err(e) = place(&mut run, &stored.steps) {
            return Ok(Err(e));
        }
        let chunks: Vec<u32> = (1..(run.steps().len() as u32).div_ceil(CHUNK_STEPS)).collect();
        for part in chunks.chunks(CHUNKS_PER_TRIP) {
            let mut pipe = redis::pipe();
            for chunk in part {
                pipe.cmd("HGETALL").arg(partition.keys.chunk(&stored.id, *chunk));
            }
            for reply in partition.load(&pipe).await? {
                if let Err(e) = place(&mut run, &reply::pairs(reply)) {
                    return Ok(Err(e));
                }
            }
        }
        if stored.record.has_errors {
            let mut pipe = redis::pipe();
            pipe.cmd("LRANGE").arg(partition.keys.errors(&stored.id)).arg(0).arg(-1);
            let replies = partition.load(&pipe).await?;
            run.errors = read_errors(replies.first(), &run);
        }
        Ok(Ok(run))
    }
}

/// The bytes under a plan's key, in trips of bounded size; none if there are none.
async fn read_plan<L: Link>(partition: &mut Partition<L>, key: String) -> Result<Vec<u8>, TurnError> {
    let mut stored = Vec::new();
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(&key).arg(stored.len()).arg(stored.len() + PLAN_BYTES_PER_TRIP - 1);
        let replies = partition.load(&pipe).await?;
        let part = replies.first().and_then(reply::bytes).ok_or(TurnError::Unexpected("GETRANGE plan"))?;
        stored.extend_from_slice(part);
        if part.len() < PLAN_BYTES_PER_TRIP {
            return Ok(stored);
        }
    }
}

/// Failed attempts of the present budgets; those of earlier ones stay in Redis for the history only.
fn read_errors(reply: Option<&Value>, run: &Run) -> Vec<AttemptError> {
    let items = reply.and_then(reply::array).unwrap_or_default();
    let errors = items.iter().filter_map(reply::bytes).filter_map(|b| codec::unpack::<AttemptError>(b).ok());
    errors
        .filter(|e| {
            let step = run.steps().get(e.index as usize);
            let of_now = |s: &Step| e.generation.max(1) == s.generation && e.attempt > s.spent;
            step.is_some_and(|s| of_now(s) && s.state != stepfleet_protocol::state::State::Completed)
        })
        .collect()
}

/// Puts step states of a hash in place.
fn place(run: &mut Run, fields: &[(Bytes, Bytes)]) -> Result<(), RecordError> {
    for (field, value) in fields {
        let index = std::str::from_utf8(field).ok().and_then(|t| t.parse::<u32>().ok());
        if let Some(index) = index.filter(|i| (*i as usize) < run.steps().len()) {
            run.restore_step(index, record::unpack_step(value)?);
        }
    }
    Ok(())
}

/// A run that cannot be loaded.
#[derive(Debug)]
pub struct BrokenRun {
    /// Which.
    pub id: RunId,
    /// Why.
    pub error: RecordError,
    /// Its packed record, if that much can be read.
    pub record: Option<Bytes>,
}

/// A run hash as it was read.
struct Stored {
    id: RunId,
    bytes: Bytes,
    record: RunRecord,
    trace: Option<Bytes>,
    steps: Vec<(Bytes, Bytes)>,
    /// Chunks of its history are in the string.
    has_string: bool,
}

impl Stored {
    fn read(id: RunId, fields: Value, has_string: bool) -> Result<Option<Self>, RecordError> {
        let steps = reply::pairs(fields);
        let get = |name: &str| steps.iter().find(|(f, _)| f == name.as_bytes()).map(|(_, v)| v.clone());
        let Some(bytes) = get(record::FIELD_RECORD) else { return Ok(None) };
        let record = record::unpack_run(&bytes)?;
        let trace = get(record::FIELD_TRACE);
        Ok(Some(Self { id, bytes, record, trace, steps, has_string }))
    }
}
