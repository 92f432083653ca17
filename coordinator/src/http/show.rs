//! From what the store found to what the API shows.

use std::collections::{BTreeSet, HashMap};

use stepfleet_protocol::{
    codec,
    id::{PartitionId, WorkerId},
    state::State,
    value::{Input, Payload},
    workflow::{Compensate, Workflow},
};

use super::{
    error::ApiResult,
    view::{AttemptView, GroupView, HistoryView, LetterView, RunSummary, StepCounts, StepView, ValueView},
};
use crate::{
    machine::{
        decision::{Cause, Transition, Why},
        fingerprint::normalised,
        run::{AttemptError, Step},
        verdict::{self, Fate, Severity},
    },
    store::{
        client::Client,
        read::{PlacedId, groups::Group, runs::Found},
        record::DeadLetter,
    },
    time::rfc3339,
};

/// Values larger than this are not shown inside other answers.
const SHOWN_BYTES_MAX: u64 = 64 << 10;

/// A run in a listing.
pub(super) fn summary(run: &Found) -> RunSummary {
    let record = &run.record;
    let ended = (record.finished_ms > 0).then_some(record.finished_ms);
    RunSummary {
        id: run.id,
        workflow: run.workflow.as_ref().map_or_else(|| "?".into(), |w| w.workflow.to_string()),
        version: record.version,
        state: record.state,
        created_at: rfc3339(run.id.created_ms()),
        finished_at: ended.map(rfc3339),
        duration_ms: ended.map(|ms| ms.saturating_sub(run.id.created_ms())),
        steps: StepCounts {
            total: run.workflow.as_ref().map_or(0, |w| w.steps.len() as u32),
            completed: record.completed,
            failed: record.failed,
            tolerated: record.tolerated,
            skipped: record.skipped,
            active: record.active,
        },
        review: record.review,
    }
}

/// What the history says of the times of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    queued: Option<u64>,
    started: Option<u64>,
    finished: Option<u64>,
    worker: Option<WorkerId>,
}

/// The times of every step of a history.
pub(super) fn times(history: &[Transition]) -> HashMap<u32, Times> {
    let mut out: HashMap<u32, Times> = HashMap::new();
    for t in history {
        let Some(index) = t.step.filter(|_| t.why != Why::Ignored) else { continue };
        let times = out.entry(index).or_default();
        if t.worker.is_some() {
            times.worker.clone_from(&t.worker);
        }
        if t.from == t.to {
            continue;
        }
        match t.to {
            State::Queued => (times.queued, times.started, times.finished) = (Some(t.at_ms), None, None),
            State::Processing => times.started = Some(t.at_ms),
            State::Completed | State::Failed | State::Cancelled | State::Skipped => times.finished = Some(t.at_ms),
            State::Created | State::Waiting | State::Retrying | State::Suspended => {}
        }
    }
    out
}

/// A step of a run, but for when it is tried again, which its timer knows.
pub(super) fn step(
    workflow: &Workflow,
    index: u32,
    step: &Step,
    times: Option<&Times>,
    partition: PartitionId,
) -> StepView {
    let (written, undo) = written(workflow, index).expect("the store shows steps of the workflow only");
    let handler = undo.map_or(&written.handler, |undo| &undo.handler);
    let queue = undo.and_then(|undo| undo.queue.clone()).unwrap_or_else(|| workflow.resolved(written).queue);
    let needs = if undo.is_some() { &[][..] } else { &written.needs[..] };
    let times = times.cloned().unwrap_or_default();
    StepView {
        name: step_name(Some(workflow), index),
        index,
        handler: handler.to_string(),
        queue: queue.to_string(),
        state: step.state,
        attempts: step.attempts + u32::from(matches!(step.state, State::Processing | State::Completed)),
        losses: step.losses,
        generation: step.generation,
        needs: needs.iter().map(ToString::to_string).collect(),
        job: step.job.map(|j| j.to_string()),
        worker: times.worker.map(|w| w.to_string()),
        queued_at: times.queued.map(rfc3339),
        started_at: times.started.map(rfc3339),
        finished_at: times.finished.map(rfc3339),
        next_attempt_at: None,
        start_by: (step.start_by_ms > 0).then(|| rfc3339(step.start_by_ms)),
        tolerated: step.tolerated,
        duration_ms: times.finished.zip(times.started).map(|(end, begin)| end.saturating_sub(begin)),
        has_output: step.has_output,
        dead_letter: step.letter.map(|entry| PlacedId { entry, partition }.to_string()),
    }
}

