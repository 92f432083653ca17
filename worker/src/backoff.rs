//! How long to wait before the next try, with jitter so that a fleet does not come back as one.

use std::time::Duration;

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// The wait after `failures` failures in a row: doubles up to its limit; between half of it and all of it at random.
pub(crate) fn wait(failures: u32) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    let share = 0.5 + f64::from(random_u32()) / f64::from(u32::MAX) / 2.0;
    full.mul_f64(share)
}

fn random_u32() -> u32 {
    (uuid::Uuid::new_v4().as_u128() >> 96) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_stay_there() {
        for (failures, full) in [(0, 50), (1, 50), (2, 100), (6, 1_600), (7, 2_000), (40, 2_000)] {
            let ms = wait(failures).as_millis();
            assert!((full / 2..=full).contains(&ms), "{failures}: {ms}");
        }
    }
}
