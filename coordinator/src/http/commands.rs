//! Commands about runs: cancel, suspend, resume, retry.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use stepfleet_protocol::message::Verb;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiResult, state_of},
    run_url,
    take::{self, Optional},
    view::{CommandRequest, CommandTaken, Problem, SuspendRequest},
};
use crate::store::client::{Decided, Wish};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(cancel)).routes(routes!(suspend)).routes(routes!(resume)).routes(routes!(retry))
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

/// Reopens a failed or suspended run from its failed steps, keeping the finished ones.
#[utoipa::path(post, path = "/api/v1/runs/{id}/retry", tag = "runs", params(("id" = String, Path, description = "the run")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CommandTaken), (status = 202, body = CommandTaken),
    (status = 404, body = Problem), (status = 409, description = "illegal in the run's state", body = Problem)))]
async fn retry(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Response> {
    command(&app, &id, &headers, Verb::Retry, body.reason).await
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
