//! Dead letters: list, group, show, replay, discard.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use stepfleet_protocol::{
    codec,
    failure::Category,
    id::CommandId,
    limits::PAYLOAD_BYTES_MAX,
    message::{Answer, Verb},
    value::{Input, Payload},
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult, state_of},
    show,
    take::{self, Optional, Params, Strict},
    view::{DiscardRequest, GroupPage, GroupView, LetterDiscarded, LetterView, Page, Problem, ReplayRequest, Replayed},
};
use crate::{
    machine::{decision::Cause, fingerprint::Fingerprint},
    store::{
        client::{Decided, Wish},
        letters::Filter,
        patch,
        read::{PlacedId, groups::GroupCursor},
        record::DeadLetter,
    },
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(groups))
        .routes(routes!(get))
        .routes(routes!(replay))
        .routes(routes!(discard))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParams {
    /// Of this workflow.
    workflow: Option<String>,
    /// Of this handler.
    handler: Option<String>,
    /// Of this queue.
    queue: Option<String>,
    /// Whose last failure has this category.
    #[param(value_type = Option<String>)]
    category: Option<Category>,
    /// Which gave up for this cause.
    cause: Option<Cause>,
    /// Of this group: 16 hex digits.
    #[param(value_type = Option<String>)]
    fingerprint: Option<Fingerprint>,
    /// At least this old, in milliseconds.
    older_than_ms: Option<u64>,
    /// Less than this old, in milliseconds.
    newer_than_ms: Option<u64>,
    /// Whose last message contains this; at most 200 bytes.
    text: Option<String>,
    /// These ones, with commas; at most 1,000.
    ids: Option<String>,
    /// 1 to 100; 20 if it is left out.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl ListParams {
    /// Which letters, what page.
    fn split(self) -> ApiResult<(Filter, usize, Option<String>)> {
        let Self { workflow, handler, queue, category, cause, fingerprint, older_than_ms, newer_than_ms, text, .. } =
            self;
        let ids = self.ids.iter().flat_map(|ids| ids.split(',')).filter(|id| !id.is_empty()).map(placed);
        let ids = ids.collect::<ApiResult<Vec<_>>>()?;
        let filter =
            Filter { workflow, handler, queue, category, cause, fingerprint, older_than_ms, newer_than_ms, text, ids };
        Ok((checked(filter)?, take::limit(self.limit)?, self.cursor))
    }
}

/// A filter within its bounds.
pub(super) fn checked(filter: Filter) -> ApiResult<Filter> {
    filter.check().map_err(|text| ApiError::bad("bad_filter", text))?;
    Ok(filter)
}

fn placed(text: &str) -> ApiResult<PlacedId> {
    let bad = |()| ApiError::bad("bad_letter_id", "a dead letter's id is `<partition>-<milliseconds>-<sequence>`");
    text.parse().map_err(bad)
}

/// Lists open dead letters, newest first.
#[utoipa::path(get, path = "/api/v1/dead-letters", tag = "dead letters", params(ListParams),
    responses((status = 200, body = Page<LetterView>), (status = "4XX", body = Problem)))]
async fn list(State(app): State<AppState>, Params(p): Params<ListParams>) -> ApiResult<Json<Page<LetterView>>> {
    let (filter, limit, cursor) = p.split()?;
    let after = take::cursor::<PlacedId>(cursor.as_deref())?;
    let page = app.client.letters(&filter, after, limit).await?;
    let items = page.items.iter().map(|(id, l)| show::letter(*id, l)).collect();
    Ok(Json(Page { items, next: page.next.map(|id| id.to_string()) }))
}

/// Lists groups of dead letters that failed in the same way, the largest first.
#[utoipa::path(get, path = "/api/v1/dead-letters/groups", tag = "dead letters", params(ListParams),
    responses((status = 200, body = GroupPage), (status = "4XX", body = Problem)))]
async fn groups(State(app): State<AppState>, Params(p): Params<ListParams>) -> ApiResult<Json<GroupPage>> {
    let (filter, limit, cursor) = p.split()?;
    let after = take::cursor::<GroupCursor>(cursor.as_deref())?;
    let found = app.client.letter_groups(&filter, after, limit).await?;
    let items: Vec<GroupView> = found.groups.iter().filter_map(show::group).collect();
    Ok(Json(GroupPage { items, next: found.next.map(|next| next.to_string()), partial: found.is_partial }))
}

/// Shows a dead letter with every attempt and the input.
#[utoipa::path(get, path = "/api/v1/dead-letters/{id}", tag = "dead letters", params(("id" = String, Path, description = "the letter")),
    responses((status = 200, body = LetterView), (status = 404, body = Problem)))]
