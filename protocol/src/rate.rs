//! Rates as people write them: `100/s`, `30/m`, `5000/h`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many in a second, a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many: 1 to 1,000,000.
    pub count: u32,
    /// In how long.
    pub per: Per,
}

/// The time that a rate is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

/// The most that a rate may be of its time.
pub const RATE_MAX: u32 = 1_000_000;

/// A rate that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad rate `{found}`: allowed is a whole number from 1 to 1000000 with `/s`, `/m` or `/h`, such as `100/s`")]
pub struct RateError {
    /// What was found.
    pub found: String,
}

impl Rate {
    /// Reads `100/s`, `30/m`, `5000/h`.
    ///
    /// # Errors
    /// What was found, when it is not of that form or out of range.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        let read = || {
            let (count, per) = text.trim().split_once('/')?;
            let per = match per.trim() {
                "s" => Per::Second,
                "m" => Per::Minute,
                "h" => Per::Hour,
                _ => return None,
            };
            let count = count.trim().parse().ok().filter(|n| (1..=RATE_MAX).contains(n))?;
            Some(Self { count, per })
        };
        read().ok_or_else(|| RateError { found: text.chars().take(40).collect() })
    }

    /// Time between two, in microseconds; at least 1.
    pub fn interval_us(self) -> u64 {
        let per: u64 = match self.per {
            Per::Second => 1_000_000,
            Per::Minute => 60_000_000,
            Per::Hour => 3_600_000_000,
        };
        (per / u64::from(self.count.max(1))).max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Per::Second => 's',
            Per::Minute => 'm',
            Per::Hour => 'h',
        };
        write!(f, "{}/{per}", self.count)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "how many in a second, a minute or an hour: `100/s`, `30/m`, `5000/h`; 1 to 1000000",
            "type": "string",
            "pattern": "^[0-9]+/(s|m|h)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_and_print() {
        for (text, interval_us, printed) in
            [("100/s", 10_000, "100/s"), (" 30 / m", 2_000_000, "30/m"), ("1000000/s", 1, "1000000/s")]
        {
            let rate = Rate::parse(text).expect(text);
            assert_eq!((rate.interval_us(), rate.to_string().as_str()), (interval_us, printed));
        }
        for bad in ["", "100", "0/s", "1000001/s", "-1/s", "1.5/s", "10/d", "/s", "10/"] {
            let error = Rate::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }
}
