//! `doctor`: looks at everything, says what is wrong and what to do, and puts right what is safe.

mod judge;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::ApiResult,
    take,
    view::{DoctorFixed, DoctorView, Problem, SweepView},
};
use crate::store::read::doctor::Sweep;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(doctor)).routes(routes!(fix)).routes(routes!(ask)).routes(routes!(sweep))
}

/// Checks servers, memory, clocks, partitions, timers, runs, the auditor, streams, subscribers, workers, versions and policies.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "operation",
    responses((status = 200, body = DoctorView), (status = 503, body = Problem)))]
async fn doctor(State(app): State<AppState>) -> ApiResult<Json<DoctorView>> {
    let found = app.client.checkup(take::now_ms).await?;
    Ok(Json(judge::view(&found)))
}

/// Puts right what is safe: makes missing groups, deletes consumers of gone workers at which nothing is pending. Each
/// act is noted in the log of operators' actions.
#[utoipa::path(post, path = "/api/v1/doctor/fix", tag = "operation",
    responses((status = 200, body = DoctorFixed), (status = 503, body = Problem)))]
async fn fix(State(app): State<AppState>, headers: HeaderMap) -> ApiResult<Json<DoctorFixed>> {
    let found = app.client.checkup(take::now_ms).await?;
    let done = app.client.fix(&found, &take::actor(&headers)).await?;
    Ok(Json(DoctorFixed { done }))
}

/// Asks every auditor to walk over its partitions at once, instead of at its own pace. Answers before that is done: ask
/// how far it is.
#[utoipa::path(post, path = "/api/v1/doctor/audit", tag = "operation",
    responses((status = 202, body = SweepView), (status = 503, body = Problem)))]
async fn ask(State(app): State<AppState>) -> ApiResult<(StatusCode, Json<SweepView>)> {
    app.client.ask_for_sweep().await?;
    Ok((StatusCode::ACCEPTED, Json(view(app.client.sweep().await?))))
}

/// How far the walks are that were asked for last.
#[utoipa::path(get, path = "/api/v1/doctor/audit", tag = "operation",
    responses((status = 200, body = SweepView), (status = 503, body = Problem)))]
async fn sweep(State(app): State<AppState>) -> ApiResult<Json<SweepView>> {
    Ok(Json(view(app.client.sweep().await?)))
}

fn view(sweep: Sweep) -> SweepView {
    let open: Vec<u16> = sweep.open.iter().map(|partition| partition.0).collect();
    SweepView { done: open.is_empty(), partitions: sweep.partitions, open, runs: sweep.runs, repairs: sweep.repairs }
}
