//! Runs: listings, single runs, steps, history, values.

use std::collections::HashMap;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use stepfleet_protocol::{codec, id::RunId, limits::PAYLOAD_BYTES_MAX, name::Name, state::State as RunState};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    show,
    take::{self, Params},
    view::{HistoryView, Page, Problem, RunSummary, RunView, StepView},
};
use crate::{
    machine::run::{Ending, Step, Undoing},
    store::{
        client::Client,
        read::{
            history::Place,
            listing::{Cursor, Filter},
            runs::{Found, shown_steps},
        },
    },
    time::rfc3339,
};

/// Steps that are shown with a run.
const STEPS_SHOWN: u32 = 200;
/// Failed attempts that are shown with a run.
const ERRORS_SHOWN: usize = 20;
/// Outputs that are shown together.
const OUTPUTS_SHOWN: usize = 20;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(steps))
        .routes(routes!(history))
        .routes(routes!(input))
        .routes(routes!(output))
}

/// Listing of runs under another name.
pub(super) fn legacy(router: Router<AppState>) -> Router<AppState> {
    router
        .route("/api/v1/workflow", axum::routing::get(list))
        .route("/api/v1/workflow/{id}/history", axum::routing::get(history))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only runs in this state.
    state: Option<String>,
    /// Only runs of this workflow.
    workflow: Option<String>,
    /// 1 to 100; 20 if it is left out.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// 1 to 100; 20 if it is left out.
    pub(super) limit: Option<usize>,
    /// `next` of the page before.
    pub(super) cursor: Option<String>,
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", params(ListParams),
    responses((status = 200, body = Page<RunSummary>), (status = "4XX", body = Problem)))]
pub(super) async fn list(
    State(app): State<AppState>,
    Params(p): Params<ListParams>,
) -> ApiResult<Json<Page<RunSummary>>> {
    let state = p.state.as_deref().map(str::parse::<RunState>).transpose();
    let state = state.map_err(|e| ApiError::bad("bad_state", e.to_string()))?;
    let workflow = p.workflow.as_deref().map(take::name).transpose()?;
    let after = take::cursor::<ListCursor>(p.cursor.as_deref())?.map(|c| c.0);
    let page = app.client.list_runs(&Filter { state, workflow }, after, take::limit(p.limit)?).await?;
    let next = page.next.map(|c| ListCursor(c).to_string());
    Ok(Json(Page { items: page.runs.iter().map(show::summary).collect(), next }))
}

/// Shows a run with its first 200 steps.
#[utoipa::path(get, path = "/api/v1/runs/{id}", tag = "runs", params(("id" = String, Path, description = "the run")),
    responses((status = 200, body = RunView), (status = 404, body = Problem)))]
pub(super) async fn get(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Response> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    let view = run_view(&app.client, &run).await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)).into_response())
}

/// Lists the steps of a run in the order of the definition.
#[utoipa::path(get, path = "/api/v1/runs/{id}/steps", tag = "runs", params(("id" = String, Path, description = "the run"), PageParams),
    responses((status = 200, body = Page<StepView>), (status = 404, body = Problem)))]
async fn steps(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<PageParams>,
) -> ApiResult<Json<Page<StepView>>> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    let from = take::cursor::<u32>(p.cursor.as_deref())?.unwrap_or(0);
    let (items, next, _) = step_views(&app.client, &run, from, take::limit(p.limit)? as u32).await?;
    Ok(Json(Page { items, next }))
}

/// Lists every transition of a run, oldest first.
#[utoipa::path(get, path = "/api/v1/runs/{id}/history", tag = "runs", params(("id" = String, Path, description = "the run"), PageParams),
    responses((status = 200, body = Page<HistoryView>), (status = 404, body = Problem)))]
