//! The public HTTP API, as a client: addresses, time-outs, and what each kind of refusal means for the exit code.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepfleet_coordinator::http::view::{FieldProblem, Problem};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::out::{Out, plain};
use crate::token;

/// How long one request may take when nobody says otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Text of an answer that is shown when it is no problem of the API.
const SHOWN_CHARS_MAX: usize = 200;

/// A client of one API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: Url,
    http: reqwest::Client,
    timeout: Duration,
    verbose: Option<Out>,
    actor: Option<String>,
    authorization: Option<HeaderValue>,
}

/// One request before it is sent.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    api: &'a Api,
    method: Method,
    url: Url,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
}

/// What the API answered, after everything that is not a success was sorted out.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The text of the answer, unchanged.
    pub(crate) text: String,
}

impl Answer {
    /// The answer as a type.
    ///
    /// # Errors
    /// It is something else, as when another program answers at this address.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.text).map_err(|error| {
            Failure::failed(format!("the API's answer cannot be read: {error}: `{}`", cut(&self.text)))
                .hint("is it a stepfleet API of this version? see `stepfleet doctor`")
        })
    }
}

impl Api {
    /// A client of the API that the global options name. Nothing is sent yet.
    ///
    /// # Errors
    /// The address is not one, or the token cannot be read.
    pub(crate) fn new(global: &Global, out: &Out) -> Result<Self, Failure> {
        let bad = |why: String| {
            Failure::usage(format!("bad API address `{}`: {why}", global.api))
                .hint("write it as `http://host:port`, with --api or STEPFLEET_API")
        };
        let base: Url = global.api.parse().map_err(|e: <Url as std::str::FromStr>::Err| bad(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad("allowed are `http` and `https`".into()));
        }
        let timeout = global.timeout.map_or(TIMEOUT, |timeout| timeout.std());
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .user_agent(concat!("stepfleet/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            // A proxy of the environment cannot reach this host's own loopback.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Failure::failed(format!("cannot make a client: {error}")))?;
        let verbose = (out.verbose() > 0).then(|| out.clone());
        let authorization = token::authorization(global.token_file.as_deref())?;
        Ok(Self { base, http, timeout, verbose, actor: actor(), authorization })
    }

    /// The address, as it was given.
    pub(crate) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// `GET` of a path; each segment is encoded.
    pub(crate) fn get(&self, path: &[&str]) -> Call<'_> {
        self.call(Method::GET, path)
    }

    /// `POST` to a path.
    pub(crate) fn post(&self, path: &[&str]) -> Call<'_> {
        self.call(Method::POST, path)
    }

    /// `PUT` to a path.
    pub(crate) fn put(&self, path: &[&str]) -> Call<'_> {
        self.call(Method::PUT, path)
    }

    /// `DELETE` of a path.
    pub(crate) fn delete(&self, path: &[&str]) -> Call<'_> {
        self.call(Method::DELETE, path)
    }

    /// `GET` of a path outside `/api/v1`: `/readyz`.
    pub(crate) fn probe(&self, path: &str) -> Call<'_> {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("http has a path").pop_if_empty().push(path);
        Call { api: self, method: Method::GET, url, headers: Vec::new(), body: None }
    }

    fn call(&self, method: Method, path: &[&str]) -> Call<'_> {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("http has a path").pop_if_empty().extend(["api", "v1"]).extend(path);
        Call { api: self, method, url, headers: Vec::new(), body: None }
    }
}

impl Call<'_> {
    /// With a query parameter, if there is a value.
    pub(crate) fn query(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.url.query_pairs_mut().append_pair(name, &value.to_string());
        }
        self
    }

    /// With a header.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a JSON body.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        self.body = Some(serde_json::to_vec(body).expect("requests have text keys"));
        self.header("content-type", "application/json")
    }

    /// With a body of this type.
    pub(crate) fn text(mut self, kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.header("content-type", kind)
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    /// The API cannot be reached (exit code 5), or it refused; see [`refusal`].
    pub(crate) async fn send(self) -> Result<Answer, Failure> {
        let (api, url) = (self.api, self.url.clone());
        let line = format!("{} {url}", self.method);
        let is_command = self.method != Method::GET;
        let mut request = api.http.request(self.method, self.url).timeout(api.timeout);
        if let Some(actor) = api.actor.as_ref().filter(|_| is_command) {
            request = request.header("x-stepfleet-actor", actor);
        }
        if let Some(value) = &api.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        if let Some(body) = self.body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|error| api.unreachable(&error))?;
        let status = response.status();
        if let Some(out) = &api.verbose {
            out.detail(&format!("{line} -> {status}"));
        }
        let text = response.text().await.map_err(|error| api.unreachable(&error))?;
        if status.is_success() { Ok(Answer { status, text }) } else { Err(refusal(api.base(), status, &text)) }
    }
}

impl Api {
    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let base = self.base();
        if error.is_builder() {
            return Failure::usage(format!("this cannot be sent: {}", innermost(error)));
        }
        if error.is_timeout() && !error.is_connect() {
            let secs = self.timeout.as_secs_f64();
            return Failure::new(Exit::Unreachable, format!("no answer from the API at `{base}` within {secs} s"))
                .hint("see `stepfleet doctor`, or wait longer with --timeout");
        }
        Failure::new(Exit::Unreachable, format!("cannot reach the API at `{base}`: {}", innermost(error)))
            .hint("start everything here with `stepfleet dev`, or name another address with --api or STEPFLEET_API")
    }
}

