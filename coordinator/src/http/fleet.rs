//! Workers and queues.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::get as http_get,
};
use stepfleet_protocol::{
    audit::action,
    beat::{Beat, Phase},
    gate::Gate,
    id::WorkerId,
    name::Name,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState, audit,
    error::{ApiError, ApiResult},
    gates,
    operate::metrics_of,
    take::{self, Paging, Params},
    view::{
        Draining, FleetHealth, FleetStats, HeldView, Level, Page, Problem, QueueStats, QueueView, Range, WorkerView,
    },
};
use crate::{
    store::{
        client::{Client, ClientError},
        read::{fleet::Registered, queues::Queue},
    },
    time::rfc3339,
};

/// A queue with more waiting jobs for each live worker is in trouble.
const DEPTH_PER_WORKER: u64 = 100;
/// A queue whose oldest job has waited longer is in trouble.
const OLDEST_MS: u64 = 60_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(workers))
        .routes(routes!(health))
        .routes(routes!(stats))
        .routes(routes!(worker))
        .routes(routes!(drain))
        .routes(routes!(queues))
}

/// Health and numbers of the fleet under other names.
pub(super) fn legacy(router: Router<AppState>) -> Router<AppState> {
    router.route("/workers/health", http_get(health)).route("/workers/stats", http_get(stats))
}

/// Lists workers, the longest registered first.
#[utoipa::path(get, path = "/api/v1/workers", tag = "fleet", params(Paging),
    responses((status = 200, body = Page<WorkerView>)))]
async fn workers(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<WorkerView>>> {
    let (limit, from) = (take::limit(p.limit)?, take::cursor::<usize>(p.cursor.as_deref())?.unwrap_or(0));
    let all = app.client.workers().await?;
    let items = all.iter().skip(from).take(limit).map(worker_view).collect();
    let end = from.saturating_add(limit);
    Ok(Json(Page { items, next: (end < all.len()).then(|| end.to_string()) }))
}

/// Shows a worker.
#[utoipa::path(get, path = "/api/v1/workers/{id}", tag = "fleet", params(("id" = String, Path, description = "the worker")),
    responses((status = 200, body = WorkerView), (status = 404, body = Problem)))]
async fn worker(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<WorkerView>> {
    find(&app.client, &id).await.map(|w| Json(worker_view(&w)))
}

/// Tells a worker to take nothing more, finish and leave.
#[utoipa::path(post, path = "/api/v1/workers/{id}/drain", tag = "fleet", params(("id" = String, Path, description = "the worker")),
    responses((status = 202, body = Draining), (status = 404, body = Problem)))]
