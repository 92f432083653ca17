//! What surrounds every request: its id, its time limit, how many there may be, and what is counted.

use std::time::{Duration, Instant};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{HistogramVec, IntCounterVec};
use stepfleet_connect::metric::{Families, TRIP_SECONDS};
use uuid::Uuid;

use super::{
    AppState,
    error::{ApiError, Problematic},
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
}

impl Counts {
    pub(super) fn new() -> Self {
        let mut families = Families::default();
        let requests =
            families.counters("stepfleet_http_requests_total", "Requests to the API", &["method", "route", "status"]);
        let help = "Time to the head of the answer";
        let seconds = families.histograms("stepfleet_http_request_seconds", help, &["method", "route"], &TRIP_SECONDS);
        let (name, help) = (
            "stepfleet_redis_trip_seconds",
            "Trips of the API and of subscribers to Redis, the wait for a connection included; owners have connections of their own",
        );
        families.made(ask::SECONDS.clone(), name, help);
        Self { families, requests, seconds }
    }
}

/// Wraps every request.
pub(super) async fn guard(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(&request);
    let method = request.method().as_str().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |p| p.as_str().to_owned());
    let response = match app.requests.try_acquire() {
        Ok(_held) => tokio::time::timeout(TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
            let text = format!("the request took longer than {} s", TIMEOUT.as_secs());
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text).into_response()
        }),
        Err(_) => {
            let text = format!("more than {REQUESTS_MAX} requests at once");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text).retry_after(1).into_response()
        }
    };
    app.counts.requests.with_label_values(&[method.as_str(), route.as_str(), response.status().as_str()]).inc();
    app.counts.seconds.with_label_values(&[method.as_str(), route.as_str()]).observe(begun.elapsed().as_secs_f64());
    finish(response, &id)
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
