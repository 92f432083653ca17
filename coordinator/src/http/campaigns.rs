//! Campaigns over dead letters: begin, look, pause, resume, cancel, report.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use stepfleet_protocol::audit::{AuditEntry, action};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    AppState,
    error::{ApiError, ApiResult},
    letters,
    take::{self, Optional, Paging, Params, Strict},
    view::{CampaignDryRun, CampaignItem, CampaignRequest, CampaignView, CommandRequest, Outcomes, Page, Problem},
};
use crate::{
    store::campaigns::{ACTIVE_MAX, Campaign, Item, Kind, LETTERS_MAX, Outcome, Standing, Want},
    time::rfc3339,
};

/// A letter whose step came back so often is left alone, unless `force` is given.
const RETURNS_MAX: u32 = 3;
/// Letters of one page of a dry run, and pages of it.
const COUNT_PAGE: usize = 1_000;
const COUNT_PAGES: usize = 100;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(begin))
        .routes(routes!(get))
        .routes(routes!(items))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(cancel))
}

/// Begins a campaign over the letters that are open now. With `dry_run` they are only counted: `200`.
#[utoipa::path(post, path = "/api/v1/campaigns", tag = "campaigns", request_body = CampaignRequest,
    responses((status = 201, body = CampaignView), (status = 200, body = CampaignDryRun), (status = "4XX", body = Problem)))]
async fn begin(
    State(app): State<AppState>,
    headers: HeaderMap,
    Strict(body): Strict<CampaignRequest>,
) -> ApiResult<Response> {
    let filter = letters::checked(body.filter)?;
    if filter.is_empty() && !body.all {
        let text = "no filter says which letters are meant: allowed is a filter, or `all` to mean every open one";
        return Err(ApiError::bad("all_missing", text));
    }
    let reason = take::reason(body.reason);
    if body.kind == Kind::Discard && reason.is_none() {
        return Err(ApiError::bad(
            "reason_missing",
            "`reason` is missing: what is discarded is gone for good, so say why",
        ));
    }
    if body.stop_when_failing > 100 {
        let text = format!("stop_when_failing is `{}`: allowed are 0 to 100 per cent", body.stop_when_failing);
        return Err(ApiError::bad("bad_field", text));
    }
    let max = body.max.unwrap_or(LETTERS_MAX);
    if !(1..=LETTERS_MAX).contains(&max) {
        return Err(ApiError::bad("bad_field", format!("max is `{max}`: allowed are 1 to {LETTERS_MAX}")));
    }
    if body.dry_run {
        let (mut matched, mut after) = (0, None);
        for _ in 0..COUNT_PAGES {
            let page = app.client.letters(&filter, after, COUNT_PAGE).await?;
            matched += page.items.len() as u64;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        return Ok(Json(CampaignDryRun { matched: matched.min(max), more: after.is_some() }).into_response());
    }
    let campaign = Campaign {
        v: 1,
        id: Uuid::now_v7(),
        kind: body.kind,
        filter,
        actor: take::actor(&headers),
        reason,
        at_ms: app.client.server_time_ms().await?,
        ends: app.client.letter_ends().await?,
        canary: body.canary,
        rate: body.rate,
        stop_when_failing: body.stop_when_failing,
        max,
        returns_max: if body.force { u32::MAX } else { RETURNS_MAX },
    };
    if !app.client.begin_campaign(&campaign).await? {
        let text = format!("{ACTIVE_MAX} campaigns go on already");
        return Err(ApiError::new(StatusCode::CONFLICT, "too_many_campaigns", text).hint("wait for one, or cancel one"));
    }
    let (actor, reason) = (campaign.actor.clone(), campaign.reason.clone());
    audit(&app, actor, action::CAMPAIGN_BEGIN, &campaign.id, reason).await?;
    Ok((StatusCode::CREATED, Json(view(find(&app, &campaign.id.to_string()).await?))).into_response())
}

/// Lists the newest campaigns.
#[utoipa::path(get, path = "/api/v1/campaigns", tag = "campaigns", params(Paging),
    responses((status = 200, body = Page<CampaignView>), (status = "4XX", body = Problem)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<CampaignView>>> {
    let (limit, from) = (take::limit(p.limit)?, take::cursor::<u32>(p.cursor.as_deref())?.unwrap_or(0) as usize);
    let found = app.client.campaigns(from, limit).await?;
    let next = (found.len() == limit).then(|| (from + limit).to_string());
    Ok(Json(Page { items: found.into_iter().map(view).collect(), next }))
}

/// Shows a campaign.
#[utoipa::path(get, path = "/api/v1/campaigns/{id}", tag = "campaigns", params(("id" = String, Path, description = "the campaign")),
    responses((status = 200, body = CampaignView), (status = 404, body = Problem)))]
