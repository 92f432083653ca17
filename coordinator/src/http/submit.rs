//! Submits: one run a request, or thousands as NDJSON.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use stepfleet_protocol::{codec, message::Answer, workflow::Workflow};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult, state_of},
    sent::{Batch, Sent},
    take::{self, Raw, Strict},
    view::{BulkAnswer, Problem, SubmitRequest, Submitted},
};
use crate::{
    store::{
        client::{Client, ClientError},
        submit::{Durability, How, Taken, Wanted},
        workflows::Stored,
    },
    workflow,
};

/// Bytes of a bulk submit.
const BULK_BYTES_MAX: usize = 64 << 20;
/// Lines of a bulk submit that are worked on together.
const LINES_AT_ONCE: usize = 512;
/// Such groups on their way at once.
const GROUPS_IN_FLIGHT: usize = 4;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(submit))
        .merge(OpenApiRouter::new().routes(routes!(bulk)).layer(DefaultBodyLimit::max(BULK_BYTES_MAX)))
}

/// Submits a run.
#[utoipa::path(post, path = "/api/v1/runs", tag = "runs", request_body = SubmitRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "the same key with the same body gives the same run")),
    responses((status = 201, body = Submitted), (status = 200, description = "an earlier submit made it", body = Submitted),
        (status = 202, description = "written, not yet answered", body = Submitted), (status = "4XX", body = Problem)))]
async fn submit(
    State(app): State<AppState>,
    headers: HeaderMap,
    Strict(mut request): Strict<SubmitRequest>,
) -> ApiResult<Response> {
    if let Some(key) = take::idempotency_key(&headers)? {
        request.idempotency_key = Some(key);
    }
    let how = How { actor: take::actor(&headers), now_ms: take::now_ms(), durable: request.durable };
    let sent = Sent::one(&app.spans, take::traceparent(&headers));
    let traceparent = sent.traceparent();
    let submitted = async {
        let wanted = Door::new(&app.client).wanted(request, traceparent).await?;
        submitted(app.client.submit(wanted, &how).await)
    };
    let submitted = sent.until(submitted.await)?;
    let status = match (submitted.state, submitted.known) {
        (None, _) => StatusCode::ACCEPTED,
        (Some(_), true) => StatusCode::OK,
        (Some(_), false) => StatusCode::CREATED,
    };
    let location = [(header::LOCATION, submitted.url.clone())];
    Ok((status, location, Json(submitted)).into_response())
}

/// Submits many runs: one request a line, one answer a line, in order.
#[utoipa::path(post, path = "/api/v1/runs/bulk", tag = "runs",
    request_body(content = String, content_type = "application/x-ndjson", description = "one submit a line, at most 64 MiB"),
    responses((status = 200, content_type = "application/x-ndjson", body = BulkAnswer), (status = "4XX", body = Problem)))]
async fn bulk(State(app): State<AppState>, headers: HeaderMap, Raw(body): Raw) -> ApiResult<Response> {
    // The whole request is read before the first answer is written: a client that writes all before it reads would
    // otherwise wait for us while we wait for it.
    let permit = app.bulks.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", "too many bulk submits at once").retry_after(1)
    })?;
    let many = Many { app, actor: take::actor(&headers), traceparent: take::traceparent(&headers) };
    let shared = Arc::new(many);
    let groups = groups(&body);
    let answers = stream::iter(groups)
        .map(move |group| answer_group(shared.clone(), group))
        .buffered(GROUPS_IN_FLIGHT)
        .map(move |bytes| {
            let _held = &permit;
            Ok::<_, Infallible>(bytes)
        });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(answers)).into_response())
}

/// Lines with their numbers, in groups. Empty lines are left out.
fn groups(body: &Bytes) -> Vec<Vec<(u64, Bytes)>> {
    let lines = body.split(|b| *b == b'\n').zip(1..).filter(|(line, _)| !line.trim_ascii().is_empty());
    let lines: Vec<(u64, Bytes)> = lines.map(|(line, number)| (number, body.slice_ref(line))).collect();
    lines.chunks(LINES_AT_ONCE).map(<[_]>::to_vec).collect()
}

/// What the lines of a bulk submit share.
struct Many {
    app: AppState,
    actor: String,
    traceparent: Option<String>,
}

