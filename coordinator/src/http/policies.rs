//! The fleet's policies: read, changed, and asked what holds by them.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use stepfleet_protocol::{failure::Category, gate::Gate, name::Name, policy::Policies, workflow::Workflow};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult, field_problems},
    take::{self, Paging, Params, Raw},
    view::{CategoryView, EffectivePolicies, Page, PoliciesApplied, PoliciesView, Problem, Setting},
};
use crate::{
    machine::rules::{Effective, From as Origin, Rules},
    store::policies::{Applied, Change, Stored},
    time::rfc3339,
    workflow,
};

/// Tries of a change that expects no version, against others that change the policies at the same time.
const TRIES_MAX: usize = 5;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show, apply))
        .routes(routes!(effective))
        .routes(routes!(history))
        .routes(routes!(schema))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowParams {
    /// One of the last hundred versions; the present one if it is left out.
    version: Option<u64>,
}

/// Shows the fleet's policies. The header `ETag` has the version, for `If-Match`.
#[utoipa::path(get, path = "/api/v1/policies", tag = "policies", params(ShowParams),
    responses((status = 200, body = PoliciesView), (status = 404, body = Problem)))]
async fn show(State(app): State<AppState>, Params(p): Params<ShowParams>) -> ApiResult<Response> {
    let stored = match p.version {
        None | Some(0) => app.client.policies().await?,
        Some(version) => app.client.policies_of(version).await?.ok_or_else(|| gone(version))?,
    };
    let tag = format!("\"{}\"", stored.version);
    Ok(([(header::ETAG, tag)], Json(view(stored, true)?)).into_response())
}

fn gone(version: u64) -> ApiError {
    ApiError::not_found("policies_not_found", format!("version {version} of the policies is not kept, or never was"))
        .hint("GET /api/v1/policies/history lists what is kept")
}

fn view(stored: Stored, whole: bool) -> ApiResult<PoliciesView> {
    let written = stored.version > 0;
    let policies = if whole { Some(json(&stored.policies)?) } else { None };
    Ok(PoliciesView {
        version: stored.version,
        at: written.then(|| rfc3339(stored.at_ms)),
        actor: written.then_some(stored.actor),
        reason: stored.reason,
        policies,
    })
}

/// Lists the last versions, newest first, without their documents.
#[utoipa::path(get, path = "/api/v1/policies/history", tag = "policies", params(Paging),
    responses((status = 200, body = Page<PoliciesView>)))]
async fn history(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<PoliciesView>>> {
    let (limit, before) = (take::limit(p.limit)?, take::cursor::<u64>(p.cursor.as_deref())?);
    let found = app.client.policies_history(before, limit as u64).await?;
    let next =
        found.last().filter(|last| found.len() == limit && last.version > 1).map(|last| last.version.to_string());
    let items = found.into_iter().map(|stored| view(stored, false)).collect::<ApiResult<_>>()?;
    Ok(Json(Page { items, next }))
}

/// Gives the JSON Schema of the policies.
#[utoipa::path(get, path = "/api/v1/policies/schema", tag = "policies",
    responses((status = 200, description = "a JSON Schema, draft 2020-12", body = Object)))]
async fn schema() -> Json<serde_json::Value> {
    Json(workflow::policies_schema())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ApplyParams {
    /// Only say what would be different.
    #[serde(default)]
    dry_run: bool,
    /// Refuse with 409 if the present version is another one. The header `If-Match` does the same.
    expected_version: Option<u64>,
    /// Why, for the audit.
    reason: Option<String>,
}

/// Changes the fleet's policies as a whole. They hold within about a second, without a restart.
#[utoipa::path(put, path = "/api/v1/policies", tag = "policies", params(ApplyParams,
        ("If-Match" = Option<String>, Header, description = "the version that is changed, as in `ETag`")),
    request_body(content = String, content_type = "application/yaml", description = "YAML or JSON: the whole document"),
    responses((status = 200, body = PoliciesApplied), (status = 409, description = "somebody else changed them", body = Problem),
        (status = 422, description = "every problem of the document", body = Problem)))]
async fn apply(
    State(app): State<AppState>,
    headers: HeaderMap,
    Params(p): Params<ApplyParams>,
    Raw(body): Raw,
) -> ApiResult<Json<PoliciesApplied>> {
    let expected = expected(&headers, p.expected_version)?;
    let policies = checked(&body).await?;
    let reason = take::reason(p.reason);
    for _ in 0..TRIES_MAX {
        let present = app.client.policies().await?;
        if let Some(expected) = expected.filter(|expected| *expected != present.version) {
            return Err(changed(expected, present.version));
        }
        let diff = workflow::policies_difference(&present.policies, &policies);
        let (version, changed) = (present.version, !diff.is_empty());
        if p.dry_run || !changed {
            return Ok(Json(PoliciesApplied { version, changed, dry_run: p.dry_run, diff }));
        }
        let change = Change {
            expected: version,
            policies: policies.clone(),
            diff: diff.join("\n"),
            at_ms: take::now_ms(),
            actor: take::actor(&headers),
            reason: reason.clone(),
        };
        // RACE: of two changes of one version the script takes the first; the other one looks again.
        if let Applied::Version(version) = app.client.apply_policies(&change).await? {
            return Ok(Json(PoliciesApplied { version, changed, dry_run: false, diff }));
        }
    }
    let text = "too many others change the policies at the same time";
    Err(ApiError::new(StatusCode::CONFLICT, "policies_changed", text))
}