async fn drain(
    State(app): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult<(StatusCode, Json<Draining>)> {
    let worker = find(&app.client, &id).await?;
    // The entry first: a message cannot be taken back, and none may be without its entry.
    audit::write(&app, &headers, (action::WORKER_DRAIN, format!("worker:{}", worker.id)), None).await?;
    let heard = app.client.drain(worker.id.as_str()).await?;
    Ok((StatusCode::ACCEPTED, Json(Draining { id, heard })))
}

/// Says how the fleet does: healthy, warning or critical, and why.
#[utoipa::path(get, path = "/api/v1/workers/health", tag = "fleet", responses((status = 200, body = FleetHealth)))]
async fn health(State(app): State<AppState>) -> ApiResult<Json<FleetHealth>> {
    let (workers, queues) = tokio::try_join!(app.client.workers(), app.client.queues())?;
    let now_ms = app.client.server_time_ms().await?;
    let count = |state: &str| workers.iter().filter(|w| state_of(w) == state).count() as u32;
    let mut health = FleetHealth {
        workers_live: count("running"),
        workers_draining: count("draining"),
        workers_silent: count("silent"),
        ..FleetHealth::default()
    };
    for (name, queue) in &queues {
        let view = queue_view(name.as_str(), queue, &workers, now_ms);
        if view.level > Level::Healthy {
            let age = view.oldest_age_ms.unwrap_or(0);
            health.reasons.push(format!(
                "queue {name}: {} jobs wait, the oldest for {age} ms, {} live workers",
                view.depth, view.workers
            ));
        }
        health.level = health.level.max(view.level);
        health.queues.push(view);
    }
    Ok(Json(health))
}

/// Gives the numbers of the fleet: slots, running jobs, queues, runs of the last hour.
#[utoipa::path(get, path = "/api/v1/workers/stats", tag = "fleet", responses((status = 200, body = FleetStats)))]
async fn stats(State(app): State<AppState>) -> ApiResult<Json<FleetStats>> {
    let (workers, queues) = tokio::try_join!(app.client.workers(), app.client.queues())?;
    let mut stats = FleetStats { runs: metrics_of(&app.client, Range::Hour).await?, ..FleetStats::default() };
    let mut by_queue: BTreeMap<String, QueueStats> = BTreeMap::new();
    for beat in live(&workers) {
        stats.workers += 1;
        stats.slots += beat.slots;
        stats.running += running(beat);
        for queue in &beat.queues {
            let of = by_queue.entry(queue.to_string()).or_default();
            of.workers += 1;
            of.slots += beat.slots;
        }
        for held in beat.held.iter().filter(|h| h.running_ms.is_some()) {
            by_queue.entry(held.queue.to_string()).or_default().running += 1;
        }
    }
    for (name, queue) in queues {
        let of = by_queue.entry(name.to_string()).or_default();
        (of.depth, of.pending) = (queue.depth(), queue.pending);
    }
    stats.queues = by_queue;
    if stats.slots > 0 {
        stats.utilisation_percent = f64::from(stats.running) * 100.0 / f64::from(stats.slots);
    }
    Ok(Json(stats))
}

/// Lists queues by name.
#[utoipa::path(get, path = "/api/v1/queues", tag = "fleet", responses((status = 200, body = Page<QueueView>)))]
async fn queues(State(app): State<AppState>) -> ApiResult<Json<Page<QueueView>>> {
    Ok(Json(Page { items: queue_views(&app.client).await?, next: None }))
}

/// Every queue with its workers.
pub(super) async fn queue_views(client: &Client) -> ApiResult<Vec<QueueView>> {
    let (workers, queues) = tokio::try_join!(client.workers(), client.queues())?;
    let (now_ms, gates) = (client.server_time_ms().await?, client.gates().await.map_err(ClientError::from)?);
    let with_pause = |(name, queue): (&Name, &Queue)| QueueView {
        paused: gates::pause_of(gates.get(&Gate::queue(name))),
        ..queue_view(name.as_str(), queue, &workers, now_ms)
    };
    Ok(queues.iter().map(with_pause).collect())
}

fn queue_view(name: &str, queue: &Queue, workers: &[Registered], now_ms: u64) -> QueueView {
    let readers: Vec<&Beat> = live(workers).filter(|b| b.queues.iter().any(|q| q.as_str() == name)).collect();
    let oldest_age_ms = queue.oldest_ms.map(|since| now_ms.saturating_sub(since));
    let (depth, count) = (queue.depth(), readers.len() as u64);
    let level = if depth > 0 && count == 0 {
        Level::Critical
    } else if depth > DEPTH_PER_WORKER * count || oldest_age_ms.is_some_and(|age| age > OLDEST_MS) {
        Level::Warning
    } else {
        Level::Healthy
    };
    QueueView {
        name: name.to_owned(),
        depth,
        ready: queue.ready,
        on_streams: queue.on_streams,
        pending: queue.pending,
        oldest_age_ms,
        drain_ms: queue.drain_ms,
        workers: count as u32,
        slots: readers.iter().map(|b| b.slots).sum(),
        level,
        paused: None,
    }
}

/// The accounts of workers that take jobs.
fn live(workers: &[Registered]) -> impl Iterator<Item = &Beat> {
    workers.iter().filter(|w| !w.silent).filter_map(|w| w.beat.as_ref()).filter(|b| b.phase == Phase::Running)
}

fn running(beat: &Beat) -> u32 {
    beat.held.iter().filter(|h| h.running_ms.is_some()).count() as u32
}

pub(super) fn state_of(worker: &Registered) -> &'static str {
    match (&worker.beat, worker.silent) {
        (_, true) => "silent",
        (None, false) => "unknown",
        (Some(beat), false) => match beat.phase {
            Phase::Running => "running",
            Phase::Draining => "draining",
        },
    }
}

