//! `sleep`: waits.

use serde::Deserialize;
use stepfleet_protocol::duration::Millis;

use crate::{attempt::Attempt, failure::Failure};

/// Input of `sleep`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sleep {
    /// How long.
    duration: Millis,
}

/// Waits, or until the attempt is to stop. The output is `null`.
pub(super) async fn sleep(attempt: Attempt, input: Sleep) -> Result<(), Failure> {
    tokio::select! {
        () = tokio::time::sleep(input.duration.std()) => {}
        () = attempt.cancelled() => {}
    }
    Ok(())
}
