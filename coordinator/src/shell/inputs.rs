//! Making the inputs of jobs: values are loaded, templates rendered in a bounded pool, and what cannot be made is an event
//! of the same batch. A panic here is blamed on the item that led to the job.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt;
use serde_json::Value as Json;
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    gate::Gate,
    id::RunId,
    limits::INLINE_BYTES_MAX,
    message::Job,
    trace::span_of_job,
    value::{Input, Payload, ValueRef},
};
use tokio::sync::Semaphore;

use super::{
    cache::{Compiled, StepInput, Target},
    core::{Blame, Core, Dispatch, Poison, patch_id},
    intake::{Origin, Place},
    letters,
    owner::OwnerError,
    spans::facts::{self, Fact, Traced},
    tally::Seen,
};
use crate::{
    machine::{event::Event, run::Run},
    store::{
        link::Link,
        partition::{Partition, TurnError},
    },
    workflow::template::{RunScope, Scope, Source, Template},
};

/// Renderings at once in this process.
static POOL: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));

/// A scope in which nothing is.
pub fn empty_scope() -> Scope {
    let run = RunScope { id: String::new(), workflow: String::new(), created_at: String::new() };
    Scope { input: Arc::new(Json::Null), outputs: BTreeMap::new(), run, attempt: 1 }
}

/// Where a value is: nowhere (null), or under an id.
fn place_of(run: &Run, compiled: &Compiled, source: &Source) -> Option<String> {
    match source {
        Source::Input => run.has_input.then(|| run.id.to_string()),
        Source::Output(name) => {
            let step = run.step(compiled.number_of(name)?);
            step.job.filter(|_| step.has_output).map(|job| job.to_string())
        }
    }
}

/// How long a batch may make inputs; what is left then waits for a later one. The lease is renewed once a turn.
const TIME_MAX: Duration = Duration::from_millis(250);
/// Bytes of made inputs of a batch, beyond which the rest waits for a later one.
const BYTES_MAX: usize = 4 << 20;
/// Dispatches whose values are read together.
const DISPATCHES_PER_READ: usize = 32;

/// Resolves every staged dispatch and letter: loads, renders, and stages the jobs. An input that cannot be made fails its
/// step, in this same batch. What would take the batch too long goes back to the ready set.
///
/// # Errors
/// The trip's, or the item whose job or letter made this panic; then nothing of this batch may be committed.
pub async fn resolve<L: Link>(core: &mut Core, partition: &mut Partition<L>) -> Result<(), OwnerError> {
    let begun = Instant::now();
    while !resolve_at_hand(core)? {
        let mut dispatches = std::mem::take(&mut core.staged.dispatches);
        while !dispatches.is_empty() {
            let mut part: Vec<Dispatch> = dispatches.drain(..dispatches.len().min(DISPATCHES_PER_READ)).collect();
            if begun.elapsed() > TIME_MAX || core.staged.made_bytes > BYTES_MAX {
                part.iter_mut().for_each(|dispatch| core.defer(dispatch));
                continue;
            }
            let values = load_values(core, partition, &part).await?;
            for dispatch in part {
                core.at = dispatch.of;
                let of = dispatch.of;
                let done = AssertUnwindSafe(render_one(core, dispatch, &values)).catch_unwind().await;
                done.map_err(|_| poison(of))?;
            }
        }
        letters::open(core, partition).await?;
        letters::close(core, partition).await?;
    }
    Ok(())
}

/// Stages the jobs whose inputs need nothing but what is in mind. False if something is left.
///
/// # Errors
/// The item whose job made this panic; then nothing of this batch may be committed.
pub fn resolve_at_hand(core: &mut Core) -> Result<bool, OwnerError> {
    let mut left = Vec::new();
    for dispatch in std::mem::take(&mut core.staged.dispatches) {
        match catch_unwind(AssertUnwindSafe(|| at_hand(core, &dispatch))) {
            Ok(Some((input, gate))) => stage_job(core, dispatch, gate, input),
            Ok(None) => left.push(dispatch),
            Err(_) => return Err(poison(dispatch.of)),
        }
    }
    core.staged.dispatches = left;
    let staged = &core.staged;
    Ok(staged.dispatches.is_empty() && staged.letters.is_empty() && staged.closing.is_empty())
}

