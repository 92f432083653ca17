//! What a user hands over: JSON on the command line, in a file, on stdin; definitions in files.

use std::io::Read;

use serde_json::Value;

use crate::failure::{Exit, Failure};

/// The name that means stdin.
pub(crate) const STDIN: &str = "-";

/// JSON from `JSON`, `@file` or `-`.
///
/// # Errors
/// No such file, or no JSON, with line and column.
pub(crate) fn json(option: &str, given: &str) -> Result<Value, Failure> {
    let (text, place) = match given.strip_prefix('@') {
        Some(path) => (file(path)?, format!("`{path}`")),
        None if given == STDIN => (file(STDIN)?, "stdin".to_owned()),
        None => (given.to_owned(), option.to_owned()),
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("bad JSON in {place}: {error}"))
            .hint(format!("write it as `{option} '{{\"key\": 1}}'`, `{option} @file.json`, or `{option} -` for stdin"))
    })
}

/// The text of a file, or of stdin for `-`.
///
/// # Errors
/// It cannot be read (exit code 3 if it does not exist), or is not UTF-8.
pub(crate) fn file(path: &str) -> Result<String, Failure> {
    let read = if path == STDIN {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let name = if path == STDIN { "stdin" } else { path };
    let bytes = read.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("no file `{name}`")),
        _ => Failure::failed(format!("cannot read `{name}`: {error}")),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::usage(format!("`{name}` is not UTF-8 text: byte {} is wrong", error.utf8_error().valid_up_to() + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_from_the_line_or_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("input.json");
        std::fs::write(&path, "{\"a\":\n 1}").expect("written");
        assert_eq!(json("--input", "{\"a\":1}"), Ok(serde_json::json!({ "a": 1 })));
        assert_eq!(json("--input", &format!("@{}", path.display())), Ok(serde_json::json!({ "a": 1 })));
        std::fs::write(&path, "{\"a\":\n oops}").expect("written");
        let failure = json("--input", &format!("@{}", path.display())).expect_err("no JSON");
        assert!(failure.text.contains("line 2 column"), "{}", failure.text);
        assert_eq!(json("--input", "@gone.json").expect_err("no file").exit(), Exit::NotFound);
        assert_eq!(json("--input", "a=1").expect_err("no JSON").exit(), Exit::Usage);
    }
}
