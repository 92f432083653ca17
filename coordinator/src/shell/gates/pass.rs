//! Whether a step may pass its gate, and how many may not.

use stepfleet_protocol::gate::Gate;

/// Whether a step may pass a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// It may, with this leave if it needs one.
    May(Option<Leave>),
    /// It may not: the circuit is broken.
    Blocked,
    /// It may not: enough is under way.
    Full,
}

/// Leave to pass a gate that is not open to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The gate.
    pub gate: Gate,
    /// The token of a job that tries whether the dependency is back.
    pub canary: Option<String>,
    /// It has a permit of the gate's limit.
    pub(super) permit: bool,
}

/// Steps of this partition that are parked at a gate.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Parked {
    pub(super) count: u64,
    /// The highest priority among them, or more.
    pub(super) urgent: u8,
    /// Some of them were looked at, and are about to be released.
    pub(super) looked_at: bool,
    /// Released in the present recovery, which began at this time.
    pub(super) released: u64,
    pub(super) since_ms: u64,
}