/// The item whose input or letter made this panic.
pub(super) fn poison(item: Place) -> OwnerError {
    OwnerError::Poison(Poison { item, by: Blame::Input })
}

async fn render_one(core: &mut Core, mut dispatch: Dispatch, values: &HashMap<String, Bytes>) {
    let compiled = core.cache.plans[&core.cache.runs[&dispatch.run].plan.hash].clone();
    let made = match render(core, &dispatch, &compiled, values).await {
        Ok(input) => target_of(core, &dispatch, &compiled, values).await.map(|gate| (input, gate)),
        Err(failure) => Err(failure),
    };
    let (input, gate) = match made {
        Ok(made) => made,
        Err(failure) => {
            core.recall(&mut dispatch);
            core.event(dispatch.run, Event::Unrenderable { index: dispatch.index, job: dispatch.job, failure });
            return;
        }
    };
    // Whether a step may pass whose gate was known before, its release has asked.
    let is_new = matches!(compiled.targets[dispatch.index as usize], Target::Template(_));
    if gate.as_ref().is_none_or(|gate| !is_new || core.admit(&mut dispatch, gate)) {
        stage_job(core, dispatch, gate, input);
    }
}

/// The gate of the dependency that a step names. None if it names none, if the text of an expression comes out empty, or is
/// no text.
async fn target_of(
    core: &Core,
    dispatch: &Dispatch,
    compiled: &Compiled,
    loaded: &HashMap<String, Bytes>,
) -> Result<Option<Gate>, Failure> {
    let template = match &compiled.targets[dispatch.index as usize] {
        Target::Handler => return Ok(None),
        Target::Static(gate) => return Ok(Some(gate.clone())),
        Target::Template(template) => template,
    };
    let run = &core.cache.runs[&dispatch.run];
    let scope = scope(core, run, compiled, template.sources(), dispatch.attempt, loaded)?;
    let text = match in_pool(template.clone(), scope).await? {
        Json::String(text) => text,
        Json::Number(number) => number.to_string(),
        Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => String::new(),
    };
    Ok((!text.trim().is_empty()).then(|| Gate::target(&text)))
}

/// Renders on one of the few threads that do nothing else.
async fn in_pool(template: Box<Template>, scope: Scope) -> Result<Json, Failure> {
    let permit = POOL.acquire().await.expect("the pool is never closed");
    let rendered = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        template.render(&scope)
    });
    match rendered.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(unrenderable(e.to_string())),
        Err(_) => Err(unrenderable("the rendering panicked".into())),
    }
}

/// Ids of values that have to be read for these dispatches.
fn wanted(core: &Core, dispatches: &[Dispatch]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for dispatch in dispatches {
        let run = &core.cache.runs[&dispatch.run];
        let compiled = &core.cache.plans[&run.plan.hash];
        let input = match &compiled.inputs[dispatch.index as usize] {
            StepInput::Template(template) if !run.step(dispatch.index).patched => Some(template),
            _ => None,
        };
        let target = match &compiled.targets[dispatch.index as usize] {
            Target::Template(template) => Some(template),
            Target::Handler | Target::Static(_) => None,
        };
        let sources = input.into_iter().chain(target).flat_map(|template| template.sources());
        ids.extend(sources.filter_map(|s| place_of(run, compiled, s)));
    }
    ids.retain(|id| !core.cache.values.contains_key(id));
    ids
}

