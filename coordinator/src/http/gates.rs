//! Circuit breakers, and the pause of queues.

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use stepfleet_protocol::{
    duration::Millis,
    gate::{About, Gate, GateState, Stand},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    take::{self, Optional, Paging, Params},
    view::{BreakerView, CommandRequest, OpenRequest, Page, PauseView, Problem, QueueTaken},
};
use crate::{
    machine::rules::{Breaker, Rules},
    store::gates::{Act, Stored},
    time::rfc3339,
};

/// Longest time for which an operator opens a circuit breaker, in milliseconds: 30 days.
const OPEN_MS_MAX: u64 = 30 * 86_400_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(open))
        .routes(routes!(close))
        .routes(routes!(reset))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// Lists the circuit breakers that were heard of within a day, by name.
#[utoipa::path(get, path = "/api/v1/breakers", tag = "gates", params(Paging),
    responses((status = 200, body = Page<BreakerView>)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<BreakerView>>> {
    let limit = take::limit(p.limit)?;
    let after = match &p.cursor {
        None => None,
        Some(text) => {
            Some(Gate::parse(text).map_err(|_| ApiError::bad("bad_cursor", "the cursor is none of this listing's"))?)
        }
    };
    let mut gates = app.client.breakers(after.as_ref(), limit + 1).await?;
    let more = gates.len() > limit;
    gates.truncate(limit);
    let rules = rules(&app).await?;
    let mut items = Vec::with_capacity(gates.len());
    for (gate, parked) in gates.iter().zip(app.client.parked(&gates).await?) {
        let policy = rules.breaker_of(gate);
        let stored = app.client.breaker(gate, &policy).await?;
        items.push(view(gate, &stored, parked, None));
    }
    let next = gates.last().filter(|_| more).map(ToString::to_string);
    Ok(Json(Page { items, next }))
}

/// Shows a circuit breaker with its numbers.
#[utoipa::path(get, path = "/api/v1/breakers/{name}", tag = "gates",
    params(("name" = String, Path, description = "`handler:<name>` or `target:<text>`")),
    responses((status = 200, body = BreakerView), (status = "4XX", body = Problem)))]
async fn show(State(app): State<AppState>, Path(name): Path<String>) -> ApiResult<Json<BreakerView>> {
    let gate = breaker(&name)?;
    look(&app, &gate).await.map(Json)
}

/// Opens a circuit breaker: nothing passes until its time is over, or somebody closes it.
#[utoipa::path(post, path = "/api/v1/breakers/{name}/open", tag = "gates",
    params(("name" = String, Path, description = "`handler:<name>` or `target:<text>`")), request_body = Option<OpenRequest>,
    responses((status = 200, body = BreakerView), (status = "4XX", body = Problem)))]
async fn open(
    State(app): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<OpenRequest>,
) -> ApiResult<Json<BreakerView>> {
    let for_ms = match body.duration.as_deref().map(Millis::parse) {
        None => 0,
        Some(Ok(span)) if (1..=OPEN_MS_MAX).contains(&span.0) => span.0,
        Some(_) => {
            let found = body.duration.unwrap_or_default();
            let text = format!("`for` is `{found}`: allowed is a duration from 1ms to 30d, such as `10m`");
            return Err(ApiError::bad("bad_duration", text));
        }
    };
    act(&app, &name, &headers, Act::Open(for_ms), body.reason).await
}

/// Closes a circuit breaker: what is parked is released in growing waves.
#[utoipa::path(post, path = "/api/v1/breakers/{name}/close", tag = "gates",
    params(("name" = String, Path, description = "`handler:<name>` or `target:<text>`")), request_body = Option<CommandRequest>,
    responses((status = 200, body = BreakerView), (status = "4XX", body = Problem)))]
async fn close(
    State(app): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<BreakerView>> {
    act(&app, &name, &headers, Act::Close, body.reason).await
}

/// Closes a circuit breaker, forgets what it counted, and releases what is parked at once.
#[utoipa::path(post, path = "/api/v1/breakers/{name}/reset", tag = "gates",
    params(("name" = String, Path, description = "`handler:<name>` or `target:<text>`")), request_body = Option<CommandRequest>,
    responses((status = 200, body = BreakerView), (status = "4XX", body = Problem)))]