fn worker_view(worker: &Registered) -> WorkerView {
    let state = state_of(worker).to_owned();
    let (id, registered_at) = (worker.id.to_string(), rfc3339(worker.registered_ms));
    let Some(beat) = &worker.beat else {
        return WorkerView {
            id,
            state,
            registered_at,
            beats: worker.beats,
            slots: 0,
            running: 0,
            queues: Vec::new(),
            handlers: Vec::new(),
            version: String::new(),
            host: String::new(),
            pid: 0,
            read_age_ms: 0,
            held: Vec::new(),
        };
    };
    let held = beat.held.iter().map(|h| HeldView {
        job: h.job.to_string(),
        partition: h.partition.0,
        queue: h.queue.to_string(),
        running_ms: h.running_ms,
        progress: h.progress,
    });
    WorkerView {
        id,
        state,
        registered_at,
        beats: worker.beats,
        slots: beat.slots,
        running: running(beat),
        queues: beat.queues.iter().map(ToString::to_string).collect(),
        handlers: beat.handlers.iter().map(ToString::to_string).collect(),
        version: beat.version.clone(),
        host: beat.host.clone(),
        pid: beat.pid,
        read_age_ms: beat.read_age_ms,
        held: held.collect(),
    }
}

async fn find(client: &Client, text: &str) -> ApiResult<Registered> {
    let id: WorkerId =
        text.parse().map_err(|e: stepfleet_protocol::id::IdError| ApiError::bad("bad_worker_id", e.to_string()))?;
    let found = client.workers().await?.into_iter().find(|w| w.id == id);
    found.ok_or_else(|| ApiError::not_found("worker_not_found", format!("there is no worker `{id}`")))
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::name::Name;

    use super::*;

    const NOW_MS: u64 = 1_000_000;

    /// A worker of the queue `q`, or of another one.
    fn worker(word: &str) -> Registered {
        let name = |text: &str| Name::new(text).expect("a legal name");
        let beat = Beat {
            v: 1,
            read_age_ms: 0,
            phase: if word == "draining" { Phase::Draining } else { Phase::Running },
            slots: 4,
            queues: vec![name(if word == "other" { "other" } else { "q" })],
            handlers: Vec::new(),
            version: String::new(),
            host: String::new(),
            pid: 1,
            held: Vec::new(),
            pod: None,
        };
        let beat = (word != "unknown").then_some(beat);
        Registered { id: WorkerId::new(&name("w"), 1), registered_ms: 1, beats: 1, beat, silent: word == "silent" }
    }

    #[test]
    fn a_queue_is_healthy_warned_of_or_critical_by_depth_age_and_live_workers() {
        use Level::{Critical, Healthy, Warning};
        for (ready, on_streams, waits_ms, workers, level) in [
            (0, 0, None, "", Healthy),
            (0, 0, None, "live", Healthy),
            (0, 1, Some(1), "", Critical),
            (1, 0, Some(1), "", Critical),
            (0, 1, Some(1), "silent", Critical),
            (0, 1, Some(1), "draining", Critical),
            (0, 1, Some(1), "other", Critical),
            (0, 1, Some(1), "unknown", Critical),
            (0, 1, Some(1), "silent live", Healthy),
            (0, 100, Some(1), "live", Healthy),
            (0, 101, Some(1), "live", Warning),
            (60, 41, Some(1), "live", Warning),
            (100, 100, Some(1), "live live", Healthy),
            (100, 101, Some(1), "live live silent draining", Warning),
            (0, 1, Some(60_000), "live", Healthy),
            (0, 1, Some(60_001), "live", Warning),
            (0, 1, Some(60_001), "", Critical),
        ] {
            let oldest_ms = waits_ms.map(|ms| NOW_MS - ms);
            let queue = Queue { ready, on_streams, pending: 7, oldest_ms, ..Queue::default() };
            let fleet: Vec<Registered> = workers.split_whitespace().map(worker).collect();
            let view = queue_view("q", &queue, &fleet, NOW_MS);
            let row = format!("{ready} ready, {on_streams} on streams, oldest {waits_ms:?} ms, `{workers}`");
            assert_eq!((view.level, view.depth, view.oldest_age_ms), (level, ready + on_streams, waits_ms), "{row}");
            assert_eq!(view.slots, 4 * view.workers, "{row}");
        }
    }
}
