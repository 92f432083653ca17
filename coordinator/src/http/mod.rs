//! The API by resource, with its OpenAPI description.
//!
//! | route | does |
//! |---|---|
//! | `POST /api/v1/runs` | submits a run: [`view::SubmitRequest`] -> 201, 200 (known) or 202 [`view::Submitted`]; `Idempotency-Key` |
//! | `POST /api/v1/runs/bulk` | NDJSON of [`view::SubmitRequest`] -> NDJSON of [`view::BulkAnswer`], one a line, in order |
//! | `GET /api/v1/runs?state=&workflow=&limit=&cursor=` | [`view::Page`] of [`view::RunSummary`], newest first |
//! | `GET /api/v1/runs/{id}` | [`view::RunView`] |
//! | `GET /api/v1/runs/{id}/explain?step=` | [`view::RunExplanation`]: why it does not go on, and what would make it |
//! | `GET /api/v1/runs/{id}/steps?limit=&cursor=` | page of [`view::StepView`] |
//! | `GET /api/v1/runs/{id}/history?limit=&cursor=` | page of [`view::HistoryView`], oldest first |
//! | `GET /api/v1/runs/{id}/calls?limit=&cursor=` | page of [`view::CallView`] |
//! | `GET /api/v1/runs/{id}/input`, `GET /api/v1/runs/{id}/output?step=` | the value itself as JSON; without `step` an object of the outputs of the last steps |
//! | `POST /api/v1/runs/{id}/cancel`, `/resume`, `/compensate` | [`view::CommandRequest`] (optional) -> 200 or 202 [`view::CommandTaken`], 409 |
//! | `POST /api/v1/runs/{id}/retry` | [`view::RetryRequest`] (optional) -> the same |
//! | `POST /api/v1/runs/{id}/resolve` | [`view::ResolveRequest`] -> the same |
//! | `POST /api/v1/runs/{id}/suspend` | [`view::SuspendRequest`] (optional) -> the same |
//! | `POST /api/v1/workflows` | YAML or JSON text -> 201 or 200 [`view::Registered`], 422 with every problem |
//! | `POST /api/v1/workflows/check` | YAML or JSON text -> 200 [`view::Checked`] |
//! | `GET /api/v1/workflows?limit=&cursor=` | page of [`view::WorkflowSummary`] by name |
//! | `GET /api/v1/workflows/{name}?version=` | [`view::WorkflowDetail`] |
//! | `GET /api/v1/workflows/schema` | the JSON Schema of definitions |
//! | `GET /api/v1/dead-letters?workflow=&handler=&queue=&category=&limit=&cursor=` | page of [`view::LetterView`], newest first |
//! | `GET /api/v1/dead-letters/{id}` | [`view::LetterView`] with attempts and input |
//! | `POST /api/v1/dead-letters/{id}/replay` | [`view::ReplayRequest`] (optional) -> [`view::Replayed`] |
//! | `GET /api/v1/workers` | page of [`view::WorkerView`] |
//! | `GET /api/v1/workers/health` | [`view::FleetHealth`]; 200 whatever the level |
//! | `GET /api/v1/workers/stats` | [`view::FleetStats`] |
//! | `GET /api/v1/workers/{id}` | [`view::WorkerView`] |
//! | `POST /api/v1/workers/{id}/drain` | 202 [`view::Draining`] |
//! | `GET /api/v1/queues` | page of [`view::QueueView`] |
//! | `POST /api/v1/queues/{name}/pause`, `/resume` | [`view::CommandRequest`] (optional) -> [`view::QueueTaken`] |
//! | `GET /api/v1/breakers?limit=&cursor=`, `GET /api/v1/breakers/{name}` | page of, one [`view::BreakerView`] |
//! | `POST /api/v1/breakers/{name}/open` | [`view::OpenRequest`] (optional) -> [`view::BreakerView`] |
//! | `POST /api/v1/breakers/{name}/close`, `/reset` | [`view::CommandRequest`] (optional) -> [`view::BreakerView`] |
//! | `GET /api/v1/partitions`, `POST` [`view::AddPartitions`] | page of [`view::PartitionView`] |
//! | `GET /api/v1/quarantine?cursor=`, `GET` and `DELETE /api/v1/quarantine/{id}` | page of, one [`view::QuarantineView`]; [`view::Discarded`] |
//! | `GET`, `PUT /api/v1/policies` | [`view::PoliciesView`]; YAML or JSON text -> [`view::PoliciesApplied`], 409, 422 |
//! | `GET /api/v1/policies/effective?workflow=&step=&handler=&target=` | [`view::EffectivePolicies`] |
//! | `GET /api/v1/policies/history`, `/schema` | page of [`view::PoliciesView`]; the JSON Schema |
//! | `GET /api/v1/audit?actor=&action=&target=&since=&until=&limit=&cursor=` | page of [`view::AuditView`], newest first |
//! | `GET /api/v1/subscribers` | page of [`view::SubscriberView`]: who follows the outbox, and how far it is |
//! | `GET /api/v1/subscribers/undelivered?subscriber=&limit=&cursor=` | page of [`view::UndeliveredView`], newest first |
//! | `GET /api/v1/doctor`, `POST /api/v1/doctor/fix` | [`view::DoctorView`], [`view::DoctorFixed`] |
//! | `POST /api/v1/doctor/audit`, `GET /api/v1/doctor/audit` | [`view::SweepView`] |
//! | `GET /api/v1/metrics/runs?time_range=24h` | [`view::RunMetrics`] |
//! | `GET /api/v1/openapi.json`, `/livez`, `/readyz`, `/metrics` | |
//! | `/api/v1/workflow/{id}/status`, … , `/workers/health`, `/workers/stats` | other names of the above |
//!
//! Errors are [`view::Problem`]. Which role a route needs, where tokens are asked for, stands in `roles`.