async fn reset(
    State(app): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<BreakerView>> {
    act(&app, &name, &headers, Act::Reset, body.reason).await
}

async fn act(
    app: &AppState,
    name: &str,
    headers: &HeaderMap,
    act: Act,
    reason: Option<String>,
) -> ApiResult<Json<BreakerView>> {
    let gate = breaker(name)?;
    let policy = rules(app).await?.breaker_of(&gate);
    let (actor, reason) = (take::actor(headers), take::reason(reason).unwrap_or_default());
    app.client.act_on_breaker(&gate, &policy, act, (&actor, &reason)).await?;
    look(app, &gate).await.map(Json)
}

async fn look(app: &AppState, gate: &Gate) -> ApiResult<BreakerView> {
    let policy = rules(app).await?.breaker_of(gate);
    let stored = app.client.breaker(gate, &policy).await?;
    let parked = app.client.parked(std::slice::from_ref(gate)).await?.into_iter().sum();
    Ok(view(gate, &stored, parked, Some(&policy)))
}

/// Pauses a queue: nothing of it is given to workers, and jobs that they have not begun come back uncounted.
#[utoipa::path(post, path = "/api/v1/queues/{name}/pause", tag = "gates", params(("name" = String, Path, description = "the queue")),
    request_body = Option<CommandRequest>, responses((status = 200, body = QueueTaken), (status = "4XX", body = Problem)))]
async fn pause(
    State(app): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<QueueTaken>> {
    set_paused(&app, &name, true, &headers, body.reason).await
}

/// Lets a paused queue go on.
#[utoipa::path(post, path = "/api/v1/queues/{name}/resume", tag = "gates", params(("name" = String, Path, description = "the queue")),
    request_body = Option<CommandRequest>, responses((status = 200, body = QueueTaken), (status = "4XX", body = Problem)))]
async fn resume(
    State(app): State<AppState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<QueueTaken>> {
    set_paused(&app, &name, false, &headers, body.reason).await
}

async fn set_paused(
    app: &AppState,
    name: &str,
    paused: bool,
    headers: &HeaderMap,
    reason: Option<String>,
) -> ApiResult<Json<QueueTaken>> {
    let queue = take::name(name)?;
    let (actor, reason) = (take::actor(headers), take::reason(reason).unwrap_or_default());
    let changed = app.client.pause_queue(&Gate::queue(&queue), paused, &actor, &reason).await?;
    Ok(Json(QueueTaken { queue: queue.to_string(), paused, changed }))
}

/// The policies of the fleet.
async fn rules(app: &AppState) -> ApiResult<Rules> {
    let stored = app.client.policies().await?;
    Ok(Rules::new(stored.version, stored.policies))
}

fn breaker(name: &str) -> ApiResult<Gate> {
    let gate = Gate::parse(name).map_err(|e| ApiError::bad("bad_breaker", e.to_string()))?;
    if let About::Queue(queue) = gate.about() {
        let text = format!("`{name}` is a queue: allowed are `handler:<name>` and `target:<text>`");
        return Err(ApiError::bad("bad_breaker", text).hint(format!("pause it with `queues pause {queue}`")));
    }
    Ok(gate)
}

fn view(gate: &Gate, stored: &Stored, parked: u64, policy: Option<&Breaker>) -> BreakerView {
    let at = |ms: u64| (ms > 0).then(|| rfc3339(ms));
    BreakerView {
        name: gate.to_string(),
        state: stored.state.clone(),
        since: at(stored.since_ms),
        until: at(stored.until_ms),
        reason: stored.reason.clone(),
        actor: stored.actor.clone(),
        parked,
        ok: stored.ok,
        failed: stored.failed,
        row: stored.row,
        trips: stored.trips,
        trying: stored.trying,
        policy: policy.copied(),
    }
}

/// The pause of a queue, if it is paused.
pub(super) fn pause_of(state: Option<&GateState>) -> Option<PauseView> {
    let state = state.filter(|state| state.stand == Stand::Paused)?;
    Some(PauseView { since: rfc3339(state.since_ms), reason: state.reason.clone(), actor: state.actor.clone() })
}
