//! A web server that fails, limits and hangs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, response::Response, routing::get,
};
use tokio::task::JoinHandle;

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Web {
    /// Where it is.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Web {
    /// `/good`; `/flaky` fails twice with 503; `/limited` says 429 once, with `Retry-After: 1`; `/bad` is 404; `/hang` never
    /// answers.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let router = Router::new()
            .route("/good", get(|| async { axum::Json(serde_json::json!({ "price": 42 })) }))
            .route("/flaky", get(flaky))
            .route("/limited", get(limited))
            .route("/bad", get(|| async { StatusCode::NOT_FOUND }))
            .route("/hang", get(std::future::pending::<()>))
            .with_state(counts);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the listener stays") });
        Ok(Self { address, task })
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn flaky(State(counts): State<Arc<[AtomicUsize; 2]>>) -> Response {
    if counts[0].fetch_add(1, Ordering::Relaxed) < 2 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    "at last".into_response()
}

async fn limited(State(counts): State<Arc<[AtomicUsize; 2]>>) -> Response {
    if counts[1].fetch_add(1, Ordering::Relaxed) < 1 {
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response();
    }
    "welcome".into_response()
}
