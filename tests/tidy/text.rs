//! Rules about manifests, documents and scripts.

use crate::project::Source;

/// What a crate must not depend on; tests' dependencies count too.
const FORBIDDEN: [(&str, &[&str]); 5] = [
    (
        "protocol/Cargo.toml",
        &["tokio", "redis", "deadpool-redis", "stepfleet-connect", "stepfleet-coordinator", "stepfleet-worker"],
    ),
    ("protocol/connect/Cargo.toml", &["stepfleet-coordinator", "stepfleet-worker"]),
    (
        "protocol/metric/Cargo.toml",
        &["redis", "stepfleet-protocol", "stepfleet-connect", "stepfleet-coordinator", "stepfleet-worker"],
    ),
    ("coordinator/Cargo.toml", &["stepfleet-worker", "stepfleet"]),
    ("worker/Cargo.toml", &["stepfleet-coordinator", "stepfleet"]),
];

/// What belongs to one machine or to one way of reaching a registry.
// In pieces, so that this file does not name them itself.
const MACHINE: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("index.crates", ".io"), concat!("files.python", "hosted")];

/// A crate that depends on what it must not know, or names a version where only the top manifest may.
pub(crate) fn manifest(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    // The drivers of other systems are a workspace of their own, with versions of their own.
    if !source.path.ends_with("/Cargo.toml") || source.path.starts_with("tests/peers/") {
        return problems;
    }
    let forbidden = FORBIDDEN.iter().find(|(path, _)| *path == source.path).map_or(&[][..], |(_, names)| names);
    let mut section = "";
    for (index, line) in source.text.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        let is_entry = line.starts_with(|c: char| c.is_ascii_alphabetic());
        if !section.contains("dependencies") || !is_entry {
            continue;
        }
        let name = line.split([' ', '.', '=']).next().unwrap_or_default();
        if forbidden.contains(&name) {
            problems.push(format!("{}:{} depends on `{name}`, which is another layer", source.path, index + 1));
        }
        if !line.replace(' ', "").contains("workspace=true") {
            problems.push(format!("{}:{} names a version; versions are in the top Cargo.toml", source.path, index + 1));
        }
    }
    problems
}

/// A path of one machine, or the host of a registry.
pub(crate) fn machine_paths(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    if source.is_rule() || source.path == "Cargo.lock" {
        return problems;
    }
    for (index, line) in source.text.lines().enumerate() {
        // A path counts where it begins, so `docs/work/` is no path of a machine.
        let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "-_./}".contains(c));
        for word in MACHINE {
            if line.match_indices(word).any(|(at, _)| !word.starts_with('/') || begins(at)) {
                problems.push(format!("{}:{} names `{word}`", source.path, index + 1));
            }
        }
    }
    problems
}

/// A relative link of a Markdown file to something that does not exist. `exists` takes a path relative to the top folder.
pub(crate) fn links(source: &Source, exists: impl Fn(&str) -> bool) -> Vec<String> {
    if !source.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut problems = Vec::new();
    for (number, line) in outside_blocks(&source.text) {
        for target in targets(line) {
            let file = target.split('#').next().unwrap_or_default();
            let is_elsewhere = file.contains("://") || file.starts_with("mailto:");
            if file.is_empty() || is_elsewhere || exists(&resolve(folder, file)) {
                continue;
            }
            problems.push(format!("{}:{number} links to `{target}`, which does not exist", source.path));
        }
    }
    problems
}

/// A command line in a block of a Markdown file that calls a target or a subcommand that does not exist.
pub(crate) fn commands(
    source: &Source,
    is_target: impl Fn(&str) -> bool,
    is_subcommand: impl Fn(&[&str]) -> bool,
) -> Vec<String> {
    if !source.path.ends_with(".md") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (number, line) in inside_blocks(&source.text) {
        let line = line.trim_start().trim_start_matches("$ ");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("make") => {
                let called = words.take_while(|word| !word.starts_with('#')).filter(|word| is_word(word));
                for target in called.filter(|target| !is_target(target)) {
                    problems.push(format!("{}:{number} calls `make {target}`, which does not exist", source.path));
                }
            }
            Some("stepfleet") => {
                let path: Vec<&str> = words.take_while(|word| is_word(word)).collect();
                if !is_subcommand(&path) {
                    problems.push(format!("{}:{number} calls `{line}`, which does not exist", source.path));
                }
            }
            Some(_) | None => {}
        }
    }
    problems
}

