//! Commands about runs: cancel, suspend, resume, retry, resolve, compensate.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use stepfleet_protocol::{
    failure,
    message::{Resolution, Verb},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult, state_of},
    letters::payload,
    run_url, runs,
    take::{self, Optional, Strict},
    view::{CommandRequest, CommandTaken, Problem, ResolveRequest, RetryRequest, SuspendRequest},
};
use crate::store::client::{Decided, Wish};

/// Bytes of the text with which a step is failed by hand; what is beyond them is cut off.
const REASON_BYTES_MAX: usize = 1_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(cancel))
        .routes(routes!(suspend))
        .routes(routes!(resume))
        .routes(routes!(retry))
        .routes(routes!(resolve))
        .routes(routes!(compensate))
}

/// The same commands under other names.
pub(super) fn legacy(router: Router<AppState>) -> Router<AppState> {
    router
        .route("/api/v1/workflow/{id}/cancel", post(cancel))
        .route("/api/v1/workflow/{id}/suspend", post(suspend))
        .route("/api/v1/workflow/{id}/resume", post(resume))
        .route("/api/v1/workflow/{id}/retry", post(retry))
}

/// Stops a run for good.
#[utoipa::path(post, path = "/api/v1/runs/{id}/cancel", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn cancel(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Response> {
    command(&app, &id, &headers, Verb::Cancel, body.reason).await
}

/// Holds a run. Running attempts finish and count, or are stopped uncounted with `now`. A failed run is held for a look, so
/// that nobody retries it by mistake.
#[utoipa::path(post, path = "/api/v1/runs/{id}/suspend", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<SuspendRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn suspend(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<SuspendRequest>,
) -> ApiResult<Response> {
    command(&app, &id, &headers, Verb::Suspend { now: body.now }, body.reason).await
}

/// Lets a suspended run go on. A failed run that was suspended is reopened, as by a retry.
#[utoipa::path(post, path = "/api/v1/runs/{id}/resume", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn resume(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Response> {
    command(&app, &id, &headers, Verb::Resume, body.reason).await
}

/// Reopens a failed or suspended run from its failed steps, keeping the finished ones. With `from` the run goes back to that
/// step: it and everything behind it is done again, with the outputs of the steps before it.
#[utoipa::path(post, path = "/api/v1/runs/{id}/retry", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<RetryRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn retry(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<RetryRequest>,
) -> ApiResult<Response> {
    let verb = match body.from {
        Some(step) => Verb::RetryFrom { index: step_index(&app, &id, &step).await? },
        None => Verb::Retry,
    };
    command(&app, &id, &headers, verb, body.reason).await
}

/// Says by hand what became of a step that failed or is held: it is completed with an output, or failed for good. The run
/// goes on.
#[utoipa::path(post, path = "/api/v1/runs/{id}/resolve", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = ResolveRequest, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the state of the run or step", body = Problem)))]
async fn resolve(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Strict(body): Strict<ResolveRequest>,
) -> ApiResult<Response> {
    let resolution = match (&body.complete, body.fail) {
        (Some(serde_json::Value::Null), None) => Resolution::Completed(None),
        (Some(output), None) => Resolution::Completed(Some(payload(output)?)),
        (None, Some(text)) => Resolution::Failed(failure::cut(text, REASON_BYTES_MAX)),
        (Some(_), Some(_)) | (None, None) => {
            return Err(ApiError::bad("bad_resolution", "exactly one of `complete` and `fail` must be there"));
        }
    };
    let index = step_index(&app, &id, &body.step).await?;
    command(&app, &id, &headers, Verb::Resolve { index, resolution }, body.reason).await
}

/// Undoes the completed steps of a failed run that say how (`compensate`), the last first. The run ends failed, and is not
/// taken up again.
#[utoipa::path(post, path = "/api/v1/runs/{id}/compensate", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn compensate(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Response> {
    command(&app, &id, &headers, Verb::Compensate, body.reason).await
}

/// The number of a step of the run by its name.
async fn step_index(app: &AppState, id: &str, step: &str) -> ApiResult<u32> {
    let run = runs::find(&app.client, take::run_id(id)?).await?;
    runs::step_index(&run, step)
}

async fn command(
    app: &AppState,
    id: &str,
    headers: &HeaderMap,
    verb: Verb,
    reason: Option<String>,
) -> ApiResult<Response> {
    let run = take::run_id(id)?;
    let reason = take::reason(reason);
    let request = format!("{run} {verb:?} {reason:?}");
    let (id, again) = take::command_id(&app.client, headers, &request).await?;
    let wish = Wish { run, verb, actor: take::actor(headers), reason, id, again };
    let (status, state) = match app.client.command(wish).await? {
        Decided::Answered(answer) => (StatusCode::OK, Some(state_of(answer)?)),
        Decided::Pending => (StatusCode::ACCEPTED, None),
    };
    let taken = CommandTaken { id: run, state, command_id: id.to_string(), url: run_url(run) };
    Ok((status, [(header::LOCATION, taken.url.clone())], Json(taken)).into_response())
}
