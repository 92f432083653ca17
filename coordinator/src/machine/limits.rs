//! Limits of the fleet: how much of one handler, or with one target, is done at once and in a time.

use std::collections::BTreeMap;

use stepfleet_protocol::{gate::Gate, policy::LimitPolicy};

use super::rules::Rules;

/// A limit with every number filled in. See [`LimitPolicy`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
pub struct Limit {
    /// Jobs under way at once in the fleet; none for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    /// Time between two jobs that begin, in microseconds; 0 for no rate.
    pub interval_us: u64,
    /// Jobs that may begin at once.
    pub burst: u64,
}

impl Limit {
    /// The numbers of a policy.
    pub fn of(policy: &LimitPolicy) -> Self {
        let interval_us = policy.rate.map_or(0, |rate| rate.interval_us());
        let tenth = 100_000u64.checked_div(interval_us).unwrap_or(1).clamp(1, 10_000);
        Self {
            concurrency: policy.concurrency.map(u64::from),
            interval_us,
            burst: policy.burst.map_or(tenth, u64::from),
        }
    }

    /// Whether each job that begins needs a permit of its own, beside its place.
    pub fn is_rated(&self) -> bool {
        self.interval_us > 0
    }
}

impl Rules {
    /// The limit of this name.
    pub fn limit_of(&self, gate: &Gate) -> Option<Limit> {
        self.policies.limits.get(gate.as_str()).map(Limit::of)
    }

    /// Every limit.
    pub fn limits(&self) -> BTreeMap<Gate, Limit> {
        let named = self.policies.limits.iter();
        named.filter_map(|(name, policy)| Some((Gate::parse(name).ok()?, Limit::of(policy)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::rate::Rate;

    use super::*;

    #[test]
    fn a_burst_is_a_tenth_of_a_second_if_nobody_says_otherwise() {
        let burst = |rate: &str, burst| {
            let policy = LimitPolicy { rate: Rate::parse(rate).ok(), burst, ..LimitPolicy::default() };
            Limit::of(&policy).burst
        };
        assert_eq!([burst("1000/s", None), burst("30/m", None), burst("1000/s", Some(7))], [100, 1, 7]);
    }
}