pub(super) async fn history(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<PageParams>,
) -> ApiResult<Json<Page<HistoryView>>> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    let place = take::cursor::<HistoryCursor>(p.cursor.as_deref())?.map_or_else(Place::default, |c| c.0);
    let page = app.client.history(run.id, place, take::limit(p.limit)?).await?;
    let items = page.transitions.iter().map(|t| show::transition(run.workflow.as_deref(), t)).collect();
    Ok(Json(Page { items, next: page.next.map(|place| HistoryCursor(place).to_string()) }))
}

/// Gives the input of a run; `null` if it has none.
#[utoipa::path(get, path = "/api/v1/runs/{id}/input", tag = "runs", params(("id" = String, Path, description = "the run")),
    responses((status = 200, description = "the value", body = Object), (status = 404, body = Problem)))]
async fn input(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<serde_json::Value>> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    if !run.record.has_input {
        return Ok(Json(serde_json::Value::Null));
    }
    whole_value(&app.client, run.id, &run.id.to_string()).await.map(Json)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OutputParams {
    /// The step; without it the outputs of the steps that no other step needs, by name, at most 20.
    step: Option<String>,
}

/// Gives the output of a step, or of the last steps.
#[utoipa::path(get, path = "/api/v1/runs/{id}/output", tag = "runs", params(("id" = String, Path, description = "the run"), OutputParams),
    responses((status = 200, description = "the value", body = Object), (status = 404, body = Problem)))]
async fn output(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<OutputParams>,
) -> ApiResult<Json<serde_json::Value>> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    let Some(step) = p.step else { return last_outputs(&app.client, &run).await.map(Json) };
    step_output(&app.client, &run, step_index(&run, &step)?).await.map(Json)
}

/// The number of a step by its name, or a 404.
pub(super) fn step_index(run: &Found, step: &str) -> ApiResult<u32> {
    let workflow = run.workflow.as_ref().ok_or_else(plan_gone)?;
    let index = workflow.steps.get_index_of(step).ok_or_else(|| {
        ApiError::not_found("step_not_found", format!("the workflow of this run has no step `{}`", step.escape_debug()))
    })?;
    Ok(index as u32)
}

async fn last_outputs(client: &Client, run: &Found) -> ApiResult<serde_json::Value> {
    let workflow = run.workflow.as_ref().ok_or_else(plan_gone)?;
    let needed: std::collections::HashSet<&Name> = workflow.steps.values().flat_map(|s| &s.needs).collect();
    let last = workflow.steps.keys().enumerate().filter(|(_, name)| !needed.contains(name)).take(OUTPUTS_SHOWN);
    let mut out = serde_json::Map::new();
    for (index, name) in last {
        out.insert(name.to_string(), step_output(client, run, index as u32).await?);
    }
    Ok(out.into())
}

/// The output of a step; null if it has none (yet).
async fn step_output(client: &Client, run: &Found, index: u32) -> ApiResult<serde_json::Value> {
    let steps = client.steps(run, index, 1).await?;
    let job = steps.first().filter(|(_, s)| s.has_output).and_then(|(_, s)| s.job);
    match job {
        Some(job) => whole_value(client, run.id, &job.to_string()).await,
        None => Ok(serde_json::Value::Null),
    }
}

async fn whole_value(client: &Client, run: RunId, id: &str) -> ApiResult<serde_json::Value> {
    // Workers may be allowed larger values than submitters.
    let found = client.value(run.partition(), id, 16 * PAYLOAD_BYTES_MAX as u64).await?;
    let bytes =
        found.and_then(|f| f.value).ok_or_else(|| ApiError::not_found("value_not_found", "the value is gone"))?;
    codec::unpack(&bytes).map_err(|e| {
        ApiError::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, "not_json", format!("the value is not JSON: {e}"))
    })
}

/// The run, or a 404.
pub(super) async fn find(client: &Client, id: RunId) -> ApiResult<Found> {
    client.run(id).await?.ok_or_else(|| ApiError::not_found("run_not_found", format!("there is no run `{id}`")))
}

fn plan_gone() -> ApiError {
    ApiError::not_found("plan_not_found", "the definition of this run is gone")
}

