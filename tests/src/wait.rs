//! Waiting for a condition with a deadline: the only place of the harness where time is passed.

use std::time::{Duration, Instant};

use anyhow::Context;

/// How long [`until`] rests between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Calls `poll` until it succeeds and returns its value. After `deadline` it fails with `what` was waited for and the last
/// error of `poll`, which should say what was seen instead. A poll that hangs is cut off at the deadline too.
///
/// # Errors
/// Only when the deadline passed.
pub async fn until<T>(
    deadline: Duration,
    what: &str,
    mut poll: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut last = anyhow::anyhow!("the first look did not come back");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.max(POLL_INTERVAL), poll()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(last).with_context(|| format!("waited {deadline:?} in vain for {what}"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