async fn load_values<L: Link>(
    core: &mut Core,
    partition: &mut Partition<L>,
    dispatches: &[Dispatch],
) -> Result<HashMap<String, Bytes>, TurnError> {
    const VALUES_PER_TRIP: usize = 4;
    let ids: Vec<String> = wanted(core, dispatches).into_iter().collect();
    let mut values = HashMap::new();
    // A value may have 1 MiB, and a read should stay below 4 MiB.
    for part in ids.chunks(VALUES_PER_TRIP) {
        let mut pipe = redis::pipe();
        for id in part {
            // What came with a command of this very batch is still under the command's id.
            let moved = core.staged.commit.values_moved.iter().find(|(_, to)| to == id);
            pipe.cmd("GET").arg(partition.keys.value(moved.map_or(id, |(from, _)| from)));
        }
        for (id, value) in part.iter().zip(partition.load(&pipe).await?) {
            if let redis::Value::BulkString(bytes) = value {
                let bytes = Bytes::from(bytes);
                if bytes.len() <= INLINE_BYTES_MAX {
                    core.cache.keep_value(id.clone(), bytes.clone());
                }
                values.insert(id.clone(), bytes);
            }
        }
    }
    Ok(values)
}

/// The input of a dispatch and the gate of the dependency that its step names, unless one of the two has to be rendered.
fn at_hand(core: &mut Core, dispatch: &Dispatch) -> Option<(Input, Option<Gate>)> {
    let compiled = core.cache.plans[&core.cache.runs[&dispatch.run].plan.hash].clone();
    let gate = match &compiled.targets[dispatch.index as usize] {
        Target::Handler => None,
        Target::Static(gate) => Some(gate.clone()),
        Target::Template(_) => return None,
    };
    Some((input_at_hand(core, dispatch, &compiled)?, gate))
}

/// The input of a dispatch, unless it has to be rendered.
fn input_at_hand(core: &mut Core, dispatch: &Dispatch, compiled: &Compiled) -> Option<Input> {
    let run = &core.cache.runs[&dispatch.run];
    #[cfg(test)]
    traps::spring(&run.plan.steps[dispatch.index as usize].handler);
    if run.step(dispatch.index).patched {
        return Some(by_reference(core, patch_id(run.id, dispatch.index)));
    }
    match &compiled.inputs[dispatch.index as usize] {
        StepInput::None => Some(Input::None),
        StepInput::Static(bytes) => Some(pass(core, dispatch, bytes.clone())),
        StepInput::Whole(source) => Some(match place_of(run, compiled, source) {
            Some(id) => by_reference(core, id),
            None => Input::None,
        }),
        StepInput::Template(_) => None,
    }
}

async fn render(
    core: &mut Core,
    dispatch: &Dispatch,
    compiled: &Compiled,
    loaded: &HashMap<String, Bytes>,
) -> Result<Input, Failure> {
    if let Some(input) = input_at_hand(core, dispatch, compiled) {
        return Ok(input);
    }
    let StepInput::Template(template) = &compiled.inputs[dispatch.index as usize] else {
        unreachable!("any other input is at hand")
    };
    let run = &core.cache.runs[&dispatch.run];
    let scope = scope(core, run, compiled, template.sources(), dispatch.attempt, loaded)?;
    let bytes = codec::pack(&in_pool(template.clone(), scope).await?);
    core.staged.made_bytes += bytes.len();
    Ok(pass(core, dispatch, bytes.into()))
}

fn unrenderable(message: String) -> Failure {
    Failure::new(Category::Data, message).with_code("unrenderable")
}

#[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
fn scope(
    core: &Core,
    run: &Run,
    compiled: &Compiled,
    sources: &BTreeSet<Source>,
    attempt: u32,
    loaded: &HashMap<String, Bytes>,
) -> Result<Scope, Failure> {
    let read = |source: &Source| -> Result<Arc<Json>, Failure> {
        let Some(id) = place_of(run, compiled, source) else { return Ok(Arc::new(Json::Null)) };
        let bytes = core.cache.values.get(&id).or_else(|| loaded.get(&id));
        let bytes = bytes.ok_or_else(|| unrenderable(format!("value `{id}` is gone")))?;
        let value = codec::unpack(bytes).map_err(|e| unrenderable(format!("value `{id}`: {e}")))?;
        Ok(Arc::new(value))
    };
    let mut scope = empty_scope();
    for source in sources {
        match source {
            Source::Input => scope.input = read(source)?,
            Source::Output(name) => drop::<Option<Arc<Json>>>(scope.outputs.insert(name.clone(), read(source)?)),
        }
    }
    scope.run = RunScope {
        id: run.id.to_string(),
        workflow: run.plan.workflow.to_string(),
        created_at: crate::time::rfc3339(run.id.created_ms()),
    };
    scope.attempt = attempt;
    Ok(scope)
}

