//! What operators and their programs ask: alive, ready, metrics, numbers of runs, and the short status of a run.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Encoder, TextEncoder};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    runs,
    take::{self, Params},
    view::{LegacyStatus, Problem, Range, RunMetrics},
};
use crate::store::client::Client;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(run_metrics))
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
}

/// Numbers and status of runs under other names.
pub(super) fn legacy(router: Router<AppState>) -> Router<AppState> {
    router.route("/api/v1/workflow/metrics", get(run_metrics)).route("/api/v1/workflow/{id}/status", get(legacy_status))
}

/// Says that the process answers.
#[utoipa::path(get, path = "/livez", tag = "operation", responses((status = 200, body = String)))]
async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether runs can be submitted and decided: Redis answers and every partition has an owner.
#[utoipa::path(get, path = "/readyz", tag = "operation",
    responses((status = 200, body = String), (status = 503, body = Problem)))]
async fn readyz(State(app): State<AppState>) -> ApiResult<&'static str> {
    app.client.ping().await?;
    let unowned = app.client.unowned().await?;
    if unowned.is_empty() {
        return Ok("ok\n");
    }
    let first: Vec<String> = unowned.iter().take(10).map(ToString::to_string).collect();
    let text = format!("{} partitions have no owner: {}", unowned.len(), first.join(", "));
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", text).retry_after(1))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MetricsParams {
    /// `1h`, `24h`, `7d` or `30d`; `24h` if it is left out.
    time_range: Option<Range>,
}

/// Counts runs that ended in a window of time, by how they ended.
#[utoipa::path(get, path = "/api/v1/metrics/runs", tag = "operation", params(MetricsParams),
    responses((status = 200, body = RunMetrics)))]
async fn run_metrics(State(app): State<AppState>, Params(p): Params<MetricsParams>) -> ApiResult<Json<RunMetrics>> {
    metrics_of(&app.client, p.time_range.unwrap_or_default()).await.map(Json)
}

/// Runs of a window that ends now.
pub(super) async fn metrics_of(client: &Client, range: Range) -> ApiResult<RunMetrics> {
    let hours: u64 = match range {
        Range::Hour => 1,
        Range::Day => 24,
        Range::Week => 7 * 24,
        Range::Month => 30 * 24,
    };
    let since_ms = client.server_time_ms().await?.saturating_sub(hours * 3_600_000);
    let ended = client.ended_since(since_ms).await?;
    let finished = ended.completed + ended.failed + ended.cancelled;
    let error_rate_percent = if finished == 0 { 0.0 } else { ended.failed as f64 * 100.0 / finished as f64 };
    Ok(RunMetrics {
        time_range: range,
        active: ended.active,
        suspended: ended.suspended,
        completed: ended.completed,
        failed: ended.failed,
        cancelled: ended.cancelled,
        finished,
        error_rate_percent,
        dead_letters: ended.dead_letters,
    })
}

/// The status of a run in few words.
async fn legacy_status(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<LegacyStatus>> {
    let run = runs::find(&app.client, take::run_id(&id)?).await?;
    let view = runs::run_view(&app.client, &run).await?;
    use stepfleet_protocol::state::State as S;
    let at_work = |s: S| matches!(s, S::Queued | S::Processing | S::Waiting | S::Retrying | S::Failed | S::Suspended);
    Ok(Json(LegacyStatus {
        workflow_id: run.id,
        current_state: run.record.state,
        current_stage: view.step_list.iter().find(|s| at_work(s.state)).map(|s| s.name.clone()),
        retry_count: view.step_list.iter().map(|s| s.attempts.saturating_sub(1)).sum(),
        metadata: view.summary,
    }))
}

/// Gives metrics for Prometheus: those of this process, and from one coordinator alone those of the fleet.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, content_type = "text/plain", body = String)))]
async fn metrics(State(app): State<AppState>) -> Response {
    let mut families = app.metrics.families.registry.gather();
    families.extend(app.counts.families.registry.gather());
    if app.metrics.speaks_for_fleet() {
        families.extend(app.metrics.fleet.registry.gather());
        // Without Redis the counters of this process are still worth having.
        families.extend(app.gauges.gather(&app.client, &app.metrics.work).await);
    }
    let (encoder, mut out) = (TextEncoder::new(), Vec::new());
    if let Err(error) = encoder.encode(&families, &mut out) {
        return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics_failed", error.to_string()).into_response();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response()
}
