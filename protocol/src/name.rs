//! Names that people choose: workflows, steps, handlers, queues, workers.
//!
//! One alphabet for all of them, so that a name can stand in a key, a metric label, a URL and an expression unescaped.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::NAME_BYTES_MAX;

/// A name that breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("illegal name `{found}`: {rule}")]
pub struct NameError {
    /// What was found, cut to a printable length.
    pub found: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

const RULE_LENGTH: &str = "a name has 1 to 63 characters";
const RULE_FIRST: &str = "a name begins with a letter or a digit";
const RULE_CHARS: &str = "a name consists of letters, digits, `_`, `-` and `.`";

fn check(text: &str) -> Result<(), NameError> {
    let fail = |rule| Err(NameError { found: text.chars().take(80).collect(), rule });
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return fail(RULE_LENGTH);
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        return fail(RULE_CHARS);
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return fail(RULE_FIRST);
    }
    Ok(())
}

/// A checked name: 1 to 63 characters of `[A-Za-z0-9_.-]`, the first a letter or a digit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and makes a name.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check(text).map(|()| Self(Arc::from(text)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Name {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Name".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "1 to 63 letters, digits, `_`, `-`, `.`; the first a letter or a digit",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_to_its_alphabet_and_length() {
        for good in ["a", "orders", "Step-1.b_c", "0", &"x".repeat(63)] {
            assert_eq!(Name::new(good).map(|n| n.to_string()), Ok(good.to_string()));
        }
        for (bad, rule) in [
            ("", RULE_LENGTH),
            (&*"x".repeat(64), RULE_LENGTH),
            ("-a", RULE_FIRST),
            ("a b", RULE_CHARS),
            ("ä", RULE_CHARS),
            ("a{b}", RULE_CHARS),
        ] {
            assert_eq!(Name::new(bad).expect_err("an illegal name").rule, rule, "{bad}");
        }
    }
}