async fn get(State(app): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<LetterView>> {
    let (id, letter) = find(&app, &id).await?;
    show::whole_letter(&app.client, id, &letter).await.map(Json)
}

/// Replays a dead letter: retries its step, with another input or a patched one if that is given.
#[utoipa::path(post, path = "/api/v1/dead-letters/{id}/replay", tag = "dead letters",
    params(("id" = String, Path, description = "the letter")), request_body = Option<ReplayRequest>,
    responses((status = 200, body = Replayed), (status = 202, body = Replayed), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn replay(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Optional(body): Optional<ReplayRequest>,
) -> ApiResult<Response> {
    let (id, letter) = find(&app, &id).await?;
    let input = match (&body.input, &body.patch) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad("bad_field", "input and patch are both given: allowed is one of the two"));
        }
        (input, None) => input.as_ref().map(payload).transpose()?,
        (None, Some(changes)) => Some(patched(&app, id, &letter, changes).await?),
    };
    let request = format!("replay {id} {:?} {:?} {:?}", body.input, body.patch, body.reason);
    let command = take::command_id(&app.client, &headers, &request).await?;
    let (actor, reason) = (take::actor(&headers), take::reason(body.reason));
    let decided = send(&app, &letter, replay_of(id, &letter, input), (actor, reason), command).await?;
    let mut replayed = Replayed { matched: 1, ..Replayed::default() };
    let status = match decided {
        Decided::Answered(answer) => {
            replayed.state = Some(state_of(answer)?);
            replayed.replayed = 1;
            StatusCode::OK
        }
        Decided::Pending => {
            replayed.pending = 1;
            StatusCode::ACCEPTED
        }
    };
    Ok((status, Json(replayed)).into_response())
}

/// The input that a patch makes of that of the letter's last attempt.
async fn patched(app: &AppState, id: PlacedId, letter: &DeadLetter, changes: &serde_json::Value) -> ApiResult<Payload> {
    patch::check(changes, PAYLOAD_BYTES_MAX).map_err(|text| ApiError::bad("bad_patch", text))?;
    let conflict = |text: &str| ApiError::new(StatusCode::CONFLICT, "input_unknown", text).hint("give a whole `input`");
    let old = match &letter.input {
        None => return Err(conflict(patch::UNKNOWN)),
        Some(Input::None) => None,
        Some(Input::Whole(Payload::Inline(bytes))) => Some(bytes.to_vec()),
        Some(Input::Whole(Payload::Ref(of))) => {
            let found = app.client.value(id.partition, &of.id, PAYLOAD_BYTES_MAX as u64).await?;
            let value = found.and_then(|found| found.value);
            Some(value.ok_or_else(|| conflict("the input that its step was given is gone"))?.to_vec())
        }
    };
    let bytes = patch::apply(old.as_deref(), changes)
        .map_err(|text| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_patch", text))?;
    Ok(Payload::Inline(bytes.into()))
}

/// Sends a command about a letter's step.
async fn send(
    app: &AppState,
    letter: &DeadLetter,
    verb: Verb,
    (actor, reason): (String, Option<String>),
    (command, again): (CommandId, bool),
) -> ApiResult<Decided> {
    let wish = Wish { run: letter.run, verb, actor, reason, id: command, again };
    let decided = app.client.command(wish).await?;
    if decided == Decided::Answered(Answer::NotFound) {
        return Err(ApiError::not_found("run_not_found", format!("run `{}` of the letter is gone", letter.run)));
    }
    Ok(decided)
}

fn replay_of(id: PlacedId, letter: &DeadLetter, input: Option<Payload>) -> Verb {
    Verb::Replay { index: letter.index, letter: id.entry, input }
}

/// Closes a dead letter for good: its step stays failed, and only a retry of its run moves it.
#[utoipa::path(post, path = "/api/v1/dead-letters/{id}/discard", tag = "dead letters",
    params(("id" = String, Path, description = "the letter")), request_body = DiscardRequest,
    responses((status = 200, body = LetterDiscarded), (status = 202, body = LetterDiscarded), (status = "4XX", body = Problem)))]
async fn discard(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Strict(body): Strict<DiscardRequest>,
) -> ApiResult<Response> {
    let (id, letter) = find(&app, &id).await?;
    let reason = take::reason(Some(body.reason)).ok_or_else(|| {
        ApiError::bad("reason_missing", "`reason` is empty: what is discarded is gone for good, so say why")
    })?;
    let command = take::command_id(&app.client, &headers, &format!("discard {id} {reason:?}")).await?;
    let verb = Verb::Discard { index: letter.index, letter: id.entry };
    let decided = send(&app, &letter, verb, (take::actor(&headers), Some(reason)), command).await?;
    let (status, state) = match decided {
        Decided::Answered(answer) => (StatusCode::OK, Some(state_of(answer)?)),
        Decided::Pending => (StatusCode::ACCEPTED, None),
    };
    Ok((status, Json(LetterDiscarded { id: id.to_string(), state })).into_response())
}

/// A value that an operator gives to a step.
pub(super) fn payload(input: &serde_json::Value) -> ApiResult<Payload> {
    let bytes = Bytes::from(codec::pack(input));
    if bytes.len() > PAYLOAD_BYTES_MAX {
        let text = format!("the value has {} bytes: allowed are at most {PAYLOAD_BYTES_MAX}", bytes.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "value_too_large", text));
    }
    Ok(Payload::Inline(bytes))
}

async fn find(app: &AppState, text: &str) -> ApiResult<(PlacedId, DeadLetter)> {
    let id = placed(text)?;
    let gone = || {
        ApiError::not_found("letter_not_found", format!("there is no open dead letter `{id}`"))
            .hint("a letter is closed when its step is retried or replayed, and expires after a time; `runs retry` needs none")
    };
    Ok((id, app.client.letter(id).await?.ok_or_else(gone)?))
}
