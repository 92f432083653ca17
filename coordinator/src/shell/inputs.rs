//! Making the inputs of jobs: values are loaded, templates rendered in a bounded pool, and what cannot be made is an event
//! of the same batch.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use serde_json::Value as Json;
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    id::RunId,
    limits::INLINE_BYTES_MAX,
    message::Job,
    value::{Input, Payload, ValueRef},
};
use tokio::sync::Semaphore;

use super::{
    cache::{Compiled, StepInput},
    core::{Core, Dispatch, patch_id},
};
use crate::{
    machine::{event::Event, run::Run},
    store::{
        link::Link,
        partition::{Partition, TurnError},
        record::{DeadLetter, VERSION},
        reply,
    },
    workflow::template::{RunScope, Scope, Source},
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

/// Resolves every staged dispatch and letter: loads, renders, and stages the jobs. An input that cannot be made fails its
/// step, in this same batch.
///
/// # Errors
/// The trip's.
pub async fn resolve<L: Link>(core: &mut Core, partition: &mut Partition<L>) -> Result<(), TurnError> {
    while !core.staged.dispatches.is_empty() || !core.staged.letters.is_empty() {
        let dispatches = std::mem::take(&mut core.staged.dispatches);
        let values = load_values(core, partition, &dispatches).await?;
        for dispatch in dispatches {
            match make(core, &dispatch, &values).await {
                Ok(input) => stage_job(core, &dispatch, input),
                Err(failure) => {
                    let run = &core.cache.runs[&dispatch.run];
                    let queue = run.plan.steps[dispatch.index as usize].queue.clone();
                    let q = core.schedule.queue(&queue);
                    q.outstanding = q.outstanding.saturating_sub(1);
                    let event = Event::Unrenderable { index: dispatch.index, job: dispatch.job, failure };
                    core.event(dispatch.run, event);
                }
            }
        }
        resolve_letters(core, partition).await?;
    }
    Ok(())
}

/// Ids of values that have to be read for these dispatches.
fn wanted(core: &Core, dispatches: &[Dispatch]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for dispatch in dispatches {
        let run = &core.cache.runs[&dispatch.run];
        let compiled = &core.cache.plans[&run.plan.hash];
        if let StepInput::Template(template) = &compiled.inputs[dispatch.index as usize]
            && !run.step(dispatch.index).patched
        {
            ids.extend(template.sources().iter().filter_map(|s| place_of(run, compiled, s)));
        }
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
            pipe.cmd("GET").arg(partition.keys.value(id));
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

async fn make(core: &mut Core, dispatch: &Dispatch, loaded: &HashMap<String, Bytes>) -> Result<Input, Failure> {
    let run = &core.cache.runs[&dispatch.run];
    let compiled = core.cache.plans[&run.plan.hash].clone();
    if run.step(dispatch.index).patched {
        return Ok(by_reference(core, patch_id(run.id, dispatch.index)));
    }
    match &compiled.inputs[dispatch.index as usize] {
        StepInput::None => Ok(Input::None),
        StepInput::Static(bytes) => Ok(pass(core, dispatch, bytes.clone())),
        StepInput::Whole(source) => Ok(match place_of(run, &compiled, source) {
            Some(id) => by_reference(core, id),
            None => Input::None,
        }),
        StepInput::Template(template) => {
            let scope = scope(core, run, &compiled, template.sources(), dispatch.attempt, loaded)?;
            let template = template.clone();
            let permit = POOL.acquire().await.expect("the pool is never closed");
            let rendered = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                template.render(&scope)
            });
            match rendered.await {
                Ok(Ok(value)) => Ok(pass(core, dispatch, codec::pack(&value).into())),
                Ok(Err(e)) => Err(unrenderable(e.to_string())),
                Err(_) => Err(unrenderable("the rendering panicked".into())),
            }
        }
    }
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

fn stage_job(core: &mut Core, dispatch: &Dispatch, input: Input) {
    let run = &core.cache.runs[&dispatch.run];
    let step = &run.plan.steps[dispatch.index as usize];
    let job = Job {
        v: codec::VERSION,
        id: dispatch.job,
        run: run.id,
        workflow: run.plan.workflow.clone(),
        step: step.name.clone(),
        index: dispatch.index,
        generation: run.step(dispatch.index).generation,
        attempt: dispatch.attempt,
        max_attempts: dispatch.max_attempts,
        handler: step.handler.clone(),
        timeout_ms: step.timeout_ms,
        input,
        traceparent: run.traceparent.as_deref().map(Into::into),
    };
    core.staged.commit.jobs.push((step.queue.clone(), codec::encode(&job)));
}

/// The stream entry of a failed job still holds the input that it was done with.
async fn resolve_letters<L: Link>(core: &mut Core, partition: &mut Partition<L>) -> Result<(), TurnError> {
    for (id, letter) in std::mem::take(&mut core.staged.letters) {
        let mut input = None;
        if let Some(of) = &letter.of {
            let (key, entry) = (partition.keys.jobs(&of.queue), of.entry.to_string());
            let mut pipe = redis::pipe();
            pipe.cmd("XRANGE").arg(key).arg(&entry).arg(&entry);
            let replies = partition.load(&pipe).await?;
            let found = replies.into_iter().next().map(reply::entries).unwrap_or_default();
            let job = found.first().and_then(|(_, fields)| fields.first());
            input = job.and_then(|(f, b)| codec::decode::<Job>(f, b).ok()).map(|job| job.input);
        }
        let run = &core.cache.runs[&id];
        let step = &run.plan.steps[letter.index as usize];
        let dead = DeadLetter {
            v: VERSION,
            run: id,
            workflow: run.plan.workflow.clone(),
            version: run.version,
            step: step.name.clone(),
            index: letter.index,
            generation: run.step(letter.index).generation,
            handler: step.handler.clone(),
            queue: step.queue.clone(),
            cause: letter.cause,
            category: letter.category,
            attempts: letter.attempts,
            input,
            at_ms: core.now_ms,
        };
        *core.staged.commit.counters.entry("dead_letters").or_default() += 1;
        core.staged.commit.letters.push((letter.id, codec::encode(&dead)));
    }
    Ok(())
}
