//! Policies of the whole fleet: the stored form of `policies.yaml`. They change without a restart. Pure data.
//!
//! Whatever is not written stays open, so that the level below fills it in. The order for retries is step, workflow, handler,
//! fleet, built-in; inside a level a category goes before the general setting.
//!
//! The doc comments of the fields become the descriptions of the published JSON Schema.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::Millis, name::Name, rate::Rate, workflow::Retry};

/// What holds for every workflow of the fleet that does not say otherwise.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Policies {
    /// The numbers below everything that is written: `default` if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Who says whether a failure is tried again; `category` if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Retries of every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Circuit breakers of every handler and target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerPolicy>,
    /// What holds for a handler instead, by its name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub handlers: IndexMap<Name, HandlerPolicy>,
    /// Circuit breakers of targets, by the text that steps give in `breaker`.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub targets: IndexMap<String, BreakerPolicy>,
    /// How much may be under way at once, and begin in a time, by what it is about: `handler:<name>` or `target:<text>`.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub limits: IndexMap<String, LimitPolicy>,
}

/// A set of numbers to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 3 attempts, 1s, cap 60s; a breaker of 5 failures, 10 calls, 1m.
    #[default]
    Default,
    /// 5 attempts, 2s, cap 2m; a breaker of 10 failures, 10 calls, 5m.
    Production,
}

/// Who says whether a failure is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Classification {
    /// The policy of its category, unless the handler has a verdict of its own.
    #[default]
    Category,
    /// The handler alone: what it does not call retryable is not tried again, and categories have no policies.
    Handler,
}

/// What holds for one handler.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HandlerPolicy {
    /// Retries of its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Its circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerPolicy>,
}

/// How much of one handler, or with one target, the whole fleet does. At least one of `concurrency` and `rate`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct LimitPolicy {
    /// Jobs that are under way at once, in the whole fleet: 1 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: Option<u32>,
    /// Jobs that begin in a time, in the whole fleet, such as `100/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Jobs that may begin at once after a quiet time, for `rate`: 1 to 10000; a tenth of a second's worth, at least 1, if
    /// nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub burst: Option<u32>,
}

/// When a circuit breaker opens, and how it closes again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Whether it opens by itself. An operator can open one that is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Failures in a row that open it: 1 to 10000; 5 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub failures: Option<u32>,
    /// The share of failures in the window that opens it: 0.01 to 1; 0.5 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 1.0))]
    pub ratio: Option<f64>,
    /// Calls in the window below which it never opens: 1 to 100000; 10 if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub minimum_calls: Option<u32>,
    /// The sliding window: 1s to 1h; 1m if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Millis>,
    /// How long it stays open the first time, 100ms to 1d; 1m if nobody says otherwise. Each time it opens again without having
    /// recovered it stays open twice as long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_for: Option<Millis>,
    /// The longest time it stays open; ten times `break_for` if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_cap: Option<Millis>,
    /// Jobs that are let through to try when the time is over: 1 to 100; 3 if nobody says otherwise. All of them must
    /// succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub canaries: Option<u32>,
}

impl BreakerPolicy {
    /// What is written here, else what is written in `below`.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        Self {
            enabled: self.enabled.or(below.enabled),
            failures: self.failures.or(below.failures),
            ratio: self.ratio.or(below.ratio),
            minimum_calls: self.minimum_calls.or(below.minimum_calls),
            window: self.window.or(below.window),
            break_for: self.break_for.or(below.break_for),
            break_cap: self.break_cap.or(below.break_cap),
            canaries: self.canaries.or(below.canaries),
        }
    }
}
