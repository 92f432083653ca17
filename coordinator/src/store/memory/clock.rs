//! The clock of the memory twin: a fixed start, plus the time of the tokio runtime, plus a shift.
//!
//! Paused tokio time therefore simulates it. The shift makes the server's clock jump without anything else noticing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Where a simulated server's time begins by default: 2026-01-01T00:00:00Z, in milliseconds.
const START_MS: i64 = 1_767_225_600_000;

/// A clock; clones share the shift.
#[derive(Debug, Clone)]
pub struct Clock {
    base_us: i64,
    started: Instant,
    shift_us: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that shows `unix_ms` now.
    pub fn starting_at(unix_ms: i64) -> Self {
        Self { base_us: unix_ms * 1000, started: Instant::now(), shift_us: Arc::default() }
    }

    /// Makes the clock jump forward, as an adjustment of the server's time would.
    pub fn jump_forward(&self, by: Duration) {
        self.shift_us.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Makes the clock jump back.
    pub fn jump_back(&self, by: Duration) {
        self.shift_us.fetch_sub(micros(by), Ordering::SeqCst);
    }

    /// Microseconds since the Unix epoch.
    pub fn now_us(&self) -> i64 {
        self.base_us + micros(self.started.elapsed()) + self.shift_us.load(Ordering::SeqCst)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::starting_at(START_MS)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
