//! How an operator's patch changes the input of a step: JSON merge patch, RFC 7386.

use serde_json::{Map, Value};
use stepfleet_protocol::{codec, limits::PAYLOAD_BYTES_MAX};

/// Why the input of a letter without one cannot be patched.
pub const UNKNOWN: &str = "the input that its step was given is not known, so there is nothing to patch";

/// Checks a patch.
///
/// # Errors
/// What was found and what is allowed.
pub fn check(patch: &Value, bytes_max: usize) -> Result<(), String> {
    if !patch.is_object() {
        let found = match patch {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        return Err(format!("patch is {found}: allowed is a JSON object, merged into the input as RFC 7386 says"));
    }
    let bytes = codec::pack(patch).len();
    if bytes > bytes_max {
        return Err(format!("patch has {bytes} bytes: allowed are at most {bytes_max}"));
    }
    Ok(())
}

/// The input that `patch` makes of `old`, packed. No input counts as an empty object.
///
/// # Errors
/// The old one cannot be read, or the new one is too large.
pub fn apply(old: Option<&[u8]>, patch: &Value) -> Result<Vec<u8>, String> {
    let mut value = match old {
        Some(bytes) => {
            codec::unpack(bytes).map_err(|_| "the input that its step was given cannot be read".to_owned())?
        }
        None => Value::Null,
    };
    merge(&mut value, patch);
    let bytes = codec::pack(&value);
    if bytes.len() > PAYLOAD_BYTES_MAX {
        let found = bytes.len();
        return Err(format!("the patched input has {found} bytes: allowed are at most {PAYLOAD_BYTES_MAX}"));
    }
    Ok(bytes)
}

/// Merges as RFC 7386 says: objects member by member, `null` takes a member away, anything else replaces what was there.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in patch {
        if change.is_null() {
            members.shift_remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7386, appendix A, whose patch is an object.
    #[test]
    fn a_patch_merges_as_the_standard_says() {
        for (old, patch, new) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let made = apply(Some(&codec::pack(&old)), &patch).expect("it is small");
            assert_eq!(codec::unpack::<Value>(&made).expect("ours"), new, "{old} {patch}");
        }
        let made = apply(None, &json!({"a": 1})).expect("it is small");
        assert_eq!(codec::unpack::<Value>(&made).expect("ours"), json!({"a": 1}), "no input is an empty object");
    }

    #[test]
    fn a_patch_is_a_small_object_and_what_it_makes_is_bounded() {
        assert_eq!(check(&json!({"a": 1}), 10), Ok(()));
        assert!(check(&json!([1]), 10).expect_err("a list").contains("patch is a list: allowed is a JSON object"));
        assert!(check(&json!({"a": "x".repeat(20)}), 10).expect_err("large").contains("allowed are at most 10"));
        let large = json!({"a": "x".repeat(PAYLOAD_BYTES_MAX)});
        assert!(apply(None, &large).expect_err("large").contains("the patched input has"));
    }
}
