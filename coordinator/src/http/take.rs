//! What handlers take from requests: strict bodies and parameters, headers within limits, cursors.

use std::str::FromStr;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, request::Parts},
};
use serde::{Deserialize, de::DeserializeOwned};
use stepfleet_protocol::{
    failure::cut,
    id::{CommandId, RunId},
    name::Name,
    trace::TraceContext,
};

use utoipa::IntoParams;

use super::error::{ApiError, ApiResult};

/// Longest idempotency key.
const KEY_BYTES_MAX: usize = 200;
/// The header that says who asks. With API tokens the guard writes it, from the token.
pub(super) const ACTOR: &str = "x-stepfleet-actor";
/// Longest name of an actor; the rest is cut.
const ACTOR_BYTES_MAX: usize = 100;
/// Longest reason; the rest is cut.
const REASON_BYTES_MAX: usize = 1_000;
/// Items of a page, at most, and if nobody says otherwise.
const LIMIT_MAX: usize = 100;
const LIMIT_DEFAULT: usize = 20;

/// A JSON body without unknown fields.
pub(super) struct Strict<T>(pub(super) T);

/// A JSON body that may be left out.
pub(super) struct Optional<T>(pub(super) T);

/// The raw body.
pub(super) struct Raw(pub(super) Bytes);

/// The query without unknown parameters.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let bytes = Bytes::from_request(request, state).await.map_err(|e: BytesRejection| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "the body is larger than is allowed here",
            ),
            _ => ApiError::bad("bad_body", e.to_string()),
        })?;
        Ok(Self(bytes))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Strict<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        json(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Optional<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        if bytes.trim_ascii().is_empty() { Ok(Self(T::default())) } else { json(&bytes).map(Self) }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let Query(value) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|e| ApiError::bad("bad_parameter", e.body_text()))?;
        Ok(Self(value))
    }
}

/// Which page of a listing.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// 1 to 100; 20 if it is left out.
    pub(super) limit: Option<usize>,
    /// `next` of the page before.
    pub(super) cursor: Option<String>,
}

/// Reads JSON; the problem names the field that is not known, and those that are.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        if text.starts_with("unknown field") {
            ApiError::bad("unknown_field", text).hint("look at /api/v1/openapi.json")
        } else if e.is_data() {
            ApiError::bad("bad_field", text)
        } else {
            ApiError::bad("bad_json", format!("the body is no JSON: {text}"))
        }
    })
}

/// The run of a path.
pub(super) fn run_id(text: &str) -> ApiResult<RunId> {
    text.parse().map_err(|e: stepfleet_protocol::id::IdError| ApiError::bad("bad_run_id", e.to_string()))
}

/// The name of a path or parameter.
pub(super) fn name(text: &str) -> ApiResult<Name> {
    Name::new(text).map_err(|e| ApiError::bad("bad_name", e.to_string()))
}

/// How many items a page shall have.
pub(super) fn limit(wanted: Option<usize>) -> ApiResult<usize> {
    match wanted {
        None => Ok(LIMIT_DEFAULT),
        Some(limit @ 1..=LIMIT_MAX) => Ok(limit),
        Some(other) => Err(ApiError::bad("bad_limit", format!("limit is `{other}`: allowed are 1 to {LIMIT_MAX}"))),
    }
}

/// The cursor of a page.
pub(super) fn cursor<T: FromStr>(text: Option<&str>) -> ApiResult<Option<T>> {
    let Some(text) = text else { return Ok(None) };
    let bad = || ApiError::bad("bad_cursor", "the cursor is none of this listing's").hint("begin without a cursor");
    text.parse().map(Some).map_err(|_| bad())
}

/// Who asks: the header `X-Stepfleet-Actor`, else `api`.
pub(super) fn actor(headers: &HeaderMap) -> String {
    let named = headers.get(ACTOR).and_then(|v| v.to_str().ok()).filter(|v| !v.trim().is_empty());
    cut(named.unwrap_or("api").to_owned(), ACTOR_BYTES_MAX)
}

/// Why, within its limit.
pub(super) fn reason(text: Option<String>) -> Option<String> {
    text.map(|t| cut(t, REASON_BYTES_MAX)).filter(|t| !t.is_empty())
}

/// The W3C trace context of the request; none if it is no good one, as the standard wants.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    text.parse::<TraceContext>().ok().map(|context| context.to_string())
}

/// The header `Idempotency-Key`.
pub(super) fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    checked_key(value.to_str().unwrap_or_default().to_owned()).map(Some)
}

/// An idempotency key within its limits.
pub(super) fn checked_key(key: String) -> ApiResult<String> {
    let good =
        (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}');
    if good {
        Ok(key)
    } else {
        Err(ApiError::bad(
            "bad_idempotency_key",
            "an idempotency key has 1 to 200 visible ASCII characters without `{` and `}`",
        ))
    }
}

/// A command's id: from the idempotency key, or a fresh one. Whether it may have been used before.
pub(super) async fn command_id(
    client: &crate::store::client::Client,
    headers: &HeaderMap,
    request: &str,
) -> ApiResult<(CommandId, bool)> {
    match idempotency_key(headers)? {
        None => Ok((CommandId(uuid::Uuid::now_v7()), false)),
        Some(key) => Ok((client.claim_command(&key, &fingerprint(request.as_bytes())).await?, true)),
    }
}

/// What tells two requests apart.
pub(super) fn fingerprint(request: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(request).iter().map(|b| format!("{b:02x}")).collect()
}

/// Unix milliseconds of this host.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_that_is_none_is_dropped() {
        let taken = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().expect("visible text"));
            traceparent(&headers)
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(taken(good).as_deref(), Some(good));
        assert_eq!(taken(&good.to_uppercase()), None);
        assert_eq!(taken("00-00000000000000000000000000000000-b7ad6b7169203331-01"), None);
        assert_eq!(traceparent(&HeaderMap::new()), None);
    }
}
