//! The programs: what each is started with, and how it runs. `dev`, `coordinator` and `worker` know Redis; no other verb does,
//! but for `doctor` and `bench`.

pub(crate) mod bench;
pub(crate) mod coordinator;
pub(crate) mod dev;
mod outbox;
mod pods;
pub(crate) mod redis;
mod retention;
mod server;
mod settings;
mod telemetry;
mod trace;
pub(crate) mod worker;

pub(crate) use settings::{Checks, Given};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// A token that the first SIGINT or SIGTERM cancels. A second SIGINT ends the program at once.
fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let fault = |error: std::io::Error| Failure::failed(format!("signals cannot be watched: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopped.cancel();
        interrupt.recv().await;
        std::process::exit(130);
    });
    Ok(stop)
}