async fn get(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<CampaignView>> {
    Ok(Json(view(find(&app, &id).await?)))
}

/// Tells what became of each letter, in the order in which it was known.
#[utoipa::path(get, path = "/api/v1/campaigns/{id}/items", tag = "campaigns",
    params(("id" = String, Path, description = "the campaign"), Paging),
    responses((status = 200, body = Page<CampaignItem>), (status = "4XX", body = Problem)))]
async fn items(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Params(p): Params<Paging>,
) -> ApiResult<Json<Page<CampaignItem>>> {
    let found = find(&app, &id).await?;
    let (from, limit) = (take::cursor::<u64>(p.cursor.as_deref())?.unwrap_or(0), take::limit(p.limit)?);
    let from = from.min(LETTERS_MAX * 2);
    let items = app.client.campaign_items(found.campaign.id, from, limit).await?;
    let next = (items.len() == limit).then(|| (from + limit as u64).to_string());
    Ok(Json(Page { items: items.into_iter().map(item).collect(), next }))
}

/// Holds a campaign: it takes up no more letters.
#[utoipa::path(post, path = "/api/v1/campaigns/{id}/pause", tag = "campaigns", params(("id" = String, Path, description = "the campaign")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CampaignView), (status = "4XX", body = Problem)))]
async fn pause(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<CampaignView>> {
    want(&app, &id, Want::Paused, (&headers, body)).await
}

/// Lets a held campaign go on.
#[utoipa::path(post, path = "/api/v1/campaigns/{id}/resume", tag = "campaigns", params(("id" = String, Path, description = "the campaign")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CampaignView), (status = "4XX", body = Problem)))]
async fn resume(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<CampaignView>> {
    want(&app, &id, Want::Running, (&headers, body)).await
}

/// Ends a campaign. What it has replayed goes on.
#[utoipa::path(post, path = "/api/v1/campaigns/{id}/cancel", tag = "campaigns", params(("id" = String, Path, description = "the campaign")),
    request_body = Option<CommandRequest>, responses((status = 200, body = CampaignView), (status = "4XX", body = Problem)))]
async fn cancel(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<CommandRequest>,
) -> ApiResult<Json<CampaignView>> {
    want(&app, &id, Want::Cancelled, (&headers, body)).await
}

/// Writes down who did it, right behind the change.
async fn audit(app: &AppState, actor: String, action: &str, id: &Uuid, reason: Option<String>) -> ApiResult<()> {
    let now_ms = app.client.server_time_ms().await?;
    let entry = AuditEntry::new(actor, action, format!("campaign:{id}"), now_ms).because(reason);
    Ok(app.client.audit_fleet(&entry).await?)
}

async fn want(
    app: &AppState,
    id: &str,
    want: Want,
    (headers, body): (&HeaderMap, CommandRequest),
) -> ApiResult<Json<CampaignView>> {
    let found = find(app, id).await?;
    if found.phase.is_final() {
        let text = format!("the campaign is {}: it has ended", found.phase.as_str());
        return Err(ApiError::new(StatusCode::CONFLICT, "campaign_ended", text));
    }
    app.client.want_campaign(found.campaign.id, want).await?;
    let action = match want {
        Want::Running => action::CAMPAIGN_RESUME,
        Want::Paused => action::CAMPAIGN_PAUSE,
        Want::Cancelled => action::CAMPAIGN_CANCEL,
    };
    audit(app, take::actor(headers), action, &found.campaign.id, take::reason(body.reason)).await?;
    Ok(Json(view(find(app, id).await?)))
}

async fn find(app: &AppState, text: &str) -> ApiResult<Standing> {
    let id: Uuid = text.parse().map_err(|_| ApiError::bad("bad_campaign_id", "a campaign's id is a UUID"))?;
    let gone = || ApiError::not_found("campaign_not_found", format!("there is no campaign `{id}`"));
    app.client.campaign(id).await?.ok_or_else(gone)
}

fn view(found: Standing) -> CampaignView {
    let Standing { campaign, phase, why, counts, open, .. } = found;
    let mut outcomes = Outcomes::default();
    for (outcome, count) in counts {
        match outcome {
            Outcome::Completed => outcomes.completed = count,
            Outcome::FailedAgain => outcomes.failed_again = count,
            Outcome::Discarded => outcomes.discarded = count,
            Outcome::Skipped => outcomes.skipped = count,
            Outcome::Cancelled => outcomes.cancelled = count,
            Outcome::Unknown => outcomes.unknown = count,
        }
    }
    let Campaign { id, kind, filter, actor, reason, at_ms, .. } = campaign;
    CampaignView { id: id.to_string(), kind, filter, phase, why, actor, reason, at: rfc3339(at_ms), outcomes, open }
}

fn item(found: Item) -> CampaignItem {
    let Item { letter, run, step, outcome, note } = found;
    CampaignItem { letter: letter.to_string(), run, step, outcome, note }
}
