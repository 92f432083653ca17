//! The audit store: who asked for what, and what became of it. Other resources write to it what the owners do not.

use axum::{Json, extract::State, http::HeaderMap};
use serde::Deserialize;
use stepfleet_protocol::{
    audit::{AuditEntry, Verdict},
    duration::Millis,
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    take::{self, Params},
    view::{AuditView, Page, Problem},
};
use crate::{
    store::read::audit::{AuditId, Filter},
    time::{rfc3339, unix_ms},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Writes an entry about something that belongs to no partition and is no state, before it is done: what was asked and about
/// what; why, if it was refused.
///
/// # Errors
/// Redis' fault. Nothing must be done then.
pub(super) async fn write(
    app: &AppState,
    headers: &HeaderMap,
    (action, target): (&str, String),
    refused: Option<String>,
) -> ApiResult<()> {
    let entry = AuditEntry::new(take::actor(headers), action, target, take::now_ms()).refused(refused);
    Ok(app.client.audit_fleet(&entry).await?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParams {
    /// Of this actor.
    actor: Option<String>,
    /// Of this action, `run.cancel`; or of all that begin so, `run.`.
    action: Option<String>,
    /// About this target, `run:<id>`; or about all that begin so, `worker:`.
    target: Option<String>,
    /// Not before this time: RFC 3339 in UTC, or a span back from now, as `24h`.
    since: Option<String>,
    /// Not after this time, written the same way.
    until: Option<String>,
    /// 1 to 100; 20 if it is left out.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Lists audit entries, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "operation", params(ListParams),
    responses((status = 200, body = Page<AuditView>), (status = "4XX", body = Problem)))]
async fn list(State(app): State<AppState>, Params(p): Params<ListParams>) -> ApiResult<Json<Page<AuditView>>> {
    let (since, until) = (time("since", p.since.as_deref())?, time("until", p.until.as_deref())?);
    let needs_now = [since, until].iter().any(|time| matches!(time, Some(Time::Ago(_))));
    let now_ms = if needs_now { app.client.server_time_ms().await? } else { 0 };
    let at = |time: Option<Time>| {
        time.map(|time| match time {
            Time::At(ms) => ms,
            Time::Ago(span) => now_ms.saturating_sub(span.0),
        })
    };
    let (actor, action, target) = (p.actor, p.action, p.target);
    let filter = Filter { actor, action, target, since_ms: at(since), until_ms: at(until) };
    let after = take::cursor::<AuditId>(p.cursor.as_deref())?;
    let page = app.client.audit(&filter, after, take::limit(p.limit)?).await?;
    let items = page.items.into_iter().map(|(id, entry)| view(id, entry)).collect();
    Ok(Json(Page { items, next: page.next.map(|id| id.to_string()) }))
}

#[derive(Debug, Clone, Copy)]
enum Time {
    At(u64),
    Ago(Millis),
}

fn time(name: &str, text: Option<&str>) -> ApiResult<Option<Time>> {
    let Some(text) = text else { return Ok(None) };
    let found = unix_ms(text).map(Time::At).or_else(|| Millis::parse(text).ok().map(Time::Ago));
    let bad = || {
        let text: String = text.chars().take(100).collect();
        let allowed = "allowed are a time as `2026-11-19T23:59:59Z`, or a span back from now as `24h`";
        ApiError::bad("bad_time", format!("{name} is `{}`: {allowed}", text.escape_debug()))
    };
    found.map(Some).ok_or_else(bad)
}

fn view(id: AuditId, entry: AuditEntry) -> AuditView {
    let (outcome, message) = match entry.outcome {
        Verdict::Done => ("done", None),
        Verdict::Refused(why) => ("refused", Some(why)),
    };
    AuditView {
        id: id.to_string(),
        at: rfc3339(id.entry.ms),
        actor: entry.actor,
        action: entry.action,
        target: entry.target,
        reason: entry.reason,
        outcome: outcome.to_owned(),
        message,
        detail: entry.detail.and_then(|text| serde_json::from_str(&text).ok()),
    }
}
