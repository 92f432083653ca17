//! Campaigns over dead letters: begin, look, pause, resume, cancel, report.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use semver::VersionReq;
use stepfleet_protocol::{
    audit::{AuditEntry, action},
    failure::cut,
};
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
    store::{
        campaigns::{
            ACTIVE_MAX, Campaign, Item, Kind, LETTERS_MAX, Outcome, PATCH_BYTES_MAX, Standing, Want, ask::Begun,
        },
        letters::Filter,
        patch,
    },
    time::rfc3339,
};

/// A letter whose step came back so often is left alone, unless `force` is given.
const RETURNS_MAX: u32 = 3;
/// Letters a second, at most; no limit is faster than that.
const RATE_MAX: u32 = 100_000;
/// The longest ramp: a day.
const RAMP_MS_MAX: u64 = 86_400_000;
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

/// Begins a campaign over the letters that are open now; with an `Idempotency-Key` a repeated request finds it. With `dry_run` they are only counted: `200`.
#[utoipa::path(post, path = "/api/v1/campaigns", tag = "campaigns", request_body = CampaignRequest,
    responses((status = 201, body = CampaignView), (status = 200, body = CampaignDryRun), (status = "4XX", body = Problem)))]
async fn begin(
    State(app): State<AppState>,
    headers: HeaderMap,
    Strict(body): Strict<CampaignRequest>,
) -> ApiResult<Response> {
    let filter = letters::checked(body.filter.clone())?;
    check(&body, &filter)?;
    let max = body.max.unwrap_or(LETTERS_MAX);
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
    let request = serde_json::json!(body).to_string();
    let (id, _) = take::command_id(&app.client, &headers, &format!("campaign {request}")).await?;
    let campaign = Campaign {
        v: 1,
        id: id.0,
        kind: body.kind,
        filter,
        actor: take::actor(&headers),
        reason: take::reason(body.reason),
        at_ms: app.client.server_time_ms().await?,
        ends: app.client.letter_ends().await?,
        canary: body.canary,
        rate: body.rate,
        stop_when_failing: body.stop_when_failing,
        max,
        returns_max: if body.force { u32::MAX } else { RETURNS_MAX },
        ramp_ms: body.ramp_ms,
        patch: body.patch,
        when_version: body.when_version,
    };
    let entry = entry(&campaign.actor, action::CAMPAIGN_BEGIN, &campaign.id, campaign.reason.clone(), campaign.at_ms);
    let entry = entry.with_detail(request);
    if app.client.begin_campaign(&campaign, &entry).await? == Begun::TooMany {
        let text = format!("{ACTIVE_MAX} campaigns go on already");
        return Err(ApiError::new(StatusCode::CONFLICT, "too_many_campaigns", text).hint("wait for one, or cancel one"));
    }
    Ok((StatusCode::CREATED, Json(view(find(&app, &campaign.id.to_string()).await?))).into_response())
}

/// Whether a campaign may begin like this.
fn check(body: &CampaignRequest, filter: &Filter) -> ApiResult<()> {
    let bad = |text: String| Err(ApiError::bad("bad_field", text));
    if filter.is_empty() && !body.all {
        let text = "no filter says which letters are meant: allowed is a filter, or `all` to mean every open one";
        return Err(ApiError::bad("all_missing", text));
    }
    if body.kind == Kind::Discard {
        if take::reason(body.reason.clone()).is_none() {
            let text = "`reason` is missing: what is discarded is gone for good, so say why";
            return Err(ApiError::bad("reason_missing", text));
        }
        for (name, is_said) in [("patch", body.patch.is_some()), ("when_version", body.when_version.is_some())] {
            if is_said {
                return bad(format!("{name} is given and kind is `discard`: allowed is it with `replay` only"));
            }
        }
    }
    if body.stop_when_failing > 100 {
        return bad(format!("stop_when_failing is `{}`: allowed are 0 to 100 per cent", body.stop_when_failing));
    }
    if let Some(max) = body.max.filter(|max| !(1..=LETTERS_MAX).contains(max)) {
        return bad(format!("max is `{max}`: allowed are 1 to {LETTERS_MAX}"));
    }
    if body.rate > RATE_MAX {
        return bad(format!("rate is `{}`: allowed are 0 to {RATE_MAX} letters a second", body.rate));
    }
    if body.ramp_ms > RAMP_MS_MAX {
        return bad(format!("ramp_ms is `{}`: allowed are 0 to {RAMP_MS_MAX} milliseconds", body.ramp_ms));
    }
    if body.ramp_ms > 0 && body.rate == 0 {
        return bad("ramp_ms is given and rate is not: allowed is a ramp with a rate that it leads to".into());
    }
    if let Some(changes) = &body.patch {
        patch::check(changes, PATCH_BYTES_MAX).map_err(|text| ApiError::bad("bad_patch", text))?;
    }
    if let Some(wanted) = &body.when_version
        && let Err(error) = VersionReq::parse(wanted)
    {
        let found = cut(wanted.clone(), 100);
        return bad(format!("when_version is `{found}`: allowed is a requirement such as `>=1.4` or `^2.1`: {error}"));
    }
    Ok(())
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

/// Who did it: written with the change.
fn entry(actor: &str, action: &str, id: &Uuid, reason: Option<String>, at_ms: u64) -> AuditEntry {
    AuditEntry::new(actor, action, format!("campaign:{id}"), at_ms).because(reason)
}

async fn want(
    app: &AppState,
    id: &str,
    want: Want,
    (headers, body): (&HeaderMap, CommandRequest),
) -> ApiResult<Json<CampaignView>> {
    let found = find(app, id).await?;
    let action = match want {
        Want::Running => action::CAMPAIGN_RESUME,
        Want::Paused => action::CAMPAIGN_PAUSE,
        Want::Cancelled => action::CAMPAIGN_CANCEL,
    };
    let (actor, now_ms) = (take::actor(headers), app.client.server_time_ms().await?);
    let entry = entry(&actor, action, &found.campaign.id, take::reason(body.reason), now_ms);
    let done = app.client.want_campaign(found.campaign.id, want, &entry).await?;
    let found = find(app, id).await?;
    if !done {
        let how = if found.phase.is_final() { "it has ended" } else { "it is ending" };
        let text = format!("the campaign is {}: {how}", found.phase.as_str());
        return Err(ApiError::new(StatusCode::CONFLICT, "campaign_ended", text));
    }
    Ok(Json(view(found)))
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
    let Campaign { id, kind, filter, actor, reason, at_ms, rate, ramp_ms, patch, when_version, .. } = campaign;
    let (id, at) = (id.to_string(), rfc3339(at_ms));
    CampaignView { id, kind, filter, phase, why, actor, reason, at, rate, ramp_ms, patch, when_version, outcomes, open }
}

fn item(found: Item) -> CampaignItem {
    let Item { letter, run, step, outcome, note } = found;
    CampaignItem { letter: letter.to_string(), run, step, outcome, note }
}
