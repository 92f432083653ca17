//! Which dead letters are meant: one filter for lists, groups and campaigns.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use stepfleet_protocol::{codec, failure::Category};
use utoipa::ToSchema;

use super::{read::PlacedId, record::DeadLetter, reply::Fields};
use crate::machine::{decision::Cause, fingerprint::Fingerprint};

/// Ids that one filter may name.
pub const IDS_MAX: usize = 1_000;
/// Bytes of the text that is looked for.
pub const TEXT_BYTES_MAX: usize = 200;

/// Which dead letters: those for which everything holds that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Of this workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Of this handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// Of this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Whose last failure has this category.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub category: Option<Category>,
    /// Which gave up for this cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Of this group: 16 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub fingerprint: Option<Fingerprint>,
    /// At least this old, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than_ms: Option<u64>,
    /// Less than this old, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_than_ms: Option<u64>,
    /// Whose last message contains this, whatever the case of its letters; at most 200 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// These ones; at most 1,000. A list, or a text with commas.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "ids")]
    #[schema(value_type = Vec<String>)]
    pub ids: Vec<PlacedId>,
}

impl Filter {
    /// Whether every letter is meant.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        if let Some(text) = self.text.as_ref().filter(|text| text.is_empty() || text.len() > TEXT_BYTES_MAX) {
            return Err(format!("text has {} bytes: allowed are 1 to {TEXT_BYTES_MAX}", text.len()));
        }
        if self.ids.len() > IDS_MAX {
            return Err(format!("ids are {}: allowed are at most {IDS_MAX}", self.ids.len()));
        }
        Ok(())
    }

    /// Whether this letter is meant, at `now_ms` of the server.
    pub fn takes(&self, now_ms: u64, id: PlacedId, letter: &DeadLetter) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let age_ms = now_ms.saturating_sub(letter.at_ms);
        let lower = |text: &str| text.to_lowercase();
        fits(&self.workflow, letter.workflow.as_str())
            && fits(&self.handler, letter.handler.as_str())
            && fits(&self.queue, letter.queue.as_str())
            && self.category.is_none_or(|c| c == letter.category)
            && self.cause.is_none_or(|c| c == letter.cause)
            && (self.ids.is_empty() || self.ids.contains(&id))
            && self.older_than_ms.is_none_or(|ms| age_ms >= ms)
            && self.newer_than_ms.is_none_or(|ms| age_ms < ms)
            && self.text.as_ref().is_none_or(|text| lower(letter.message()).contains(&lower(text)))
            && self.fingerprint.is_none_or(|group| letter.group() == Some(group))
    }
}

/// Ids as a list, or as a text with commas.
fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PlacedId>, D::Error> {
    struct Ids;
    impl<'de> de::Visitor<'de> for Ids {
        type Value = Vec<PlacedId>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ids of dead letters, `<partition>-<milliseconds>-<sequence>`")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let read =
                |part: &str| part.trim().parse().map_err(|()| E::invalid_value(de::Unexpected::Str(part), &self));
            text.split(',').filter(|part| !part.trim().is_empty()).map(read).collect()
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some(id) = seq.next_element()? {
                out.push(id);
            }
            Ok(out)
        }
    }
    deserializer.deserialize_any(Ids)
}

/// The letter of a stream entry; none if it cannot be read.
pub fn decode(fields: &Fields) -> Option<DeadLetter> {
    let (field, bytes) = fields.first()?;
    codec::decode(field, bytes).ok()
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::{
        failure::Failure,
        id::{JobId, PartitionId, Reign, RunId, StreamId},
        name::Name,
    };

    use super::*;
    use crate::machine::run::AttemptError;

    fn letter() -> DeadLetter {
        let name = |text| Name::new(text).expect("a legal name");
        let failure = Failure::new(Category::Transient, "Connection REFUSED by 10.0.0.1").with_code("http_503");
        let job = JobId { reign: Reign { counter: 1, random: 2 }, seq: 3, n: 4 };
        let attempt =
            AttemptError { index: 0, attempt: 3, generation: 1, job, worker: None, at_ms: 900, run_ms: 1, failure };
        DeadLetter {
            v: 1,
            run: RunId::new(PartitionId(0), 1, 1),
            workflow: name("orders"),
            version: None,
            step: name("charge"),
            index: 0,
            generation: 1,
            handler: name("http"),
            queue: name("default"),
            cause: Cause::Exhausted,
            category: Category::Transient,
            attempts: vec![attempt],
            input: None,
            at_ms: 1_000,
            fingerprint: None,
            returns: 0,
        }
    }

    #[test]
    fn everything_that_is_said_must_hold() {
        let (letter, id) = (letter(), PlacedId { entry: StreamId { ms: 1_000, seq: 1 }, partition: PartitionId(0) });
        let takes = |json: serde_json::Value| {
            let filter: Filter = serde_json::from_value(json).expect("a filter");
            filter.takes(3_000, id, &letter)
        };
        let group = letter.group().expect("an attempt").to_string();
        for yes in [
            serde_json::json!({}),
            serde_json::json!({"workflow": "orders", "handler": "http", "queue": "default"}),
            serde_json::json!({"category": "transient", "cause": "exhausted"}),
            serde_json::json!({"fingerprint": group}),
            serde_json::json!({"older_than_ms": 2_000, "newer_than_ms": 2_001}),
            serde_json::json!({"text": "connection refused"}),
            serde_json::json!({"ids": ["0-1000-1", "0-7-7"]}),
            serde_json::json!({"ids": "0-7-7,0-1000-1"}),
        ] {
            assert!(takes(yes.clone()), "{yes}");
        }
        for no in [
            serde_json::json!({"workflow": "orders", "handler": "exec"}),
            serde_json::json!({"cause": "poison"}),
            serde_json::json!({"fingerprint": "0000000000000000"}),
            serde_json::json!({"older_than_ms": 2_001}),
            serde_json::json!({"newer_than_ms": 2_000}),
            serde_json::json!({"text": "timed out"}),
            serde_json::json!({"ids": ["1-1000-1"]}),
        ] {
            assert!(!takes(no.clone()), "{no}");
        }
    }

    #[test]
    fn a_filter_is_bounded_and_names_what_it_does_not_know() {
        let error = serde_json::from_value::<Filter>(serde_json::json!({"flow": "x"})).expect_err("unknown");
        assert!(error.to_string().contains("unknown field `flow`"), "{error}");
        let error = serde_json::from_value::<Filter>(serde_json::json!({"ids": ["x"]})).expect_err("no id");
        assert!(error.to_string().contains("<partition>-<milliseconds>-<sequence>"), "{error}");
        let long = Filter { text: Some("x".repeat(201)), ..Filter::default() };
        assert!(long.check().expect_err("too long").contains("allowed are 1 to 200"));
    }
}
