//! The recorded external calls of a run.

use axum::{
    Json,
    extract::{Path, State},
};
use stepfleet_protocol::{
    call::{CallRecord, CallState},
    codec,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::ApiResult,
    runs::{PageParams, find},
    take::{self, Params},
    view::{CallView, Page, Problem, ValueView},
};
use crate::{store::read::calls::FoundCall, time::rfc3339};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(calls))
}

/// Lists the external calls that the steps of a run put on record. Each page is in the order of steps and attempts, and may
/// have a few more items than was asked for.
#[utoipa::path(get, path = "/api/v1/runs/{id}/calls", tag = "runs", params(("id" = String, Path, description = "the run"), PageParams),
    responses((status = 200, body = Page<CallView>), (status = 404, body = Problem)))]
async fn calls(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<PageParams>,
) -> ApiResult<Json<Page<CallView>>> {
    let run = find(&app.client, take::run_id(&id)?).await?;
    let from = take::cursor::<u64>(p.cursor.as_deref())?.unwrap_or(0);
    let found = app.client.calls(&run, from, take::limit(p.limit)?).await?;
    let items = found.calls.into_iter().map(call).collect();
    Ok(Json(Page { items, next: found.next.map(|next| next.to_string()) }))
}

fn call(found: FoundCall) -> CallView {
    let FoundCall { id, record, is_live } = found;
    let result = result_of(&record);
    CallView {
        id: id.to_string(),
        step: record.step.to_string(),
        generation: id.generation,
        attempt: id.attempt,
        n: id.n,
        job: record.job.to_string(),
        kind: record.kind,
        method: record.method,
        endpoint: record.endpoint,
        key: record.key,
        // What nobody is at any more will not say by itself what became of it.
        state: if record.state == CallState::Started && !is_live { CallState::Unknown } else { record.state },
        intended_at: rfc3339(record.intended_ms),
        started_at: record.started_ms.map(rfc3339),
        ended_at: record.ended_ms.map(rfc3339),
        status: record.status,
        result,
        settled_by: record.settled_by,
        note: record.note,
    }
}

fn result_of(record: &CallRecord) -> Option<ValueView> {
    let bytes = record.result_bytes;
    let view = |value, note: Option<String>| Some(ValueView { bytes, value, note });
    match &record.result {
        Some(result) => match codec::unpack::<serde_json::Value>(result) {
            Ok(value) => view(Some(value), None),
            Err(error) => view(None, Some(format!("cannot be shown as JSON: {error}"))),
        },
        None if bytes > 0 => view(None, Some("too large to be kept".to_owned())),
        None => None,
    }
}