/// Who asks, for history and audit: the user of this host. Programs that cron or a service starts may have only one of the two
/// variables.
fn actor() -> Option<String> {
    let is_plain =
        |user: &String| !user.is_empty() && user.len() <= 64 && user.bytes().all(|byte| byte.is_ascii_graphic());
    let user = ["USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok()).find(is_plain)?;
    Some(format!("cli:{user}"))
}

/// Whether the whole way to the API stays on this host.
fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

/// The last cause, which says most: `Connection refused`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// What an answer that is no success means: 404 is exit code 3, 409 is 4, 401 and 403 are 6, 502 to 504 are 5, another 4xx
/// is 2, the rest 1.
fn refusal(base: &str, status: StatusCode, text: &str) -> Failure {
    let problem = serde_json::from_str::<Value>(text)
        .ok()
        .filter(|value| value.get("code").is_some() && value.get("detail").is_some())
        .and_then(|value| serde_json::from_value::<Problem>(value).ok());
    let Some(problem) = problem else {
        let failure = Failure::new(
            Exit::Unreachable,
            format!("`{base}` answered `{status}`, but not as a stepfleet API does: `{}`", cut(text)),
        );
        return failure.hint("does another program listen there? name the API with --api or STEPFLEET_API");
    };
    let exit = exit_of(status, &problem.code);
    let failure = Failure::new(exit, plain(problem.detail.trim_end_matches('.'))).problems(
        problem.problems.iter().map(|problem| field_problem(problem, None)).chain(omitted(problem.omitted)).collect(),
    );
    match hint_of(&problem) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What to do about a problem, in the words of the command line.
pub(crate) fn hint_of(problem: &Problem) -> Option<String> {
    match problem.code.as_str() {
        "workflow_not_found" => Some(
            "register it with `stepfleet workflows register FILE`; `stepfleet workflows list` shows what there is"
                .into(),
        ),
        "token_missing" => Some("put it into STEPFLEET_TOKEN, or name a file that holds it with --token-file".into()),
        "run_not_found" => Some("`stepfleet runs list` shows the latest runs".into()),
        _ => problem.hint.as_deref().map(plain),
    }
}

/// The exit code of a problem.
pub(crate) fn exit_of(status: StatusCode, code: &str) -> Exit {
    match (status.as_u16(), code) {
        (_, "idempotency_mismatch") | (409, _) => Exit::Conflict,
        (404 | 410, _) => Exit::NotFound,
        (401 | 403, _) => Exit::NotAllowed,
        (429, _) => Exit::Failed,
        (502..=504, _) => Exit::Unreachable,
        (400..=499, _) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// One line for one problem of a definition: `file:line:column: path: found: allowed is …`.
pub(crate) fn field_problem(problem: &FieldProblem, file: Option<&str>) -> String {
    let mut place: Vec<String> = file.map(str::to_owned).into_iter().collect();
    if let (Some(line), Some(column)) = (problem.line, problem.column) {
        place.extend([line.to_string(), column.to_string()]);
    }
    let mut text = if place.is_empty() { String::new() } else { format!("{}: ", place.join(":")) };
    if !problem.path.is_empty() {
        text += &format!("{}: ", problem.path);
    }
    text += &problem.found;
    if !problem.allowed.is_empty() {
        text += &format!(": allowed is {}", problem.allowed);
    }
    if let Some(hint) = &problem.hint {
        text += &format!("; hint: {hint}");
    }
    plain(&text)
}

/// The line that says how many problems are not shown.
pub(crate) fn omitted(count: u64) -> Option<String> {
    (count > 0).then(|| format!("and {count} more"))
}

fn cut(text: &str) -> String {
    let text = plain(text.trim());
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, code: &str) -> Failure {
        let body = serde_json::json!({
            "type": "about:blank", "title": "", "status": status, "code": code, "detail": "no run `x`.", "hint": "look",
            "problems": [{ "line": 3, "column": 7, "path": "steps.a", "found": "unknown field `qeue`", "hint": "`queue`" }],
            "omitted": 2,
        });
        refusal("http://h", StatusCode::from_u16(status).expect("a status"), &body.to_string())
    }

    #[test]
    fn a_refusal_has_the_exit_code_of_its_kind() {
        for (status, code, exit) in [
            (404, "not_found", Exit::NotFound),
            (409, "illegal_state", Exit::Conflict),
            (422, "idempotency_mismatch", Exit::Conflict),
            (422, "bad_definition", Exit::Usage),
            (400, "bad_request", Exit::Usage),
            (401, "x", Exit::NotAllowed),
            (403, "x", Exit::NotAllowed),
            (429, "x", Exit::Failed),
            (500, "x", Exit::Failed),
            (503, "unavailable", Exit::Unreachable),
        ] {
            assert_eq!(problem(status, code).exit(), exit, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_shows_every_problem_with_its_place() {
        let failure = problem(422, "bad_definition");
        assert_eq!(failure.text, "no run `x`");
        assert_eq!(failure.problems, ["3:7: steps.a: unknown field `qeue`; hint: `queue`", "and 2 more"]);
        assert_eq!(failure.hint.as_deref(), Some("look"));
    }

    #[test]
    fn another_program_at_the_address_is_no_answer_of_the_api() {
        let failure = refusal("http://h", StatusCode::NOT_FOUND, "<html>\u{1b}[31mnope</html>");
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert!(failure.text.contains("not as a stepfleet API does") && !failure.text.contains('\u{1b}'));
    }

    #[test]
    fn a_proxy_is_not_asked_about_this_host() {
        for (url, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://fleet", false),
        ] {
            assert_eq!(is_loopback(&url.parse().expect("an address")), expected, "{url}");
        }
    }
}
