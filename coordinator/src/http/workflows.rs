//! Registered workflows and the checker.

use axum::{
    Json,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use stepfleet_protocol::limits::WORKFLOW_BYTES_MAX;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::{ApiError, ApiResult},
    submit::{Definition, checked},
    take::{self, Paging, Params, Raw},
    view::{Checked, Page, Problem, Registered, VersionView, WorkflowDetail, WorkflowSummary},
};
use crate::{store::workflows::Stored, time::rfc3339, workflow};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(check))
        .routes(routes!(schema))
        .routes(routes!(show))
        .layer(DefaultBodyLimit::max(WORKFLOW_BYTES_MAX))
}

/// Registers a definition: a new version, unless the latest one is the same.
#[utoipa::path(post, path = "/api/v1/workflows", tag = "workflows",
    request_body(content = String, content_type = "application/yaml", description = "YAML or JSON"),
    responses((status = 201, body = Registered), (status = 200, description = "the latest version is the same", body = Registered),
        (status = 422, description = "every problem of the definition", body = Problem)))]
async fn register(State(app): State<AppState>, headers: HeaderMap, Raw(body): Raw) -> ApiResult<Response> {
    let workflow = checked(Definition::Text(text(&body)?)).await?;
    let version = app.client.register(&workflow, &take::actor(&headers), take::now_ms()).await?;
    let name = workflow.workflow.to_string();
    let url = format!("/api/v1/workflows/{name}?version={}", version.number);
    let plan = Stored::new(&workflow).hash;
    let registered = Registered { name, version: version.number, plan, created: version.created, url };
    let status = if version.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::LOCATION, registered.url.clone())], Json(registered)).into_response())
}

/// Checks a definition and writes nothing.
#[utoipa::path(post, path = "/api/v1/workflows/check", tag = "workflows",
    request_body(content = String, content_type = "application/yaml", description = "YAML or JSON"),
    responses((status = 200, body = Checked)))]
async fn check(Raw(body): Raw) -> ApiResult<Json<Checked>> {
    match checked(Definition::Text(text(&body)?)).await {
        Ok(workflow) => Ok(Json(Checked {
            valid: true,
            name: Some(workflow.workflow.to_string()),
            steps: Some(workflow.steps.len()),
            plan: Some(Stored::new(&workflow).hash),
            ..Checked::default()
        })),
        Err(e) if e.problem.code == "invalid_workflow" => {
            Ok(Json(Checked { problems: e.problem.problems, omitted: e.problem.omitted, ..Checked::default() }))
        }
        Err(e) => Err(e),
    }
}

/// Gives the JSON Schema of definitions.
#[utoipa::path(get, path = "/api/v1/workflows/schema", tag = "workflows",
    responses((status = 200, description = "a JSON Schema, draft 2020-12", body = Object)))]
async fn schema() -> Json<serde_json::Value> {
    Json(workflow::schema())
}

/// Lists registered workflows by name.
#[utoipa::path(get, path = "/api/v1/workflows", tag = "workflows", params(Paging),
    responses((status = 200, body = Page<WorkflowSummary>)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<WorkflowSummary>>> {
    let after = p.cursor.unwrap_or_default();
    let limit = take::limit(p.limit)?;
    let (found, more) = app.client.list_workflows(&after, limit).await?;
    let next = found.last().map(|(name, ..)| name.to_string()).filter(|_| more);
    let items = found.into_iter().map(|(name, latest, at)| WorkflowSummary {
        name: name.to_string(),
        latest,
        registered_at: at.map(rfc3339),
    });
    Ok(Json(Page { items: items.collect(), next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowParams {
    /// The version; the latest if it is left out.
    version: Option<u32>,
}

/// Shows one version of a workflow.
#[utoipa::path(get, path = "/api/v1/workflows/{name}", tag = "workflows",
    params(("name" = String, Path, description = "its name"), ShowParams),
    responses((status = 200, body = WorkflowDetail), (status = 404, body = Problem)))]
async fn show(
    State(app): State<AppState>,
    Path(name): Path<String>,
    Params(p): Params<ShowParams>,
) -> ApiResult<Json<WorkflowDetail>> {
    let name = take::name(&name)?;
    let shown = app.client.show_workflow(&name, p.version).await?;
    let at = |version: u32| shown.registered_ms.iter().find(|(v, _)| *v == version).and_then(|(_, ms)| *ms);
    let definition = serde_json::to_value(&shown.workflow)
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "broken_state", e.to_string()))?;
    let versions = shown
        .registered_ms
        .iter()
        .map(|(version, ms)| VersionView { version: *version, registered_at: ms.map(rfc3339) });
    Ok(Json(WorkflowDetail {
        name: name.to_string(),
        version: shown.version,
        plan: shown.hash.clone(),
        registered_at: at(shown.version).map(rfc3339),
        definition,
        versions: versions.collect(),
    }))
}

fn text(body: &[u8]) -> ApiResult<String> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad("not_utf8", "the definition is not UTF-8"))?;
    Ok(text.to_owned())
}
