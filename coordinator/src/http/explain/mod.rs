//! `explain`: why a step does not run, and what would make it run.

mod say;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use stepfleet_protocol::state::State as RunState;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    runs,
    take::{self, Params},
    view::{Problem, RunExplanation, StepExplanation},
};
use crate::{
    machine::run::Step,
    store::{client::Client, read::runs::Found},
};

/// Steps that are explained with a run.
const STEPS_EXPLAINED: usize = 10;
/// Steps of a run among which those are looked for.
const STEPS_LOOKED_AT: u32 = 2_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(explain))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExplainParams {
    /// Only this step.
    step: Option<String>,
}

/// Says why a run, or a step of it, stands where it stands, and what would make it go on.
#[utoipa::path(get, path = "/api/v1/runs/{id}/explain", tag = "runs",
    params(("id" = String, Path, description = "the run"), ExplainParams),
    responses((status = 200, body = RunExplanation), (status = 404, body = Problem)))]
async fn explain(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<ExplainParams>,
) -> ApiResult<Json<RunExplanation>> {
    let client = &app.client;
    let run = runs::find(client, take::run_id(&id)?).await?;
    let (chosen, left_out) = match &p.step {
        Some(name) => (vec![index_of(&run, name)?], 0),
        None => choose(client, &run).await?,
    };
    let workers = client.workers().await?;
    let now_ms = client.server_time_ms().await?;
    let (history, _) = client.recent_history(run.id).await?;
    let mut steps = Vec::new();
    for index in chosen {
        if let Some(found) = client.situation(&run, index, &workers).await? {
            let letter = found
                .step
                .letter
                .map(|entry| crate::store::read::PlacedId { entry, partition: run.id.partition() }.to_string());
            let seen = say::Seen { run: &run, history: &history, now_ms, letter };
            steps.push(StepExplanation { step: found.name.clone(), why: say::step(&seen, &found) });
        }
    }
    let seen = say::Seen { run: &run, history: &history, now_ms, letter: None };
    let whole = say::run(&seen, steps.first());
    Ok(Json(RunExplanation { id: run.id, run: whole, steps, steps_left_out: left_out }))
}

fn index_of(run: &Found, name: &str) -> ApiResult<u32> {
    let found = run.workflow.as_ref().and_then(|w| w.steps.keys().position(|step| step.as_str() == name));
    let missing = || {
        let text = format!("the run has no step `{}`", name.escape_debug());
        ApiError::not_found("step_not_found", text).hint("`GET /api/v1/runs/{id}/steps` lists its steps")
    };
    found.map(|index| index as u32).ok_or_else(missing)
}

/// The steps that explain the run, the most telling first, and how many more are unfinished.
async fn choose(client: &Client, run: &Found) -> ApiResult<(Vec<u32>, u32)> {
    let mut found: Vec<(u8, u32)> = client
        .steps(run, 0, STEPS_LOOKED_AT)
        .await?
        .iter()
        .filter_map(|(index, step)| telling(step).map(|rank| (rank, *index)))
        .collect();
    found.sort_unstable();
    let left_out = found.len().saturating_sub(STEPS_EXPLAINED) as u32;
    Ok((found.into_iter().take(STEPS_EXPLAINED).map(|(_, index)| index).collect(), left_out))
}

/// How much a step tells about why its run does not go on; none for a finished one.
fn telling(step: &Step) -> Option<u8> {
    match step.state {
        RunState::Failed | RunState::Suspended => Some(0),
        RunState::Retrying | RunState::Waiting => Some(1),
        RunState::Queued => Some(2),
        RunState::Processing => Some(3),
        RunState::Created => Some(4),
        RunState::Completed | RunState::Cancelled | RunState::Skipped => None,
    }
}
