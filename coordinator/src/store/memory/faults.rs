//! Faults of the wire, drawn from the caller's seed.
//!
//! Every trip draws the same number of times whatever it holds, so that one seed and one order of trips give one story.

use std::time::Duration;

/// How the wire misbehaves. Chances are between 0 and 1 and are drawn per trip; the default is a perfect wire.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Where the draws begin.
    pub seed: u64,
    /// The commands never arrive; the link is lost.
    pub lose_request: f64,
    /// The commands are executed, the replies never arrive; the link is lost.
    pub lose_reply: f64,
    /// Of a pipeline with an EXEC, what is in front of it is executed, the link is lost at once, and the rest is executed
    /// later on the same connection, whose WATCH and MULTI live until then.
    pub late_exec: f64,
    /// The longest such delay.
    pub late_by_max: Duration,
    /// The longest time a trip takes to arrive.
    pub latency_max: Duration,
}

/// What becomes of one trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Delivered,
    RequestLost,
    ReplyLost,
    /// What begins with EXEC arrives this much later.
    ExecLate {
        by: Duration,
        /// Whether the client sees a time-out instead of a reset.
        timed_out: bool,
    },
}

/// The draws.
#[derive(Debug, Default)]
pub(super) struct Dice {
    faults: Faults,
    state: u64,
}

impl Dice {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults, state: faults.seed }
    }

    /// Draws for one trip: what becomes of it, and how long it takes to arrive.
    pub(super) fn roll(&mut self, has_exec: bool) -> (Fate, Duration) {
        let (request, reply, late) = (self.unit(), self.unit(), self.unit());
        let (by, latency, timed_out) = (self.unit(), self.unit(), self.unit() < 0.5);
        let faults = self.faults;
        let fate = if request < faults.lose_request {
            Fate::RequestLost
        } else if reply < faults.lose_reply {
            Fate::ReplyLost
        } else if has_exec && late < faults.late_exec {
            Fate::ExecLate { by: faults.late_by_max.mul_f64(by), timed_out }
        } else {
            Fate::Delivered
        };
        (fate, faults.latency_max.mul_f64(latency))
    }

    /// SplitMix64, as a number in `0..1`.
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}
