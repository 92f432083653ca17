//! The page of what has happened to others names tests that show what happens here: each of them exists.

use std::collections::BTreeSet;

use crate::project::Source;

/// The page.
const PAGE: &str = "docs/reliability.md";
/// What the name of such a test begins with.
const PREFIX: &str = concat!("less", "on_");

/// Tests that the page names and that do not exist.
pub(crate) fn lessons(sources: &[Source]) -> Vec<String> {
    let page = sources.iter().filter(|source| source.path == PAGE);
    let told: BTreeSet<&str> = page.flat_map(|page| names(&page.text)).collect();
    let code = sources.iter().filter(|source| source.is_rust() && !source.is_rule());
    let made: BTreeSet<&str> = code.flat_map(|source| source.code().filter_map(|(_, line)| defined(line))).collect();
    told.difference(&made).map(|name| format!("{PAGE} names `{name}`, which is no test")).collect()
}

/// The function that a line defines.
fn defined(line: &str) -> Option<&str> {
    let name = line.split_once("fn ")?.1;
    Some(&name[..name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len())])
}

/// Every name of such a test in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_the_page_names_and_that_does_not_exist_is_found() {
        let page = format!("`cargo test {PREFIX}` | `{PREFIX}1_a` | `{PREFIX}2_b` | `{PREFIX}4_d` |");
        let code = format!("async fn {PREFIX}1_a() {{}}\n// fn {PREFIX}4_d()\nfn {PREFIX}2_b<T>() {{}}\n");
        let sources = [Source::new(PAGE, &page), Source::new("tests/e2e/a.rs", &code)];
        let problems = lessons(&sources);
        assert!(problems.len() == 1 && problems[0].contains("4_d`, which is no test"), "{problems:?}");
    }
}
