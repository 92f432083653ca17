//! After an outage results come first: workers that had them in hand all the time need a moment to bring them to the log,
//! and until then no attempt is given up for its time-out. Runs, retries and delays stay punctual.

use crate::{machine::event::Timer, mutants::mutant};

/// For how long after a take-over or a standstill the owner's own time-outs of attempts are held back, in milliseconds. A
/// worker's write that hung just when the server came back ends after 5 s, the next try begins at most 2 s later, and 3 s
/// are for the connection.
const REPORTS_MS: u64 = 10_000;
/// More time than this between two turns, in milliseconds of the server: it, this process or both stood still. A turn
/// that was only slow takes less, and one that failed ends the reign.
const STANDSTILL_MS: u64 = 3_000;

/// From when on attempts may be given up.
#[derive(Debug)]
pub(super) struct Returning {
    from_ms: u64,
}

impl Returning {
    /// An owner takes over at `now_ms`: what came before is unknown, and may have been an outage.
    pub(super) fn at(now_ms: u64) -> Self {
        Self { from_ms: now_ms + REPORTS_MS }
    }

    /// A turn ended at `now_ms`, the one before it at `last_ms`.
    pub(super) fn turned(&mut self, last_ms: u64, now_ms: u64) {
        let stood_still = now_ms.saturating_sub(last_ms) > STANDSTILL_MS;
        // A server's clock that is set back holds nothing back for longer.
        let latest = now_ms + REPORTS_MS;
        self.from_ms = if stood_still { latest } else { self.from_ms.min(latest) };
    }

    /// When a timer that was due at `due_ms` is due instead, if it has to wait for reports.
    pub(super) fn holds(&self, due_ms: u64, timer: Timer) -> Option<u64> {
        match timer {
            Timer::Attempt { .. } if mutant("no_grace_after_an_outage") => None,
            Timer::Attempt { .. } => (due_ms < self.from_ms).then_some(self.from_ms),
            Timer::Run | Timer::Retry { .. } | Timer::Start { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::id::JobId;

    use super::*;

    const ATTEMPT: Timer = Timer::Attempt { index: 0, job: JobId { reign: REIGN, seq: 1, n: 0 } };
    const REIGN: stepfleet_protocol::id::Reign = stepfleet_protocol::id::Reign { counter: 1, random: 1 };

    #[test]
    fn only_time_outs_of_attempts_wait_and_only_for_a_while() {
        let returning = Returning::at(1_000);
        assert_eq!(returning.holds(500, ATTEMPT), Some(11_000));
        assert_eq!(returning.holds(10_999, ATTEMPT), Some(11_000));
        assert_eq!(returning.holds(11_000, ATTEMPT), None);
        for timer in [Timer::Run, Timer::Retry { index: 0, job: JobId::default() }, Timer::Start { index: 0, by_ms: 1 }]
        {
            assert_eq!(returning.holds(500, timer), None, "{timer:?}");
        }
    }

    #[test]
    fn a_standstill_within_a_reign_holds_them_back_again_and_a_slow_turn_does_not() {
        let mut returning = Returning::at(0);
        returning.turned(20_000, 23_000);
        assert_eq!(returning.holds(22_000, ATTEMPT), None);
        returning.turned(23_000, 26_001);
        assert_eq!(returning.holds(25_000, ATTEMPT), Some(36_001));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_back_for_longer() {
        let mut returning = Returning::at(3_600_000);
        returning.turned(3_600_000, 1_000);
        assert_eq!((returning.holds(10_999, ATTEMPT), returning.holds(11_000, ATTEMPT)), (Some(11_000), None));
    }
}
