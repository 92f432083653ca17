//! A receiver of traces: it takes OTLP by gRPC and by HTTP, reads the real protobuf, and keeps what came.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::span::SpanKind,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status};

/// A span as it came, in plain words.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// `service.name` of the program that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// The trace's id in hex digits.
    pub trace: String,
    /// Its id in hex digits.
    pub id: String,
    /// The id of the span above it, empty for none.
    pub parent: String,
    /// Its beginning and its end, in Unix nanoseconds.
    pub time: (u64, u64),
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Traces and spans that it links to.
    pub links: Vec<(String, String)>,
    /// Names of its events.
    pub events: Vec<String>,
    /// It tells of an error.
    pub failed: bool,
}

impl Span {
    /// An attribute; empty if it is not there.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

/// The receiver; it ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    kept: Kept,
    grpc: SocketAddr,
    http: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl Receiver {
    /// Starts it on free ports of loopback.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let kept = Kept::default();
        let http = TcpListener::bind("127.0.0.1:0").await?;
        let http_at = http.local_addr()?;
        let router = Router::new().route("/v1/traces", post(take)).with_state(kept.clone());
        let serve_http = tokio::spawn(async move { axum::serve(http, router).await.expect("it serves until the end") });
        let grpc = TcpListener::bind("127.0.0.1:0").await?;
        let grpc_at = grpc.local_addr()?;
        let incoming = futures::stream::unfold(grpc, |listener| async move {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let service = TraceServiceServer::new(kept.clone());
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let serve_grpc = tokio::spawn(async move { server.await.expect("it serves until the end") });
        Ok(Self { kept, grpc: grpc_at, http: http_at, tasks: [serve_http, serve_grpc] })
    }

    /// Where it takes gRPC.
    #[must_use]
    pub fn grpc(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where it takes HTTP.
    #[must_use]
    pub fn http(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Everything that came so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn take(State(kept): State<Kept>, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    kept.keep(ExportTraceServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?);
    Ok(ExportTraceServiceResponse::default().encode_to_vec())
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Kept {
    fn keep(&self, request: ExportTraceServiceRequest) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of in request.resource_spans {
            let resource = attributes(of.resource.unwrap_or_default().attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.push(Span {
                    service: service.clone(),
                    kind: span.kind(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    time: (span.start_time_unix_nano, span.end_time_unix_nano),
                    links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                    events: span.events.iter().map(|event| event.name.clone()).collect(),
                    failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                    attributes: attributes(span.attributes),
                    name: span.name,
                });
            }
        }
    }
}

fn attributes(of: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    of.into_iter().map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
