//! One request and its answer.

use std::{
    collections::BTreeMap,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
};
use serde_json::Value as Json;

use super::{Answer, Http};
use crate::{attempt::Attempt, failure::Failure};

/// Bytes of an answer that go with a failure.
const DETAIL: usize = 4 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One client for all attempts: it keeps connections. Redirects are followed, at most ten.
static CLIENT: LazyLock<Result<Client, String>> = LazyLock::new(|| {
    let agent = concat!("stepfleet/", env!("CARGO_PKG_VERSION"));
    Client::builder().user_agent(agent).connect_timeout(CONNECT_TIMEOUT).build().map_err(|error| error.to_string())
});

/// What came of a request.
pub(super) enum Heard {
    /// An answer with a status that is good.
    Good(Answer),
    /// An answer with another status.
    Refused { status: u16, failure: Failure },
    /// No whole answer. `sent` is false where the request cannot have reached anybody.
    Silence { sent: bool, failure: Failure },
}

/// Sends a request and sorts the answer. Statuses in `expect` are good, or all 2xx if it is empty.
pub(super) async fn exchange(attempt: &Attempt, request: RequestBuilder, expect: &[u16], max_bytes: usize) -> Heard {
    let answered = async {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let (bytes, truncated) = body_of(response, max_bytes).await?;
        Ok::<_, reqwest::Error>((status, headers, bytes, truncated))
    };
    let answered = tokio::select! {
        answered = answered => answered,
        () = attempt.cancelled() => {
            return Heard::Silence { sent: true, failure: Failure::transient("the request was given up").code("stopped") };
        }
    };
    let (status, headers, bytes, truncated) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            let sent = !(error.is_connect() || error.is_builder());
            return Heard::Silence { sent, failure: unanswered(error) };
        }
    };
    let good = if expect.is_empty() { status.is_success() } else { expect.contains(&status.as_u16()) };
    if !good {
        return Heard::Refused { status: status.as_u16(), failure: refused(status, &headers, &bytes) };
    }
    let (body, headers) = (read_body(&headers, &bytes), lower_case(&headers));
    Heard::Good(Answer { status: status.as_u16(), headers, body, truncated })
}

/// The request that an input describes. `key` goes with it as `Idempotency-Key`, unless the input's headers have one.
pub(super) fn request_of(attempt: &Attempt, input: &Http, key: Option<&str>) -> Result<RequestBuilder, Failure> {
    let client = CLIENT.as_ref().map_err(|error| Failure::system(format!("no HTTP client: {error}")))?;
    let method = input.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad(format!("method is `{method}`")))?;
    let url = reqwest::Url::parse(&input.url).map_err(|error| bad(format!("url is `{}`: {error}", input.url)))?;
    if input.body.is_some() && input.json.is_some() {
        return Err(bad("body and json are both set; allowed: one of them".to_owned()));
    }
    let has = |name: &str| input.headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    let mut request = client.request(method, url);
    if let Some(key) = key.filter(|_| !has("idempotency-key")) {
        request = request.header("idempotency-key", key);
    }
    if let Some(traceparent) = attempt.traceparent().filter(|_| !has("traceparent")) {
        request = request.header("traceparent", traceparent);
    }
    let body = match (&input.body, &input.json) {
        (Some(Json::String(text)), _) => Some((text.clone(), "text/plain; charset=utf-8")),
        (Some(value), _) | (None, Some(value)) => Some((value.to_string(), "application/json")),
        (None, None) => None,
    };
    if let Some((body, kind)) = body {
        if !has("content-type") {
            request = request.header(CONTENT_TYPE, kind);
        }
        request = request.body(body);
    }
    for (name, value) in &input.headers {
        request = request.header(name, value);
    }
    if let Some(timeout) = input.timeout {
        request = request.timeout(timeout.std());
    }
    // What is wrong with a header is found when the request is made; a fault of the input, not of the network.
    match request.try_clone().map(RequestBuilder::build) {
        Some(Err(error)) => Err(bad(format!("the request cannot be made: {error}"))),
        Some(Ok(_)) | None => Ok(request),
    }
}

/// The first bytes of the answer, and whether there were more.
async fn body_of(mut response: Response, max_bytes: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await? {
        let room = max_bytes - bytes.len();
        bytes.extend_from_slice(&part[..part.len().min(room)]);
        if part.len() > room {
            return Ok((bytes, true));
        }
    }
    Ok((bytes, false))
}

/// A request without an answer.
fn unanswered(error: reqwest::Error) -> Failure {
    let code = if error.is_timeout() {
        "http_timeout"
    } else if error.is_builder() || error.is_redirect() {
        "http_request"
    } else {
        "http_connection"
    };
    let mut causes = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        causes = format!("{causes}: {cause}");
        source = cause.source();
    }
    Failure::from(error).message(causes).code(code)
}

/// An answer that is not what was expected.
fn refused(status: StatusCode, headers: &HeaderMap, bytes: &[u8]) -> Failure {
    let number = status.as_u16();
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| wait_of(text, now()));
    let reason = status.canonical_reason().unwrap_or_default();
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(DETAIL)]).into_owned();
    let failure = Failure::of_status(number, format!("the server answered {number} {reason}"));
    let failure = failure.code(format!("http_{number}")).detail(head);
    match after.filter(|_| matches!(number, 429 | 503)) {
        Some(wait) => failure.retry_after(wait),
        None => failure,
    }
}

/// An input that no request can be made of.
pub(super) fn bad(message: String) -> Failure {
    Failure::data(message).code("bad_input")
}

fn read_body(headers: &HeaderMap, bytes: &[u8]) -> Json {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if (kind == "application/json" || kind.ends_with("+json"))
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return value;
    }
    Json::String(String::from_utf8_lossy(bytes).into_owned())
}

fn lower_case(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut map = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        map.entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    map
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The wait that a Retry-After asks for: seconds, or an HTTP date against `now` in Unix seconds.
fn wait_of(text: &str, now: u64) -> Option<Duration> {
    if let Ok(secs) = text.trim().parse() {
        return Some(Duration::from_secs(secs));
    }
    date(text.trim()).map(|at| Duration::from_secs(at.saturating_sub(now)))
}

/// Unix seconds of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may send today.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as i64 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days from the civil date, by the proleptic Gregorian calendar, with years that begin in March.
    let years = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = years * 365 + years / 4 - years / 100 + years / 400 + of_year - 719_468;
    u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::failure::Category;

    use super::*;

    #[test]
    fn a_wait_is_read_as_seconds_or_as_a_date() {
        assert_eq!(wait_of("120", 0), Some(Duration::from_secs(120)));
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(wait_of("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770), Some(Duration::from_secs(7)));
        assert_eq!(wait_of("Sun, 06 Nov 1994 08:49:37 GMT", 999_999_999), Some(Duration::ZERO));
        assert_eq!(wait_of("soon", 0), None);
    }

    #[test]
    fn answers_are_sorted_by_their_status() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "7".parse().expect("a header"));
        for (status, category, after) in [
            (429, Category::RateLimited, Some(7_000)),
            (503, Category::Transient, Some(7_000)),
            (500, Category::Transient, None),
            (408, Category::Timeout, None),
            (507, Category::System, None),
            (404, Category::Permanent, None),
            (301, Category::Permanent, None),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let failure = refused(status, &headers, b"why");
            assert_eq!((failure.category(), failure.wire().retry_after_ms), (category, after), "{status}");
            assert_eq!(failure.wire().code, Some(format!("http_{}", status.as_u16())));
        }
    }
}
