//! What surrounds every request: its id, who asks and whether that one may, its time limit, how many there may be, and what is
//! counted.

use std::time::{Duration, Instant};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{HistogramVec, IntCounterVec};
use stepfleet_metric::{Families, TRIP_SECONDS};
use uuid::Uuid;

use super::{
    AppState,
    error::{ApiError, Problematic},
    roles::{Need, need},
    take::ACTOR,
    tokens::{Role, Stranger},
};
use crate::store::ask;

/// Requests at once.
pub(super) const REQUESTS_MAX: usize = 1_000;
/// A request that takes longer is given up. A bulk submit may take longer to stream its answers.
const TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_ID: &str = "x-request-id";
/// Longest request id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What is counted of requests.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) families: Families,
    requests: IntCounterVec,
    seconds: HistogramVec,
    denied: IntCounterVec,
}

impl Counts {
    pub(super) fn new() -> Self {
        let mut families = Families::default();
        let requests =
            families.counters("stepfleet_http_requests_total", "Requests to the API", &["method", "route", "status"]);
        let help = "Time to the head of the answer";
        let seconds = families.histograms("stepfleet_http_request_seconds", help, &["method", "route"], &TRIP_SECONDS);
        families.made(ask::SECONDS.clone(), ask::SECONDS_NAME, ask::SECONDS_HELP);
        let help = "Requests that were refused for their token";
        let denied = families.counters("stepfleet_http_denied_total", help, &["why"]);
        for why in Denied::WHYS {
            denied.with_label_values(&[why]).reset();
        }
        Self { families, requests, seconds, denied }
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
enum Denied {
    Stranger(Stranger),
    /// The role that is needed, and who asked with which.
    Role {
        needed: Role,
        name: String,
        has: Role,
    },
}

impl Denied {
    /// The words of the metric.
    const WHYS: [&str; 3] = ["missing", "unknown", "role"];

    fn why(&self) -> &'static str {
        match self {
            Self::Stranger(Stranger::Missing) => "missing",
            Self::Stranger(Stranger::Unknown) => "unknown",
            Self::Role { .. } => "role",
        }
    }

    fn into_response(self, method: &str, route: &str) -> Response {
        let (error, challenge) = match self {
            Self::Stranger(Stranger::Missing) => {
                let error = ApiError::new(StatusCode::UNAUTHORIZED, "token_missing", "a token is needed");
                (error.hint("send it as `Authorization: Bearer <token>`"), "Bearer realm=\"stepfleet\"")
            }
            Self::Stranger(Stranger::Unknown) => {
                let error = ApiError::new(StatusCode::UNAUTHORIZED, "token_unknown", "the token is nobody's");
                let hint = "it is not whole, or it is not in the coordinator's tokens file (any more)";
                (error.hint(hint), "Bearer realm=\"stepfleet\", error=\"invalid_token\"")
            }
            Self::Role { needed, name, has } => {
                let text = format!("`{method} {route}` needs the role `{needed}`; `{name}` has `{has}`");
                let error = ApiError::new(StatusCode::FORBIDDEN, "role_missing", text);
                (error, "Bearer realm=\"stepfleet\", error=\"insufficient_scope\"")
            }
        };
        let mut response = error.into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

/// Lets a request pass if its token may do this, and writes into it who asks, whatever it says itself.
fn admit(app: &AppState, request: &mut Request, route: Option<&str>) -> Result<(), Denied> {
    let Some(tokens) = &app.tokens else { return Ok(()) };
    let Need::Role(needed) = need(request.method().as_str(), route) else { return Ok(()) };
    let caller = tokens.caller(request.headers()).map_err(Denied::Stranger)?;
    if caller.role < needed {
        return Err(Denied::Role { needed, name: caller.name.to_string(), has: caller.role });
    }
    let name = HeaderValue::from_str(caller.name.as_str()).expect("a name is visible ASCII");
    request.headers_mut().insert(ACTOR, name);
    Ok(())
}

/// Wraps every request.
pub(super) async fn guard(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(&request);
    let method = request.method().as_str().to_owned();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let matched = matched.as_ref().map(MatchedPath::as_str);
    let admitted = admit(&app, &mut request, matched);
    let route = matched.unwrap_or("none");
    // Whether the process runs must not depend on how many others ask it something.
    let held = if matched == Some("/livez") { Ok(None) } else { app.requests.try_acquire().map(Some) };
    let response = match (admitted, held) {
        (Err(denied), _) => {
            app.counts.denied.with_label_values(&[denied.why()]).inc();
            denied.into_response(&method, route)
        }
        (Ok(()), Ok(_held)) => tokio::time::timeout(TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
            let text = format!("the request took longer than {} s", TIMEOUT.as_secs());
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text).into_response()
        }),
        (Ok(()), Err(_)) => {
            let text = format!("more than {REQUESTS_MAX} requests at once");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text).retry_after(1).into_response()
        }
    };
    let label = method_label(&method);
    app.counts.requests.with_label_values(&[label, route, response.status().as_str()]).inc();
    app.counts.seconds.with_label_values(&[label, route]).observe(begun.elapsed().as_secs_f64());
    finish(response, &id)
}

/// The method as a label. HTTP allows any word, and whoever reaches the port may send one.
fn method_label(method: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or(stepfleet_metric::OTHER)
}

/// Writes the request's id into the answer, and into the problem if it is one.
fn finish(mut response: Response, id: &str) -> Response {
    if let Some(Problematic(mut problem)) = response.extensions_mut().remove::<Problematic>() {
        problem.request_id = Some(id.to_owned());
        let body = Json(&*problem).into_response().into_body();
        *response.body_mut() = body;
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let good = |id: &&str| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given.filter(good).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}
