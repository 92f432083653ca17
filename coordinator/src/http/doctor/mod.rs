//! `doctor`: looks at everything, says what is wrong and what to do, and puts right what is safe.

mod judge;

use axum::{Json, extract::State, http::HeaderMap};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::ApiResult,
    take,
    view::{DoctorFixed, DoctorView, Problem},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(doctor)).routes(routes!(fix))
}

/// Checks servers, memory, partitions, the auditor, streams, workers, versions and clocks.
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