/// The targets of a Makefile.
pub(crate) fn make_targets(makefile: &str) -> Vec<&str> {
    makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, rest)| is_word(name) && !rest.starts_with('='))
        .map(|(name, _)| name)
        .collect()
}

/// The name of a target or subcommand: lower-case letters, digits and hyphens, with a letter first.
fn is_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Numbered lines of Markdown, each with whether it is inside a fenced block.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            inside = !inside;
            return None;
        }
        Some((index + 1, line, inside))
    })
}

fn inside_blocks(text: &str) -> impl Iterator<Item = (usize, &str)> {
    lines(text).filter(|(_, _, inside)| *inside).map(|(number, line, _)| (number, line))
}

fn outside_blocks(text: &str) -> impl Iterator<Item = (usize, &str)> {
    lines(text).filter(|(_, _, inside)| !*inside).map(|(number, line, _)| (number, line))
}

/// The targets of the links in one line: `[text](target)` and `[name]: target`.
fn targets(line: &str) -> Vec<&str> {
    let first_word = |text: &'static str, rest: &str| rest.find(text).unwrap_or(rest.len());
    let mut found = Vec::new();
    for (at, opening) in line.match_indices("](") {
        let rest = &line[at + opening.len()..];
        let inner = &rest[..first_word(")", rest)];
        found.extend(inner.split_whitespace().next());
    }
    if line.starts_with('[')
        && let Some((_, rest)) = line.split_once("]: ")
    {
        found.extend(rest.split_whitespace().next());
    }
    found
}

/// `target` as seen from `folder`, relative to the top folder.
fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> =
        if target.starts_with('/') { Vec::new() } else { folder.split('/').filter(|part| !part.is_empty()).collect() };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            // A link that leaves the project stays visible as one.
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_on_another_layer_or_with_a_version_is_found() {
        let found = |path: &str, text: &str| manifest(&Source::new(path, text)).len();
        assert_eq!(found("worker/Cargo.toml", "[dependencies]\nstepfleet-coordinator.workspace = true\n"), 1);
        assert_eq!(found("coordinator/Cargo.toml", "[dev-dependencies]\nstepfleet-worker = { workspace = true }\n"), 1);
        assert_eq!(found("protocol/Cargo.toml", "[dependencies]\ntokio.workspace = true\n"), 1);
        assert_eq!(found("worker/Cargo.toml", "[dependencies]\nserde = \"1\"\n"), 1);
        assert_eq!(found("worker/Cargo.toml", "[package]\nname = \"a\"\n[dependencies]\nserde.workspace = true\n"), 0);
        assert_eq!(found("Cargo.toml", "[workspace.dependencies]\nserde = \"1\"\n"), 0);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let found = |text: &str| machine_paths(&Source::new("docs/a.md", text)).len();
        for word in MACHINE {
            assert_eq!(found(&format!("see {word}x and\nls \"{word}\"")), 2, "{word}");
        }
        assert_eq!(found("docs/work/plan.md and /tmp/stepfleet"), 0);
    }

    #[test]
    fn a_dead_link_is_found() {
        let exists = |path: &str| path == "docs/a.md" || path == "LICENSE";
        let found = |text: &str| links(&Source::new("docs/b.md", text), exists).len();
        assert_eq!(found("[a](a.md) [b](a.md#part) [l](../LICENSE) [w](https://example.org/x) [h](#here)"), 0);
        assert_eq!(found("[a](c.md) and [l](LICENSE \"title\")"), 2);
        assert_eq!(found("[name]: gone.md"), 1);
        assert_eq!(found("[out](../../a.md)"), 1);
        assert_eq!(found("```\n[a](c.md)\n```"), 0);
    }

    #[test]
    fn a_command_that_does_not_exist_is_found() {
        let is_subcommand = |words: &[&str]| words.starts_with(&["runs"]);
        let found =
            |text: &str| commands(&Source::new("README.md", text), |target| target == "demo", is_subcommand).len();
        assert_eq!(
            found("```sh\nmake demo\n$ make demo SEEDS=3 # make it so\nstepfleet runs start orders --wait\n```"),
            0
        );
        assert_eq!(found("```sh\nmake dmeo\n  stepfleet rnus list\n```"), 2);
        assert_eq!(found("make dmeo"), 0);
    }

    #[test]
    fn the_targets_of_a_makefile_are_found() {
        let makefile = "A := 1\nB ?= 2\n.PHONY: x\ntest-real: setup ## why\n\techo a: b\nhelp:\n";
        assert_eq!(make_targets(makefile), ["test-real", "help"]);
    }
}
