//! Gates: what holds ready steps back, for the whole fleet at once.
//!
//! A gate has a name: `handler:<name>` and `target:<text>` are circuit breakers, `queue:<name>` is a queue that can be paused.
//! Only gates that are not simply open to everybody are written down, all of them in one hash, so that a look at all of them
//! costs one small read.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Bytes of the text that names a target; a longer one is cut.
pub const TARGET_BYTES_MAX: usize = 256;

/// The name of a gate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gate(Arc<str>);

/// What a gate is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About<'a> {
    /// The circuit breaker of a handler.
    Handler(&'a str),
    /// The circuit breaker of a dependency that steps name.
    Target(&'a str),
    /// A queue.
    Queue(&'a str),
}

impl Gate {
    /// The circuit breaker of a handler.
    pub fn handler(name: &Name) -> Self {
        Self(format!("handler:{name}").into())
    }

    /// The circuit breaker of a target. Control characters become spaces.
    pub fn target(text: &str) -> Self {
        let plain: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self(format!("target:{}", crate::failure::cut(plain, TARGET_BYTES_MAX)).into())
    }

    /// A queue.
    pub fn queue(name: &Name) -> Self {
        Self(format!("queue:{name}").into())
    }

    /// Reads a name.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, BadGate> {
        let bad = || BadGate(crate::failure::cut(text.to_owned(), 100));
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        match kind {
            "handler" => Name::new(rest).map(|name| Self::handler(&name)).map_err(|_| bad()),
            "queue" => Name::new(rest).map(|name| Self::queue(&name)).map_err(|_| bad()),
            "target" if !rest.trim().is_empty() && rest.len() <= TARGET_BYTES_MAX => Ok(Self::target(rest)),
            _ => Err(bad()),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it is about.
    pub fn about(&self) -> About<'_> {
        match self.0.split_once(':') {
            Some(("handler", name)) => About::Handler(name),
            Some(("queue", name)) => About::Queue(name),
            _ => About::Target(self.0.strip_prefix("target:").unwrap_or(&self.0)),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no gate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no gate: allowed are `handler:<name>`, `target:<text>` of at most {TARGET_BYTES_MAX} bytes and `queue:<name>`"
)]
pub struct BadGate(pub String);

/// How a gate stands that is not simply open to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stand {
    /// The circuit is broken: nothing passes.
    Open,
    /// The time is over: a few pass to try.
    HalfOpen,
    /// The dependency is back: what was parked passes in growing waves.
    Recovering,
    /// Somebody paused the queue.
    Paused,
}

impl Stand {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Recovering => "recovering",
            Self::Paused => "paused",
        }
    }
}

/// A gate that is not simply open to everybody, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateState {
    /// Version of the message.
    pub v: u8,
    /// How it stands.
    pub stand: Stand,
    /// Since when, in Unix milliseconds of the server.
    pub since_ms: u64,
    /// When it is tried again, in Unix milliseconds of the server; 0 if somebody has to say so.
    #[serde(default)]
    pub until_ms: u64,
    /// Jobs that may try, and the size of the first wave.
    #[serde(default)]
    pub canaries: u32,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who did it: a person, or `breaker`.
    #[serde(default)]
    pub actor: String,
}

impl GateState {
    /// Whether a job that is no canary is held back.
    pub fn blocks(&self) -> bool {
        self.stand != Stand::Recovering
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_named_after_what_it_is_about() {
        let name = Name::new("charge").expect("a legal name");
        assert_eq!(Gate::parse("handler:charge"), Ok(Gate::handler(&name)));
        assert_eq!(Gate::parse("queue:charge").map(|g| g.to_string()), Ok("queue:charge".into()));
        assert_eq!(Gate::target(" https://api:443\n").about(), About::Target("https://api:443"));
        assert_eq!(Gate::parse("target:https://api:443"), Ok(Gate::target("https://api:443")));
        for bad in
            ["", "charge", "handler:", "handler:a b", "target: ", "other:x", &format!("target:{}", "x".repeat(300))]
        {
            assert!(Gate::parse(bad).is_err(), "{bad}");
        }
    }
}
