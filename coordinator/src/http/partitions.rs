//! Partitions and quarantine.

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use stepfleet_protocol::{
    audit::{AuditEntry, action},
    codec,
    id::PartitionId,
    keys::slot,
    limits::PARTITIONS_MAX,
    message::LogEntry,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    take::{self, Paging, Params, Strict},
    view::{AddPartitions, Discarded, Page, PartitionView, Problem, QuarantineView},
};
use crate::{
    store::read::{PlacedId, partitions::Seen, quarantine::Quarantined},
    time::rfc3339,
};

/// Bytes of an entry that are shown in hex.
const HEX_BYTES_MAX: usize = 4_096;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(quarantine)).routes(routes!(quarantined, discard))
}

/// Lists partitions with their owners.
#[utoipa::path(get, path = "/api/v1/partitions", tag = "operation", params(Paging),
    responses((status = 200, body = Page<PartitionView>)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<PartitionView>>> {
    let (limit, from) = (take::limit(p.limit)? as u16, take::cursor::<u16>(p.cursor.as_deref())?.unwrap_or(0));
    page(&app, from, limit).await.map(Json)
}

/// Adds partitions. Runs do not move, and partitions are never taken away.
#[utoipa::path(post, path = "/api/v1/partitions", tag = "operation", request_body = AddPartitions,
    responses((status = 200, body = Page<PartitionView>), (status = 400, body = Problem)))]
async fn add(
    State(app): State<AppState>,
    headers: HeaderMap,
    Strict(body): Strict<AddPartitions>,
) -> ApiResult<Json<Page<PartitionView>>> {
    let allowed = 1..=PARTITIONS_MAX;
    if !allowed.contains(&body.count) {
        let text = format!("count is `{}`: allowed are 1 to {PARTITIONS_MAX}", body.count);
        return Err(ApiError::bad("bad_count", text));
    }
    let target = format!("partitions:{}", body.count);
    let entry = AuditEntry::new(take::actor(&headers), action::PARTITIONS_ADD, target, take::now_ms());
    let count = app.client.add_partitions_for(body.count, &entry).await?;
    if count > body.count {
        let text = format!("there are {count} partitions already: they can only become more");
        app.client.audit_fleet(&entry.refused(Some(text.clone()))).await?;
        return Err(ApiError::bad("partitions_only_grow", text));
    }
    page(&app, 0, 100).await.map(Json)
}

async fn page(app: &AppState, from: u16, limit: u16) -> ApiResult<Page<PartitionView>> {
    let count = app.client.partitions().await?;
    let items = app.client.see_partitions(from, limit).await?.into_iter().map(view).collect();
    let end = from.saturating_add(limit);
    Ok(Page { items, next: (end < count).then(|| end.to_string()) })
}

fn view(seen: Seen) -> PartitionView {
    PartitionView {
        id: seen.id,
        slot: slot(PartitionId(seen.id)),
        owner: seen.owner,
        reign: seen.reign.to_string(),
        seq: seen.seq,
        offset: seen.offset.to_string(),
        log_lag: seen.log_lag,
        timers: seen.timers,
        todo: seen.todo,
        dead_letters: seen.dead,
        quarantine: seen.quarantine,
        active: seen.active,
        counters: seen.counters,
    }
}

/// Lists entries that could not be decided, newest first.
#[utoipa::path(get, path = "/api/v1/quarantine", tag = "operation", params(Paging),
    responses((status = 200, body = Page<QuarantineView>)))]
async fn quarantine(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<QuarantineView>>> {
    let after = take::cursor::<PlacedId>(p.cursor.as_deref())?;
    let (found, next) = app.client.quarantine(after, take::limit(p.limit)?).await?;
    Ok(Json(Page { items: found.iter().map(entry_view).collect(), next: next.map(|id| id.to_string()) }))
}

/// Shows an entry in quarantine, with its bytes.
#[utoipa::path(get, path = "/api/v1/quarantine/{id}", tag = "operation", params(("id" = String, Path, description = "the entry")),
    responses((status = 200, body = QuarantineView), (status = 404, body = Problem)))]
async fn quarantined(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<QuarantineView>> {
    let id = placed(&id)?;
    let found = app.client.quarantined(id).await?.ok_or_else(|| gone(id))?;
    let mut view = entry_view(&found);
    view.hex = Some(found.bytes.iter().take(HEX_BYTES_MAX).map(|b| format!("{b:02x}")).collect());
    let plain = codec::decompress(&found.bytes).ok();
    let packed = [Some(&found.bytes), plain.as_ref()];
    let read = |bytes: &bytes::Bytes| {
        let entry = codec::unpack::<LogEntry>(bytes).ok().and_then(|e| serde_json::to_value(e).ok());
        entry.or_else(|| codec::unpack::<serde_json::Value>(bytes).ok().filter(serde_json::Value::is_object))
    };
    view.entry = packed.into_iter().flatten().find_map(read);
    Ok(Json(view))
}

/// Takes an entry out of quarantine for good.
#[utoipa::path(delete, path = "/api/v1/quarantine/{id}", tag = "operation", params(("id" = String, Path, description = "the entry")),
    responses((status = 200, body = Discarded), (status = 404, body = Problem)))]
async fn discard(
    State(app): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult<Json<Discarded>> {
    let id = placed(&id)?;
    let target = format!("quarantine:{id}");
    let entry = AuditEntry::new(take::actor(&headers), action::QUARANTINE_DISCARD, target, take::now_ms());
    if !app.client.discard_quarantined(id, &entry).await? {
        return Err(gone(id));
    }
    Ok(Json(Discarded { id: id.to_string() }))
}

fn entry_view(found: &Quarantined) -> QuarantineView {
    QuarantineView {
        id: found.id.to_string(),
        at: rfc3339(found.id.entry.ms),
        why: found.why.clone(),
        bytes: found.bytes.len() as u64,
        entry: None,
        hex: None,
    }
}

fn placed(text: &str) -> ApiResult<PlacedId> {
    text.parse()
        .map_err(|()| ApiError::bad("bad_entry_id", "the id of an entry is `<partition>-<milliseconds>-<sequence>`"))
}

fn gone(id: PlacedId) -> ApiError {
    ApiError::not_found("entry_not_found", format!("there is no entry `{id}` in quarantine"))
}