fn changed(expected: u64, present: u64) -> ApiError {
    let text = format!("the policies are of version {present} now: expected was {expected}");
    ApiError::new(StatusCode::CONFLICT, "policies_changed", text).hint("look at what changed, and apply again")
}

/// The version that is to be changed, if the client cares.
fn expected(headers: &HeaderMap, asked: Option<u64>) -> ApiResult<Option<u64>> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(asked) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(asked);
    }
    let bad = || ApiError::bad("bad_if_match", "If-Match is the version of the policies, as in `ETag`: `\"7\"`");
    let version = tag.trim_matches('"').parse().map_err(|_| bad())?;
    match asked {
        Some(other) if other != version => {
            let text = format!("expected_version is `{other}`, but If-Match is `{version}`: give one of them");
            Err(ApiError::bad("bad_parameter", text))
        }
        _ => Ok(Some(version)),
    }
}

async fn checked(body: &[u8]) -> ApiResult<Policies> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad("not_utf8", "the policies are not UTF-8"))?;
    let text = text.to_owned();
    let result = tokio::task::spawn_blocking(move || workflow::check_policies(&text)).await;
    let broken = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "checker_failed", "the checker failed");
    result.map_err(broken)?.map_err(|report| {
        let count = report.problems.len() + report.omitted;
        let text = format!("the policies have {count} problem{}", if count == 1 { "" } else { "s" });
        let mut error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_policies", text);
        error.problem.problems = field_problems(&report);
        error.problem.omitted = report.omitted as u64;
        error
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EffectiveParams {
    /// A registered workflow, `name` or `name@version`.
    workflow: Option<String>,
    /// A step of it.
    step: Option<String>,
    /// A handler; that of the step if it is left out.
    handler: Option<String>,
    /// Show the circuit breaker of this target instead of the handler's.
    target: Option<String>,
}

/// Shows what holds when something fails, and where each number was written.
#[utoipa::path(get, path = "/api/v1/policies/effective", tag = "policies", params(EffectiveParams),
    responses((status = 200, body = EffectivePolicies), (status = "4XX", body = Problem)))]
async fn effective(
    State(app): State<AppState>,
    Params(p): Params<EffectiveParams>,
) -> ApiResult<Json<EffectivePolicies>> {
    let workflow = match &p.workflow {
        Some(name) => Some(registered(&app, name).await?),
        None => None,
    };
    let step = match (&workflow, &p.step) {
        (_, None) => None,
        (None, Some(_)) => {
            return Err(ApiError::bad("bad_parameter", "a step needs its workflow: give `workflow` too"));
        }
        (Some(workflow), Some(name)) => {
            let found = workflow.steps.get(&take::name(name)?);
            let missing = || format!("workflow `{}` has no step `{name}`", workflow.workflow);
            Some(found.ok_or_else(|| ApiError::not_found("step_not_found", missing()))?)
        }
    };
    let handler = match &p.handler {
        Some(handler) => Some(take::name(handler)?),
        None => step.map(|step| step.handler.clone()),
    };
    let stored = app.client.policies().await?;
    let rules = Rules::new(stored.version, stored.policies);
    let written = (step.and_then(|s| s.retry.as_ref()), workflow.as_ref().and_then(|w| w.defaults.retry.as_ref()));
    let of = |category| category_view(category, &rules.resolve(written, handler.as_ref(), category));
    let (breaker_of, breaker) = match (&p.target, &handler) {
        (Some(target), _) => (format!("target {target}"), rules.breaker_of_target(target)),
        (None, Some(handler)) => (format!("handler {handler}"), rules.breaker_of_handler(handler)),
        (None, None) => ("others".to_owned(), rules.breaker_of_others()),
    };
    let gate = match (&p.target, &handler) {
        (Some(target), _) => Some(Gate::target(target)),
        (None, handler) => handler.as_ref().map(Gate::handler),
    };
    let limit = gate.and_then(|gate| rules.policies.limits.get(gate.as_str()));
    Ok(Json(EffectivePolicies {
        version: rules.version,
        handler: handler.as_ref().map(Name::to_string),
        classified: rules.classifies(),
        categories: Category::ALL.into_iter().map(of).collect::<ApiResult<_>>()?,
        breaker_of,
        breaker,
        concurrency: limit.and_then(|limit| limit.concurrency),
        rate: limit.and_then(|limit| limit.rate).map(|rate| rate.to_string()),
    }))
}

async fn registered(app: &AppState, text: &str) -> ApiResult<Workflow> {
    let (name, version) = match text.split_once('@') {
        None => (text, None),
        Some((name, version)) => {
            let bad = || ApiError::bad("bad_version", format!("version `{version}` of the workflow is no number"));
            (name, Some(version.parse().map_err(|_| bad())?))
        }
    };
    Ok(app.client.show_workflow(&take::name(name)?, version).await?.workflow)
}

fn category_view(category: Category, by: &Effective) -> ApiResult<CategoryView> {
    Ok(CategoryView {
        category,
        retry: setting(by.retry)?,
        max_attempts: setting(by.max_attempts)?,
        base_ms: setting(by.base_ms)?,
        factor: setting(by.factor)?,
        cap_ms: setting(by.cap_ms)?,
        jitter: setting(by.jitter)?,
        escalate_after: setting(by.escalate_after)?,
        notify: setting(by.notify)?,
    })
}

fn setting<T: Serialize>(from: Origin<T>) -> ApiResult<Setting> {
    Ok(Setting { value: json(&from.value)?, level: from.level, for_category: from.for_category })
}

fn json(value: &impl Serialize) -> ApiResult<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "broken_state", e.to_string()))
}
