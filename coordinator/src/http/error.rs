//! How what went wrong becomes a problem that a client can act upon.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use stepfleet_protocol::message::Answer;

use super::view::{FieldProblem, Problem};
use crate::{
    store::{AskError, client::ClientError},
    workflow::Report,
};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) problem: Box<Problem>,
    retry_after_secs: Option<u32>,
}

/// What a handler returns.
pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A problem with this status and word.
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let problem = Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            code: code.into(),
            detail: detail.into(),
            ..Problem::default()
        };
        Self { problem: Box::new(problem), retry_after_secs: None }
    }

    /// The request is malformed.
    pub(super) fn bad(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// There is no such thing.
    pub(super) fn not_found(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// With a hint.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// Try again after so many seconds.
    #[must_use]
    pub(super) fn retry_after(mut self, secs: u32) -> Self {
        self.retry_after_secs = Some(secs);
        self
    }

    /// Every problem of a definition.
    pub(super) fn report(report: &Report) -> Self {
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_workflow",
            format!("the workflow has {} problems", report.problems.len() + report.omitted),
        );
        error.problem.problems = field_problems(report);
        error.problem.omitted = report.omitted as u64;
        error
    }
}

/// Problems of a definition as the API shows them.
pub(super) fn field_problems(report: &Report) -> Vec<FieldProblem> {
    let one = |p: &crate::workflow::Problem| FieldProblem {
        line: p.line,
        column: p.column,
        path: p.path.clone(),
        found: p.found.clone(),
        allowed: p.allowed.clone(),
        hint: p.hint.clone(),
    };
    report.problems.iter().map(one).collect()
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        let detail = error.to_string();
        match error {
            ClientError::Ask(AskError::Unavailable(_)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "redis_unavailable", detail).retry_after(1)
            }
            ClientError::Ask(AskError::Moving { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "slot_moving", detail).retry_after(1)
            }
            ClientError::Ask(AskError::WaitsFull { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "durable_busy", detail)
                    .hint("the disk or the replicas are slow: try again later, or submit without `durable`")
                    .retry_after(2)
            }
            ClientError::Ask(AskError::Refused(text)) => {
                let code = if text.contains("OOM") { "redis_full" } else { "redis_refused" };
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(5)
            }
            ClientError::Ask(AskError::Unexpected(_)) | ClientError::Broken(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "broken_state", detail)
            }
            ClientError::NoPartitions => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_partitions", detail).retry_after(1)
            }
            ClientError::ServerFull { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_full", detail)
                .hint("wait for runs to end and be deleted, shorten retention, or raise `maxmemory`")
                .retry_after(10),
            ClientError::Mismatch => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", detail)
                .hint("use a new key for a new request"),
            ClientError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(1),
            ClientError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "value_too_large", detail),
            ClientError::NoWorkflow(_) => Self::not_found("workflow_not_found", detail)
                .hint("register it with `POST /api/v1/workflows`, or list with `GET /api/v1/workflows`"),
        }
    }
}

/// The state after an answer of an owner that is a success, else the problem.
pub(super) fn state_of(answer: Answer) -> ApiResult<stepfleet_protocol::state::State> {
    match answer {
        Answer::Done { state } | Answer::Known { state } => Ok(state),
        Answer::Conflict { state, message } => {
            let mut error = ApiError::new(StatusCode::CONFLICT, "illegal_state", message);
            error.problem.state = Some(state.to_string());
            Err(error)
        }
        Answer::NotFound => Err(ApiError::not_found("run_not_found", "there is no such run")),
        Answer::NoPlan => {
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "plan_lost", "the workflow was lost on the way")
                .retry_after(1))
        }
        Answer::Refused { code, message } => Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, &code, message)),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = %self.problem.code, detail = %self.problem.detail, "request failed");
        }
        let mut response = (status, axum::Json(&*self.problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        response.extensions_mut().insert(Problematic(self.problem));
        response
    }
}

/// Marks a response that is a problem, so that the request's id can be written into it.
#[derive(Debug, Clone)]
pub(super) struct Problematic(pub(super) Box<Problem>);