async fn answer_group(shared: Arc<Many>, group: Vec<(u64, Bytes)>) -> Bytes {
    let Many { app: AppState { client, spans, .. }, actor, traceparent } = &*shared;
    let mut door = Door::new(client);
    let spans = Batch::new(spans, traceparent.clone(), group.len());
    let mut answers: Vec<Option<ApiResult<Submitted>>> = Vec::with_capacity(group.len());
    let (mut plain, mut durable) = (Vec::new(), Vec::new());
    for (place, (_, line)) in group.iter().enumerate() {
        let request = take::json::<SubmitRequest>(line);
        let is_durable = request.as_ref().is_ok_and(|r| r.durable);
        let wanted = match request {
            Ok(request) => door.wanted(request, spans.create()).await,
            Err(e) => Err(e),
        };
        answers.push(match wanted {
            Ok(wanted) => {
                if is_durable { &mut durable } else { &mut plain }.push((place, wanted));
                None
            }
            Err(e) => Some(Err(e)),
        });
    }
    for (wanted, is_durable) in [(plain, false), (durable, true)] {
        let (places, wanted): (Vec<usize>, Vec<Wanted>) = wanted.into_iter().unzip();
        let how = How { actor: actor.clone(), now_ms: take::now_ms(), durable: is_durable };
        let taken = client.submit_many(wanted, &how).await;
        for (place, taken) in places.into_iter().zip(taken) {
            answers[place] = Some(submitted(taken));
        }
    }
    spans.done(answers.iter().filter(|answer| matches!(answer, Some(Err(_)))).count());
    let mut out = Vec::with_capacity(group.len() * 128);
    for ((line, _), answer) in group.into_iter().zip(answers) {
        let (run, error) = match answer.expect("every line was answered") {
            Ok(run) => (Some(run), None),
            Err(e) => (None, Some(*e.problem)),
        };
        serde_json::to_writer(&mut out, &BulkAnswer { line, run, error }).expect("a vector takes every byte");
        out.push(b'\n');
    }
    out.into()
}

fn submitted(taken: Result<Taken, ClientError>) -> ApiResult<Submitted> {
    let taken = taken?;
    let known = matches!(taken.answer, Some(Answer::Known { .. }));
    let durability = taken.durability.map(|d| match d {
        Durability::Fsync => "fsync".to_owned(),
        Durability::Replica => "replica".to_owned(),
        Durability::None => "none".to_owned(),
    });
    let state = taken.answer.map(state_of).transpose()?;
    Ok(Submitted { id: taken.run, state, url: super::run_url(taken.run), known, durability })
}

/// Makes submits of requests: finds or checks the workflow, validates the input. Remembers what it found for one request.
pub(super) struct Door<'a> {
    client: &'a Client,
    seen: HashMap<String, Arc<Stored>>,
}

impl<'a> Door<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, seen: HashMap::new() }
    }

    async fn wanted(&mut self, request: SubmitRequest, traceparent: Option<String>) -> ApiResult<Wanted> {
        let print = take::fingerprint(&codec::pack(&(
            &request.workflow,
            &request.definition,
            &request.definition_text,
            &request.input,
        )));
        let SubmitRequest { workflow, definition, definition_text, input, durable: _, idempotency_key } = request;
        let workflow = match (workflow, definition, definition_text) {
            (Some(name), None, None) => self.registered(&name).await?,
            (None, Some(value), None) => self.inline(value.to_string(), Definition::Value(value)).await?,
            (None, None, Some(text)) => self.inline(text.clone(), Definition::Text(text)).await?,
            _ => {
                return Err(ApiError::bad(
                    "bad_workflow",
                    "exactly one of `workflow`, `definition` and `definition_text` must be given",
                ));
            }
        };
        if let Some(schema) = &workflow.input {
            let null = serde_json::Value::Null;
            workflow::validate_input(schema, input.as_ref().unwrap_or(&null)).map_err(|problems| {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                ApiError::new(status, "invalid_input", problems.join("; "))
            })?;
        }
        let idempotency = idempotency_key.map(take::checked_key).transpose()?.map(|key| (key, print));
        let input = input.filter(|i| !i.is_null()).map(|i| Bytes::from(codec::pack(&i)));
        Ok(Wanted { workflow, input, traceparent, idempotency })
    }

    async fn registered(&mut self, text: &str) -> ApiResult<Arc<Stored>> {
        if let Some(found) = self.seen.get(text) {
            return Ok(found.clone());
        }
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => {
                let bad = || {
                    ApiError::bad(
                        "bad_version",
                        format!("bad version `{}`: allowed is a number from 1", version.escape_debug()),
                    )
                };
                (name, Some(version.parse().ok().filter(|v| *v > 0).ok_or_else(bad)?))
            }
            None => (text, None),
        };
        let found = self.client.registered(&take::name(name)?, version).await?;
        self.seen.insert(text.to_owned(), found.clone());
        Ok(found)
    }

    async fn inline(&mut self, key: String, definition: Definition) -> ApiResult<Arc<Stored>> {
        if let Some(found) = self.seen.get(&key) {
            return Ok(found.clone());
        }
        let stored = Arc::new(Stored::new(&checked(definition).await?));
        self.seen.insert(key, stored.clone());
        Ok(stored)
    }
}

/// A definition as it came.
pub(super) enum Definition {
    /// YAML or JSON.
    Text(String),
    /// An object.
    Value(serde_json::Value),
}

/// Checks a definition, beside the request's thread, because a large one takes a while.
pub(super) async fn checked(definition: Definition) -> ApiResult<Workflow> {
    let check = move || match definition {
        Definition::Text(text) => workflow::check(&text),
        Definition::Value(value) => workflow::check_value(&value),
    };
    let result = tokio::task::spawn_blocking(check).await;
    let broken = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "checker_failed", "the checker failed");
    result.map_err(broken)?.map_err(|report| ApiError::report(&report))
}
