//! The health server: `/livez`, `/readyz` and `/metrics`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::{builder::RunError, kit::Kit};

/// Opens the port.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|error| RunError::Health { address, error })
}

/// Serves until it is dropped.
pub(crate) async fn serve(kit: Arc<Kit>, listener: TcpListener) {
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(kit);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the health server has failed");
    }
}

/// Ready is a worker that reads jobs: not one that is deaf, and not one that drains.
async fn ready(State(kit): State<Arc<Kit>>) -> (StatusCode, String) {
    if kit.drain.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
    } else if !kit.pulse.is_fresh() {
        let age = kit.pulse.age().as_secs();
        (StatusCode::SERVICE_UNAVAILABLE, format!("job streams were last read {age}s ago\n"))
    } else if *kit.partitions.borrow() == 0 {
        (StatusCode::SERVICE_UNAVAILABLE, "no partitions yet\n".to_owned())
    } else {
        (StatusCode::OK, "ok\n".to_owned())
    }
}

async fn metrics(State(kit): State<Arc<Kit>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], kit.metrics.text())
}