mod audit;
mod calls;
mod campaigns;
mod commands;
mod doctor;
mod error;
mod explain;
mod fleet;
mod gates;
mod gauges;
mod guard;
mod letters;
mod limits;
mod operate;
mod partitions;
mod policies;
mod roles;
mod runs;
mod sent;
mod show;
mod submit;
mod subscribers;
mod take;
pub mod tokens;
pub mod view;
mod workflows;

use std::{io, sync::Arc, time::Duration};

use axum::{Json, Router, extract::DefaultBodyLimit, http::Uri, middleware, routing::get};
use stepfleet_metric::Family;
use stepfleet_protocol::id::RunId;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    shell::{metrics::Metrics, spans::Spans},
    store::client::Client,
};
use error::ApiError;

/// Bytes of a request, but for definitions and bulk submits.
const BODY_BYTES_MAX: usize = 2 << 20;
/// Bulk submits at once: each may hold its whole request in memory.
const BULKS_MAX: usize = 4;

/// How long a job may wait before more workers are wanted, unless it is set.
pub const AGE_TARGET: Duration = Duration::from_secs(10);

/// What every handler has.
#[derive(Debug, Clone)]
pub struct AppState {
    client: Client,
    metrics: Metrics,
    gauges: gauges::Gauges,
    counts: guard::Counts,
    requests: Arc<Semaphore>,
    bulks: Arc<Semaphore>,
    tokens: Option<tokens::Tokens>,
    spans: Spans,
}

impl AppState {
    /// Over this client. `/metrics` shows those of the coordinator in the same process too.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            gauges: gauges::Gauges::new(AGE_TARGET),
            counts: guard::Counts::new(),
            requests: Arc::new(Semaphore::new(guard::REQUESTS_MAX)),
            bulks: Arc::new(Semaphore::new(BULKS_MAX)),
            tokens: None,
            spans: Spans::default(),
        }
    }

    /// With spans of submits.
    #[must_use]
    pub fn with_spans(self, spans: Spans) -> Self {
        Self { spans, ..self }
    }

    /// With the time that a job may wait before more workers are wanted (`stepfleet_queue_wanted_workers`).
    #[must_use]
    pub fn with_age_target(mut self, target: Duration) -> Self {
        self.gauges = gauges::Gauges::new(target);
        self
    }

    /// The same for holders of these tokens only, but for probes and the description of the API. [`serve`] follows their file.
    #[must_use]
    pub fn with_tokens(self, tokens: tokens::Tokens) -> Self {
        Self { tokens: Some(tokens), ..self }
    }
}

/// Every family that `/metrics` of a coordinator may show: those of each process, and those of the fleet.
pub fn families() -> (Vec<Family>, Vec<Family>) {
    let (metrics, counts) = (Metrics::new(), guard::Counts::new());
    let own = metrics.families.known().iter().chain(counts.families.known()).cloned().collect();
    let fleet = metrics.fleet.known().iter().cloned().chain(gauges::families()).collect();
    (own, fleet)
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Stepfleet",
    description = "Runs workflows on a fleet of workers.",
    license(name = "Apache-2.0")
))]
struct Description;

/// Every route, and the description of the API.
fn routes() -> (Router<AppState>, utoipa::openapi::OpenApi) {
    let (router, mut description) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(runs::router())
        .merge(doctor::router())
        .merge(explain::router())
        .merge(submit::router())
        .merge(commands::router())
        .merge(workflows::router())
        .merge(letters::router())
        .merge(campaigns::router())
        .merge(fleet::router())
        .merge(gates::router())
        .merge(limits::router())
        .merge(partitions::router())
        .merge(policies::router())
        .merge(operate::router())
        .merge(audit::router())
        .merge(subscribers::router())
        .merge(calls::router())
        .split_for_parts();
    roles::describe(&mut description);
    (router, description)
}

/// The description of the API, as `/api/v1/openapi.json` gives it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().1
}

/// The whole API as a service, to be served or called.
pub fn router(app: AppState) -> Router {
    let (router, description) = routes();
    let description = Arc::new(description);
    let router =
        [runs::legacy, commands::legacy, fleet::legacy, operate::legacy].into_iter().fold(router, |r, add| add(r));
    router
        .route(
            "/api/v1/openapi.json",
            get(move || {
                let description = description.clone();
                async move { Json(serde_json::to_value(&*description).unwrap_or_default()) }
            }),
        )
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

async fn unknown(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::not_found("no_such_route", format!("there is nothing at `{}`", path.escape_debug()))
        .hint("GET /api/v1/openapi.json lists what there is")
}

async fn wrong_method(method: axum::http::Method) -> ApiError {
    let text = format!("`{method}` is not allowed here");
    ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

/// Serves the API until `shutdown`, then finishes the requests that are under way.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, app: AppState, shutdown: CancellationToken) -> io::Result<()> {
    let (client, tokens) = (app.client.clone(), app.tokens.clone());
    let served = axum::serve(listener, router(app)).with_graceful_shutdown(shutdown.cancelled_owned());
    tokio::select! {
        served = served => served,
        () = client.hear() => Err(io::Error::other("the subscription to answers has ended")),
        () = client.watch_memory() => Err(io::Error::other("nobody looks at the memory of the servers any more")),
        () = tokens::follow(tokens) => Err(io::Error::other("nobody looks at the file of tokens any more")),
    }
}

fn run_url(run: RunId) -> String {
    format!("/api/v1/runs/{run}")
}
