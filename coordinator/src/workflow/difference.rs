//! What is different between two versions of the fleet's policies, for people and for the audit.

use std::collections::BTreeMap;

use serde_json::Value;
use stepfleet_protocol::policy::Policies;

/// One line for each setting that differs, in the order of their paths: `+ path: new`, `- path: old`, `~ path: old -> new`.
pub fn policies_difference(old: &Policies, new: &Policies) -> Vec<String> {
    let [old, new] = [old, new].map(settings);
    let mut lines: BTreeMap<&str, String> = BTreeMap::new();
    for (path, was) in &old {
        let line = match new.get(path) {
            Some(is) if is == was => continue,
            Some(is) => format!("~ {path}: {was} -> {is}"),
            None => format!("- {path}: {was}"),
        };
        lines.insert(path, line);
    }
    for (path, is) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
        lines.insert(path, format!("+ {path}: {is}"));
    }
    lines.into_values().collect()
}

/// Every setting that is written, by its path.
fn settings(policies: &Policies) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let tree = serde_json::to_value(policies).expect("policies have text keys");
    flatten("", &tree, &mut out);
    out
}

fn flatten(path: &str, tree: &Value, out: &mut BTreeMap<String, String>) {
    let Value::Object(map) = tree else {
        let text = tree.as_str().map_or_else(|| tree.to_string(), str::to_owned);
        return drop(out.insert(path.to_owned(), text));
    };
    // An empty map says something only where it is an entry by itself.
    if map.is_empty() && !path.is_empty() {
        out.insert(path.to_owned(), "{}".into());
    }
    for (key, value) in map {
        let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let key = if plain { key.clone() } else { format!("{key:?}") };
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        flatten(&path, value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::check_policies;

    #[test]
    fn the_difference_names_each_setting_with_what_it_was_and_is() {
        let policies = |text| check_policies(text).expect("good policies");
        let old = policies("retry: { max_attempts: 3, notify: true }\ntargets: { 'db.example': { failures: 5 } }");
        let new = policies(
            "retry: { max_attempts: 5, categories: { timeout: { backoff: { base: 2s } } } }\ntargets: { 'db.example': { failures: 5 } }",
        );
        assert_eq!(
            policies_difference(&old, &new),
            ["+ retry.categories.timeout.backoff.base: 2s", "~ retry.max_attempts: 3 -> 5", "- retry.notify: true"]
        );
        assert_eq!(policies_difference(&new, &new), [""; 0]);
        let empty = policies_difference(&old, &Policies::default());
        assert!(empty.contains(&"- targets.\"db.example\".failures: 5".to_owned()), "{empty:?}");
    }
}
