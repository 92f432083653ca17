//! Durations as people write them: `250ms`, `30s`, `5m`, `1h30m`, `7d`. Whole milliseconds inside.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time in whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

/// A duration that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad duration `{found}`: allowed is a number with a unit `ms`, `s`, `m`, `h` or `d`, such as `30s` or `1h30m`, at most 3650d"
)]
pub struct DurationError {
    /// What was found.
    pub found: String,
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
const MILLIS_MAX: u64 = 3_650 * 86_400_000;

impl Millis {
    /// From whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000)
    }

    /// As the standard library's duration.
    pub const fn std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }

    /// Reads `250ms`, `30s`, `5m`, `1h30m`, `7d`. Plain `0` is allowed; any other number needs its unit.
    ///
    /// # Errors
    /// What was found, when it is not of that form or beyond ten years.
    pub fn parse(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError { found: text.chars().take(40).collect() };
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self(0));
        }
        let mut total = 0u64;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(bad)?;
            rest = &rest[unit.len()..];
            total = number.checked_mul(*factor).and_then(|ms| total.checked_add(ms)).ok_or_else(bad)?;
        }
        if total > MILLIS_MAX || text.trim().is_empty() { Err(bad()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
            if ms >= factor && ms.is_multiple_of(factor) {
                return write!(f, "{}{unit}", ms / factor);
            }
        }
        write!(f, "{ms}ms")
    }
}

impl fmt::Debug for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Millis {
    type Err = DurationError;
    fn from_str(text: &str) -> Result<Self, DurationError> {
        Self::parse(text)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Millis {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "a number with a unit: `250ms`, `30s`, `5m`, `1h30m`, `7d`; only 0 needs none",
            "anyOf": [
                { "type": "string", "pattern": "^(0|([0-9]+(ms|s|m|h|d))+)$" },
                { "const": 0 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, ms, printed) in [
            ("250ms", 250, "250ms"),
            ("30s", 30_000, "30s"),
            ("1h30m", 5_400_000, "90m"),
            ("0", 0, "0ms"),
            ("7d", 604_800_000, "7d"),
        ] {
            assert_eq!(Millis::parse(text), Ok(Millis(ms)), "{text}");
            assert_eq!(Millis(ms).to_string(), printed);
        }
        for bad in ["", "5", "s", "-1s", "1x", "1.5s", "99999999999999999999s", "4000d", "5m 3s"] {
            assert!(Millis::parse(bad).is_err(), "{bad}");
        }
    }
}