/// A step as it was written, and how it is undone if the number is of that.
fn written(workflow: &Workflow, index: u32) -> Option<(&stepfleet_protocol::workflow::Step, Option<&Compensate>)> {
    let index = index as usize;
    if let Some((_, step)) = workflow.steps.get_index(index) {
        return Some((step, None));
    }
    let mut undone = workflow.steps.values().filter_map(|s| Some((s, s.compensate.as_ref()?)));
    undone.nth(index - workflow.steps.len()).map(|(step, undo)| (step, Some(undo)))
}

/// The name of a step by its number; `<name>/undo` for one that undoes another.
pub(super) fn step_name(workflow: Option<&Workflow>, index: u32) -> String {
    let name = |workflow: &Workflow| {
        if let Some((name, _)) = workflow.steps.get_index(index as usize) {
            return Some(name.to_string());
        }
        let mut undone = workflow.steps.iter().filter(|(_, step)| step.compensate.is_some());
        undone.nth(index as usize - workflow.steps.len()).map(|(name, _)| format!("{name}/undo"))
    };
    workflow.and_then(name).unwrap_or_else(|| format!("#{index}"))
}

/// A transition.
pub(super) fn transition(workflow: Option<&Workflow>, t: &Transition) -> HistoryView {
    let reason = serde_json::to_value(t.why).ok().and_then(|v| v.as_str().map(str::to_owned));
    HistoryView {
        at: rfc3339(t.at_ms),
        step: t.step.map(|index| step_name(workflow, index)),
        from: t.from,
        to: t.to,
        reason: reason.unwrap_or_default(),
        attempt: (t.attempt > 0).then_some(t.attempt),
        worker: t.worker.as_ref().map(ToString::to_string),
        actor: t.actor.as_deref().map(str::to_owned),
        note: t.note.as_deref().map(str::to_owned),
    }
}

/// What became of a failed attempt, and which failure of its budget it was, as far as is known: `step` is how its step stands
/// now, `is_last` that no attempt of the step failed later.
pub(super) fn past(error: &AttemptError, step: &Step, is_last: bool) -> (Fate, u32) {
    let fate = match step.state {
        // The last one of an earlier budget.
        _ if error.attempt == step.spent => Fate::GaveUp,
        State::Failed if is_last => Fate::GaveUp,
        State::Cancelled if is_last => Fate::Stopped,
        _ => Fate::TriedAgain,
    };
    (fate, error.attempt.checked_sub(step.spent).filter(|tries| *tries > 0).unwrap_or(error.attempt))
}

/// A failed attempt; `step` names its step. A referenced detail is fetched if it is small.
pub(super) async fn attempt(
    client: &Client,
    partition: PartitionId,
    step: String,
    (error, past): (&AttemptError, Option<(Fate, u32)>),
) -> ApiResult<AttemptView> {
    let failure = &error.failure;
    let verdict = past.map(|(fate, tries)| verdict::recall(failure, tries, fate));
    let detail = match &failure.detail {
        Some(payload) => Some(payload_view(client, partition, payload, SHOWN_BYTES_MAX).await?),
        None => None,
    };
    Ok(AttemptView {
        step,
        attempt: error.attempt,
        job: error.job.to_string(),
        worker: error.worker.as_ref().map(ToString::to_string),
        worker_version: failure.origin.as_ref().map(|origin| origin.version.clone()),
        host: failure.origin.as_ref().map(|origin| origin.host.clone()).filter(|host| !host.is_empty()),
        at: rfc3339(error.at_ms),
        run_ms: error.run_ms,
        category: failure.category,
        code: failure.code.clone(),
        message: failure.message.clone(),
        causes: failure.causes.clone(),
        retry_after_ms: failure.retry_after_ms,
        detail,
        action: verdict.as_ref().map(|v| v.action),
        severity: verdict.as_ref().map(|v| v.severity),
        summary: verdict.map(|v| v.summary),
    })
}

