//! Time-outs of young runs. Most runs end within moments, so the time-out of a run comes among the timers when the run is a
//! minute old; until then its owner alone keeps it in mind.
//!
//! `young` in the head says how far that is done: of every open run made before it the time-out is among the timers. It
//! only grows, in the commits that store timers, so a new owner finds those that the last one kept in mind only: they are of
//! open runs made since then. Without it, as older programs leave a head, every time-out is among the timers.

use redis::{Cmd, cmd};
use stepfleet_protocol::keys::PartitionKeys;

/// The age at which the time-out of a run comes among the timers, in milliseconds.
pub const YOUNG_MS: u64 = 60_000;
/// A shorter time-out is among the timers from the beginning: it is stored long before it is due.
pub const TIMEOUT_MIN_MS: u64 = 2 * YOUNG_MS;
/// The field of the head.
pub const FIELD: &str = "young";

/// Asks how far time-outs are stored. Ask before looking for timers: what is stored by then stays.
pub fn ask(keys: &PartitionKeys) -> Cmd {
    let mut get = cmd("HGET");
    get.arg(keys.head()).arg(FIELD);
    get
}

/// The time up to which everything is stored, from an answer to [`ask`] or a field of the head; none for always.
pub fn stored_to(found: &redis::Value) -> Option<u64> {
    super::reply::number(found).map(|n| n as u64)
}

/// Whether the time-out of an open run has to be among the timers.
pub fn is_stored(created_ms: u64, timeout_ms: u64, stored_to: Option<u64>) -> bool {
    timeout_ms < TIMEOUT_MIN_MS || stored_to.is_none_or(|to| created_ms < to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_out_an_old_run_and_a_head_of_an_older_program_leave_no_doubt() {
        assert!(is_stored(9_000, TIMEOUT_MIN_MS - 1, Some(5_000)));
        assert!(is_stored(4_999, TIMEOUT_MIN_MS, Some(5_000)));
        assert!(!is_stored(5_000, TIMEOUT_MIN_MS, Some(5_000)));
        assert!(is_stored(9_000, TIMEOUT_MIN_MS, None));
    }
}