pub(super) async fn run_view(client: &Client, run: &Found) -> ApiResult<RunView> {
    let partition = run.id.partition();
    let (step_list, steps_next, times_whole) = step_views(client, run, 0, STEPS_SHOWN).await?;
    let mut errors = Vec::new();
    if run.record.failed > 0 || run.record.has_errors {
        let mut steps: HashMap<u32, Step> = HashMap::new();
        for error in client.errors(run.id, ERRORS_SHOWN).await? {
            let is_last = !steps.contains_key(&error.index);
            if is_last && run.workflow.is_some() {
                steps.extend(client.steps(run, error.index, 1).await?);
            }
            let past = steps.get(&error.index).map(|step| show::past(&error, step, is_last));
            let step = show::step_name(run.workflow.as_deref(), error.index);
            errors.push(show::attempt(client, partition, step, (&error, past)).await?);
        }
    }
    let mut notes = Vec::new();
    if !times_whole {
        notes.push("the history is too long to be shown with the steps: their times are left out".to_owned());
    }
    if run.workflow.is_none() {
        notes.push("the definition of this run is gone: its steps are left out".to_owned());
    }
    Ok(RunView {
        summary: show::summary(run),
        partition: partition.0,
        plan: run.record.plan.clone(),
        ending: run.record.ending.map(|e| match e {
            Ending::Cancelled => "cancelled".to_owned(),
            Ending::TimedOut => "timed_out".to_owned(),
        }),
        compensation: match run.record.undoing {
            Undoing::None => "none",
            Undoing::Running => "running",
            Undoing::Done => "done",
            Undoing::Failed => "failed",
        }
        .to_owned(),
        in_progress: run.record.work > 0,
        traceparent: run.trace.clone(),
        input: show::run_input(client, run).await?,
        errors,
        step_list,
        steps_next,
        notes,
    })
}

/// Steps from `from` on, where the next ones begin, and whether their times are known.
async fn step_views(
    client: &Client,
    run: &Found,
    from: u32,
    limit: u32,
) -> ApiResult<(Vec<StepView>, Option<String>, bool)> {
    let Some(workflow) = &run.workflow else { return Ok((Vec::new(), None, true)) };
    let steps = client.steps(run, from, limit).await?;
    let (history, whole) = client.recent_history(run.id).await?;
    let times = if whole { show::times(&history) } else { Default::default() };
    let partition = run.id.partition();
    let next = from.saturating_add(limit);
    let next = (next < shown_steps(run)).then(|| next.to_string());
    let due = client.next_attempts(run.id, &steps).await?;
    let view = |(i, s): &(u32, Step)| StepView {
        next_attempt_at: due.get(i).copied().map(rfc3339),
        ..show::step(workflow, *i, s, times.get(i), partition)
    };
    let views = steps.iter().map(view).collect();
    Ok((views, next, whole))
}

struct ListCursor(Cursor);

impl std::fmt::Display for ListCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{:x}.{}", self.0.ms, self.0.source, self.0.run)
    }
}

impl std::str::FromStr for ListCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '.');
        let mut hex = || u64::from_str_radix(parts.next().unwrap_or_default(), 16).map_err(|_| ());
        let (ms, source) = (hex()?, u32::try_from(hex()?).map_err(|_| ())?);
        let run = parts.next().and_then(|t| t.parse().ok()).ok_or(())?;
        Ok(Self(Cursor { ms, source, run }))
    }
}

struct HistoryCursor(Place);

impl std::fmt::Display for HistoryCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{:x}", self.0.offset, self.0.skip)
    }
}

impl std::str::FromStr for HistoryCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (offset, skip) = text.split_once('.').ok_or(())?;
        let hex =
            |t| u64::from_str_radix(t, 16).map_err(|_| ()).and_then(|n| if n < 1 << 40 { Ok(n) } else { Err(()) });
        Ok(Self(Place { offset: hex(offset)?, skip: hex(skip)? as usize }))
    }
}
