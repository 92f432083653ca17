//! Changes of an input, as options: `--input` and `--set` become one JSON merge patch.

use clap::Args;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::input;

/// How the input of a step is changed.
#[derive(Debug, Default, Args)]
pub(crate) struct Patch {
    /// Change the input of the step: a JSON merge patch (RFC 7386), as `JSON`, `@file`, or `-`. What it does not name stays, `null`
    /// takes away.
    #[arg(short, long, value_name = "JSON")]
    input: Option<String>,
    /// Change one place of the input: `customer.zip=12345`. The value is JSON, or else a text; `null` takes away. May be repeated,
    /// and comes on top of `--input`.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

impl Patch {
    /// Whether something is changed.
    pub(crate) fn is_said(&self) -> bool {
        self.input.is_some() || !self.set.is_empty()
    }

    /// The merge patch; none if nothing is changed.
    ///
    /// # Errors
    /// What was found, and what is allowed.
    pub(crate) fn read(&self) -> Result<Option<Value>, Failure> {
        if !self.is_said() {
            return Ok(None);
        }
        let mut patch = match &self.input {
            Some(given) => input::json("--input", given)?,
            None => Value::Object(Map::new()),
        };
        if !patch.is_object() {
            let text = format!("--input is `{patch}`: allowed is a JSON object, which is merged into the step's input");
            return Err(Failure::usage(text).hint("give one dead letter a wholly new input with `--whole-input`"));
        }
        for given in &self.set {
            let bad = || {
                let text = format!("--set is `{given}`: allowed is `path=value`, with a path such as `customer.zip`");
                Failure::usage(text).hint("use --input for names with dots or `=`")
            };
            let (path, value) = given.split_once('=').ok_or_else(bad)?;
            if path.split('.').any(str::is_empty) {
                return Err(bad());
            }
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            set(&mut patch, path, value);
        }
        Ok(Some(patch))
    }
}

fn set(patch: &mut Value, path: &str, value: Value) {
    let mut place = patch;
    for name in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        // Just made one if it was none.
        let Value::Object(members) = place else { return };
        place = members.entry(name).or_insert(Value::Null);
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(input: Option<&str>, sets: &[&str]) -> Result<Option<Value>, Failure> {
        Patch { input: input.map(Into::into), set: sets.iter().map(|s| (*s).to_owned()).collect() }.read()
    }

    #[test]
    fn input_and_sets_become_one_patch() {
        assert_eq!(read(None, &[]), Ok(None));
        let all = read(Some(r#"{"a": {"b": 1}, "c": 2}"#), &["a.d=x y", "c=null", "e.f.g=[1]", "h=1=2"]);
        let want = json!({"a": {"b": 1, "d": "x y"}, "c": null, "e": {"f": {"g": [1]}}, "h": "1=2"});
        assert_eq!(all, Ok(Some(want)));
    }

    #[test]
    fn a_patch_that_is_none_is_named() {
        let text = |failure: Result<Option<Value>, Failure>| failure.expect_err("it is none").text;
        assert!(text(read(Some("[1]"), &[])).contains("--input is `[1]`: allowed is a JSON object"));
        for bad in ["a", "=1", "a..b=1", ".a=1"] {
            assert!(text(read(None, &[bad])).contains(&format!("--set is `{bad}`")), "{bad}");
        }
    }
}
