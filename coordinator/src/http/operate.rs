//! What operators and their programs ask: alive, ready, metrics, numbers of runs, and the short status of a run.

use std::sync::LazyLock;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    fleet::queue_views,
    runs, subscribers,
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

/// Gauges that are read from Redis when they are asked for.
struct Gauges {
    registry: Registry,
    queue_depth: GaugeVec,
    queue_pending: GaugeVec,
    queue_oldest: GaugeVec,
    queue_drain: GaugeVec,
    queue_workers: GaugeVec,
    runs: GaugeVec,
    counters: GaugeVec,
    subscriber_lag: GaugeVec,
    memory: GaugeVec,
    hours_to_full: GaugeVec,
}

static GAUGES: LazyLock<tokio::sync::Mutex<Gauges>> = LazyLock::new(|| tokio::sync::Mutex::new(Gauges::new()));

impl Gauges {
    fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str, label: &str| {
            let gauge = GaugeVec::new(Opts::new(format!("stepfleet_{name}"), help), &[label]).expect("a legal metric");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        Self {
            queue_depth: gauge("queue_depth", "Jobs that no worker has taken", "queue"),
            queue_pending: gauge("queue_pending", "Jobs that workers have", "queue"),
            queue_oldest: gauge("queue_oldest_seconds", "How long the oldest job nobody has taken has waited", "queue"),
            queue_drain: gauge(
                "queue_drain_seconds",
                "How long what waits will take at the rate of late; absent while no job is taken",
                "queue",
            ),
            queue_workers: gauge("queue_workers", "Live workers that read the queue", "queue"),
            runs: gauge("runs", "Runs that go on or are suspended, and open dead letters", "state"),
            counters: gauge("partition_counter", "What was dropped or repaired, summed over partitions", "name"),
            subscriber_lag: gauge(
                "outbox_lag",
                "Entries of the outbox that the subscriber has not seen, summed over partitions",
                "subscriber",
            ),
            memory: gauge("redis_memory_ratio", "Share of maxmemory that is used", "node"),
            hours_to_full: gauge("redis_memory_hours_to_full", "Hours until it is full at the present rate", "node"),
            registry,
        }
    }

    async fn read(&mut self, client: &Client) -> ApiResult<()> {
        let of_queues = [&self.queue_depth, &self.queue_pending, &self.queue_oldest, &self.queue_drain];
        of_queues.into_iter().chain([&self.queue_workers]).for_each(GaugeVec::reset);
        for queue in queue_views(client).await? {
            let name = [queue.name.as_str()];
            self.queue_depth.with_label_values(&name).set(queue.depth as f64);
            self.queue_pending.with_label_values(&name).set(queue.pending as f64);
            self.queue_oldest.with_label_values(&name).set(queue.oldest_age_ms.unwrap_or(0) as f64 / 1_000.0);
            if let Some(ms) = queue.drain_ms {
                self.queue_drain.with_label_values(&name).set(ms as f64 / 1_000.0);
            }
            self.queue_workers.with_label_values(&name).set(f64::from(queue.workers));
        }
        let runs = metrics_of(client, Range::Hour).await?;
        for (state, count) in
            [("active", runs.active), ("suspended", runs.suspended), ("dead_letters", runs.dead_letters)]
        {
            self.runs.with_label_values(&[state]).set(count as f64);
        }
        self.subscriber_lag.reset();
        for view in subscribers::views(client).await? {
            self.subscriber_lag.with_label_values(&[view.name.as_str()]).set(view.lag as f64);
        }
        self.memory.reset();
        self.hours_to_full.reset();
        for node in client.memory() {
            self.memory.with_label_values(&[node.node.as_str()]).set(node.ratio());
            if let Some(hours) = node.hours_to_full {
                self.hours_to_full.with_label_values(&[node.node.as_str()]).set(hours);
            }
        }
        self.counters.reset();
        for seen in client.see_partitions(0, u16::MAX).await? {
            for (name, value) in seen.counters {
                self.counters.with_label_values(&[name.as_str()]).add(value as f64);
            }
        }
        Ok(())
    }
}

/// Gives metrics for Prometheus: those of this process, and those of the fleet as Redis knows them.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, content_type = "text/plain", body = String)))]
async fn metrics(State(app): State<AppState>) -> Response {
    let mut families = app.registry.gather();
    families.extend(app.counts.registry.gather());
    {
        let mut gauges = GAUGES.lock().await;
        // Without Redis the counters of this process are still worth having.
        if gauges.read(&app.client).await.is_ok() {
            families.extend(gauges.registry.gather());
        }
    }
    let (encoder, mut out) = (TextEncoder::new(), Vec::new());
    if let Err(error) = encoder.encode(&families, &mut out) {
        return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics_failed", error.to_string()).into_response();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response()
}
