//! The deliberate bugs of the simulation: those of the list, those of the code and those of the page are the same.

use std::collections::BTreeSet;

use crate::project::Source;

const LIST: &str = "coordinator/tests/simulation/mutants/list.rs";
const PAGE: &str = "docs/reliability.md";
/// Where their table is in the page.
const TABLE: [&str; 2] = ["<!-- mutants:", "<!-- /mutants -->"];
/// What a call site, and a line of the list, begin a name with.
const CALL: &str = concat!("mut", "ant(\"");
const LINE: &str = concat!("Mut", "ant(\"");

/// Names that are not in all three places.
pub(crate) fn mutants(sources: &[Source]) -> Vec<String> {
    let one = |path: &str| sources.iter().find(|source| source.path == path).map_or("", |source| &source.text);
    let listed = names(one(LIST), LINE);
    let code = sources.iter().filter(|source| source.is_rust() && !source.is_rule() && source.path != LIST);
    let called: BTreeSet<&str> =
        code.flat_map(|source| source.code().flat_map(|(_, line)| names(line, CALL))).collect();
    let table =
        one(PAGE).split_once(TABLE[0]).and_then(|(_, rest)| rest.split_once(TABLE[1])).map_or("", |(table, _)| table);
    let told: BTreeSet<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let missing = |what: &str, of: &BTreeSet<&str>, others: &BTreeSet<&str>| -> Vec<String> {
        others.difference(of).map(|name| format!("the deliberate bug `{name}` is not in {what}")).collect()
    };
    let mut problems = missing(LIST, &listed, &called);
    problems.extend(missing("the code", &called, &listed));
    problems.extend(missing(PAGE, &told, &listed));
    problems.extend(missing(LIST, &listed, &told));
    problems.sort();
    problems.dedup();
    problems
}

/// What stands in quotes behind `before`.
fn names<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    text.match_indices(before).filter_map(|(at, found)| text[at + found.len()..].split('"').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_that_is_missing_somewhere_is_found() {
        let list = format!("{LINE}a\", 1),\n{LINE}b\", 2),\n");
        let page = format!("{} -->\n| `a` | 1 |\n| `d` | 1 |\n{}", TABLE[0], TABLE[1]);
        let code = format!("if {CALL}a\") {{}}\nif {CALL}c\") {{}}\n");
        let sources = [Source::new(LIST, &list), Source::new(PAGE, &page), Source::new("coordinator/src/x.rs", &code)];
        let problems = mutants(&sources).join("; ");
        for what in
            ["`b` is not in the code", "`b` is not in docs", "`c` is not in coordinator", "`d` is not in coordinator"]
        {
            assert!(problems.contains(what), "{what}: {problems}");
        }
        assert!(!problems.contains("`a`"), "{problems}");
    }
}