/// Id of a large input that was rendered for a step. Every attempt writes it anew, so that it goes with its run.
pub fn made_id(run: RunId, index: u32) -> String {
    format!("{run}.{index}.made")
}

/// A value that this step alone uses: inside the message if it is small, else under a key of its own.
fn pass(core: &mut Core, dispatch: &Dispatch, bytes: Bytes) -> Input {
    if bytes.len() <= INLINE_BYTES_MAX {
        return Input::Whole(Payload::Inline(bytes));
    }
    let value = ValueRef { id: made_id(dispatch.run, dispatch.index), bytes: bytes.len() as u64 };
    core.staged.commit.values.push((value.id.clone(), bytes.to_vec()));
    Input::Whole(Payload::Ref(value))
}

/// A value that is stored already, passed on unread.
fn by_reference(core: &Core, id: String) -> Input {
    match core.cache.values.get(&id) {
        Some(bytes) => Input::Whole(Payload::Inline(bytes.clone())),
        None => Input::Whole(Payload::Ref(ValueRef { id, bytes: 0 })),
    }
}

/// Puts the job on its way. `gate` is that of the dependency which the step names.
fn stage_job(core: &mut Core, dispatch: Dispatch, gate: Option<Gate>, input: Input) {
    let run = &core.cache.runs[&dispatch.run];
    let step = &run.plan.steps[dispatch.index as usize];
    let fallback = step.fallback.as_ref().filter(|_| dispatch.falls_back);
    // Undoing is of the execution that is undone.
    let of = step.undoes.map_or(dispatch.index, |undoes| undoes.of);
    let traced = core.traces.then(|| facts::recorded(run)).flatten();
    let traceparent = match &traced {
        Some(of) => Some(of.at(span_of_job(&dispatch.job)).to_string()),
        None => run.traceparent.as_deref().map(Into::into),
    };
    let job = Job {
        v: codec::VERSION,
        id: dispatch.job,
        run: run.id,
        workflow: run.plan.workflow.clone(),
        step: step.name.clone(),
        index: dispatch.index,
        generation: run.step(of).generation,
        attempt: dispatch.attempt,
        max_attempts: dispatch.max_attempts,
        handler: fallback.map_or(&step.handler, |f| &f.handler).clone(),
        timeout_ms: step.timeout_ms,
        input,
        traceparent,
        gate: fallback.map(|f| Gate::handler(&f.handler)).or(gate),
        canary: dispatch.leave.as_ref().is_some_and(|leave| leave.canary.is_some()),
        undo: step.undoes.is_some(),
    };
    let queue = dispatch.queue(run);
    let since_ms = if let Origin::Entry(entry, _) = dispatch.of.0 { Some(entry.ms) } else { None };
    if let Some(of) = traced {
        let fact = Fact::Sent(Box::new(facts::sent(run, &dispatch, since_ms.unwrap_or(core.now_ms))));
        core.tally.spans.push(Traced { run: run.id, of, fact });
    }
    core.tally.seen.push(Seen::Dispatched(queue.clone(), since_ms));
    core.staged.commit.jobs.push((queue, codec::encode(&job)));
    if let Some(leave) = dispatch.leave
        && let Some(held) = core.gates.begins(dispatch.job, leave, (dispatch.run, dispatch.index))
    {
        core.staged.commit.held_added.push((dispatch.job, held));
    }
}

/// Handlers over whose inputs this panics, for the tests of what follows from a bug.
#[cfg(test)]
pub(super) mod traps {
    use std::cell::RefCell;

    use stepfleet_protocol::name::Name;

    thread_local! {
        pub(in crate::shell) static SET: RefCell<Option<Name>> = const { RefCell::new(None) };
    }

    pub(super) fn spring(handler: &Name) {
        assert!(SET.with_borrow(|set| set.as_ref() != Some(handler)), "a trap for the test");
    }
}