/// A dead letter as a listing shows it.
pub(super) fn letter(id: PlacedId, letter: &DeadLetter) -> LetterView {
    LetterView {
        id: id.to_string(),
        run: letter.run,
        workflow: letter.workflow.to_string(),
        version: letter.version,
        step: if letter.cause == Cause::Compensation {
            format!("{}/undo", letter.step)
        } else {
            letter.step.to_string()
        },
        generation: letter.generation,
        handler: letter.handler.to_string(),
        queue: letter.queue.to_string(),
        cause: letter.cause,
        category: letter.category,
        severity: Some(Severity::of(letter.category, letter.attempts.len() as u32, true)),
        at: rfc3339(letter.at_ms),
        message: letter.message().to_owned(),
        fingerprint: letter.group().map(|group| group.to_string()),
        returns: letter.returns,
        attempts_count: letter.attempts.len() as u32,
        attempts: Vec::new(),
        input: None,
    }
}

/// A group of dead letters, by what its sample tells.
pub(super) fn group(group: &Group) -> Option<GroupView> {
    let (id, newest) = group.sample.first()?;
    let failure = newest.attempts.last().map(|last| &last.failure);
    let workers: BTreeSet<String> = group
        .sample
        .iter()
        .flat_map(|(_, letter)| letter.attempts.iter().filter_map(|attempt| attempt.worker.as_ref()))
        .map(ToString::to_string)
        .collect();
    let attempts = group.sample.iter().flat_map(|(_, letter)| &letter.attempts);
    let versions: BTreeSet<String> =
        attempts.filter_map(|attempt| Some(attempt.failure.origin.as_ref()?.version.clone())).collect();
    Some(GroupView {
        fingerprint: group.fingerprint.to_string(),
        count: group.count,
        first_seen: rfc3339(group.first_ms),
        last_seen: rfc3339(group.last_ms),
        handler: newest.handler.to_string(),
        category: newest.category,
        code: failure.and_then(|failure| failure.code.clone()),
        message: normalised(newest.message()),
        workflows: group.facet(|letter| Some(letter.workflow.to_string())),
        workers: workers.into_iter().collect(),
        worker_versions: versions.into_iter().collect(),
        sampled: group.sample.len() as u64,
        example: letter(*id, newest),
    })
}

/// A dead letter with everything that is known.
pub(super) async fn whole_letter(client: &Client, id: PlacedId, found: &DeadLetter) -> ApiResult<LetterView> {
    let mut view = letter(id, found);
    for (at, error) in found.attempts.iter().enumerate() {
        let fate = if at + 1 == found.attempts.len() { Fate::GaveUp } else { Fate::TriedAgain };
        let past = Some((fate, at as u32 + 1));
        view.attempts.push(attempt(client, id.partition, view.step.clone(), (error, past)).await?);
    }
    view.input = match &found.input {
        Some(Input::Whole(payload)) => Some(payload_view(client, id.partition, payload, 1 << 20).await?),
        Some(Input::None) | None => None,
    };
    Ok(view)
}

async fn payload_view(
    client: &Client,
    partition: PartitionId,
    payload: &Payload,
    bytes_max: u64,
) -> ApiResult<ValueView> {
    match payload {
        Payload::Inline(bytes) => Ok(value(bytes.len() as u64, Some(bytes))),
        Payload::Ref(reference) => match client.value(partition, &reference.id, bytes_max).await? {
            Some(found) => Ok(value(found.bytes, found.value.as_deref())),
            None => {
                let note = Some("the value is gone".to_owned());
                Ok(ValueView { bytes: reference.bytes, value: None, note })
            }
        },
    }
}

/// The input of a run, if it is small; none if it has none.
pub(super) async fn run_input(client: &Client, run: &Found) -> ApiResult<Option<ValueView>> {
    if !run.record.has_input {
        return Ok(None);
    }
    let id = run.id.to_string();
    let found = client.value(run.id.partition(), &id, SHOWN_BYTES_MAX).await?;
    Ok(found.map(|f| {
        let mut view = value(f.bytes, f.value.as_deref());
        if f.value.is_none() {
            view.note = Some(format!("too large to show here: GET /api/v1/runs/{id}/input"));
        }
        view
    }))
}

fn value(bytes: u64, packed: Option<&[u8]>) -> ValueView {
    let mut view = ValueView { bytes, ..ValueView::default() };
    match packed.map(codec::unpack::<serde_json::Value>) {
        Some(Ok(value)) => view.value = Some(value),
        Some(Err(e)) => view.note = Some(format!("cannot be shown as JSON: {e}")),
        None => view.note = Some("too large to show here".into()),
    }
    view
}
