//! One worker's control channel, as one observer sees it: whether somebody who listened there is gone. No I/O.
//!
//! A count of 0 says little by itself: after a fail-over subscribers are counted on the old primary for a while and not yet on
//! the new one, a slot may have moved, and a storm of resets takes every subscription away for a moment. So only 0 after a count
//! that was above it, asked over the same connection, is an absence, and it begins anew with every look that is in doubt.

use std::time::Duration;

use tokio::time::Instant;

/// A connection says nothing about absences until it was open, and its server was the one to ask, for this long.
pub(super) const CALM: Duration = Duration::from_secs(30);
/// Looks further apart than this say nothing about the time between them.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// An answer that took longer than this says nothing about the time before it.
const TRIP_MAX: Duration = Duration::from_millis(500);

/// When a look was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Since when the connection has been open, and its server the one to ask.
    pub(super) steady: Instant,
    /// Just before the question.
    pub(super) sent: Instant,
    /// When the answer was there.
    pub(super) got: Instant,
}

/// What is known of a worker's channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// Over which connection somebody was seen there: since when that had been open.
    seen: Option<Instant>,
    /// Since when nobody has been there for sure.
    absent: Option<Instant>,
    /// The last look counted nobody.
    is_empty: bool,
    /// When the last answer came.
    looked: Option<Instant>,
    /// It came late, or long after the one before: while all do, no absence is ever long enough.
    is_doubtful: bool,
}

impl Channel {
    /// A look found so many subscribers.
    pub(super) fn heard(&mut self, look: Look, subscribers: i64) {
        let paused = self.looked.is_some_and(|at| look.sent.saturating_duration_since(at) > PAUSE_MAX);
        self.is_doubtful = paused || look.got - look.sent > TRIP_MAX;
        (self.looked, self.is_empty) = (Some(look.got), subscribers == 0);
        if self.seen != Some(look.steady) {
            (self.seen, self.absent) = (None, None);
        }
        if subscribers > 0 {
            (self.seen, self.absent) = (Some(look.steady), None);
        } else if self.seen.is_some_and(|since| look.sent - since >= CALM)
            && (self.is_doubtful || self.absent.is_none())
        {
            self.absent = Some(look.got);
        }
    }

    /// A look failed, or it was not its server that answered.
    pub(super) fn unheard(&mut self) {
        *self = Self::default();
    }

    /// Whether it is known, over a calm connection and by looks that are quick and close, that somebody is there.
    pub(super) fn is_watched(&self, now: Instant) -> bool {
        !self.is_doubtful
            && self.absent.is_none()
            && self.seen.is_some_and(|since| now.saturating_duration_since(since) >= CALM)
    }

    /// Whether the last look counted nobody there, and one before it, over the same connection, somebody. Alone it says little:
    /// it may be the moment of a reset.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_some() && self.is_empty
    }

    /// Since when nobody has been there.
    pub(super) fn absent(&self) -> Option<Instant> {
        self.absent
    }

    /// The worker lives: its absence counts from now on.
    pub(super) fn start_again(&mut self, now: Instant) {
        self.absent = self.absent.map(|_| now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a channel, each with the second, the time of the trip in ms, the connection and the count; how long it was
    /// absent at the last one.
    fn absent(looks: &[(u64, u64, u64, i64)]) -> Option<u64> {
        let base = Instant::now();
        let at = |secs| base + Duration::from_secs(secs);
        let (mut channel, mut last) = (Channel::default(), base);
        for (secs, trip_ms, steady, subscribers) in looks {
            let sent = at(*secs);
            let look = Look { steady: at(*steady), sent, got: sent + Duration::from_millis(*trip_ms) };
            channel.heard(look, *subscribers);
            last = sent;
        }
        channel.absent().map(|since| last.saturating_duration_since(since).as_secs())
    }

    #[test]
    fn who_was_seen_over_a_calm_connection_and_is_not_any_more_is_absent() {
        assert_eq!(absent(&[(40, 1, 0, 1), (42, 0, 0, 0), (44, 0, 0, 0), (46, 0, 0, 0)]), Some(4));
        assert_eq!(absent(&[(40, 1, 0, 1), (42, 0, 0, 0), (44, 0, 0, 1), (46, 0, 0, 0)]), Some(0), "it came back");
    }

    #[test]
    fn trap_8_who_was_never_seen_over_this_connection_is_not_absent() {
        assert_eq!(absent(&[(40, 1, 0, 0), (42, 1, 0, 0)]), None);
        let after_a_fail_over = [(40, 1, 0, 1), (42, 1, 41, 0), (80, 1, 41, 0), (82, 1, 41, 0)];
        assert_eq!(absent(&after_a_fail_over), None, "the new primary does not count it, however calm");
    }

    #[test]
    fn trap_8_a_connection_says_nothing_in_its_first_thirty_seconds() {
        assert_eq!(absent(&[(40, 1, 20, 1), (42, 1, 20, 0), (48, 1, 20, 0)]), None);
    }

    #[test]
    fn looks_that_are_slow_or_far_apart_start_an_absence_again() {
        assert_eq!(absent(&[(40, 1, 0, 1), (42, 0, 0, 0), (44, 600, 0, 0), (46, 0, 0, 0)]), Some(1));
        assert_eq!(absent(&[(40, 1, 0, 1), (42, 0, 0, 0), (46, 0, 0, 0), (48, 0, 0, 0)]), Some(2));
    }

    #[test]
    fn a_channel_is_not_watched_while_looks_are_slow_or_far_apart() {
        let base = Instant::now();
        let at = |secs| base + Duration::from_secs(secs);
        let mut channel = Channel::default();
        let mut is_watched = |secs, trip_ms| {
            let got = at(secs) + Duration::from_millis(trip_ms);
            channel.heard(Look { steady: base, sent: at(secs), got }, 1);
            channel.is_watched(got)
        };
        assert_eq!([is_watched(40, 1), is_watched(42, 1)], [true, true]);
        assert_eq!([is_watched(44, 600), is_watched(46, 1)], [false, true], "slow");
        assert_eq!([is_watched(50, 1), is_watched(54, 1), is_watched(56, 1)], [false, false, true], "far apart");
    }
}
