//! The files of the project, as the rules see them.

use std::fs;
use std::path::Path;

use stepfleet_tests::binary;

/// What is not ours: builds, installed tools, version control, local data.
const NOT_OURS: [&str; 6] = ["target", ".tools", ".git", "data", "node_modules", "appendonlydir"];

/// A text file of the project.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the top folder, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    #[cfg(test)]
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the file is a test, or part of the tests crate, as a whole.
    pub(crate) fn is_test(&self) -> bool {
        let mut folders = self.path.split('/').rev();
        let name = folders.next().unwrap_or_default();
        name == "tests.rs"
            || name.ends_with("_tests.rs")
            || folders.any(|folder| folder == "tests" || folder == "benches")
    }

    /// Whether the file is one of these rules, which must name what they forbid.
    pub(crate) fn is_rule(&self) -> bool {
        self.path == "tests/tidy.rs" || self.path.starts_with("tests/tidy/")
    }

    /// The numbered lines of a Rust file without comments.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, without_comment(line)))
    }

    /// The same without the tests at the end; nothing for a file of tests.
    pub(crate) fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.is_test();
        self.code().take_while(move |(_, line)| !is_test && !line.starts_with("#[cfg(test)]"))
    }
}

/// A line up to `//`, unless that is the middle of a URL.
fn without_comment(line: &str) -> &str {
    line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')).map_or(line, |(at, _)| &line[..at])
}

/// Every text file of the project, in the order of their paths.
pub(crate) fn project() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(binary::root(), "", &mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.iter().any(|source| source.path == "Cargo.toml"), "the project was found");
    sources
}

fn collect(folder: &Path, prefix: &str, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of the project can be read") {
        let entry = entry.expect("an entry of the project can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().expect("an entry has a type");
        if NOT_OURS.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), &format!("{path}/"), sources);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            sources.push(Source { path, text });
        }
    }
}

#[test]
fn comments_are_cut_and_urls_are_kept() {
    assert_eq!(without_comment("let a = 1; // tokio::spawn"), "let a = 1; ");
    assert_eq!(without_comment("/// redis::Client"), "");
    assert_eq!(without_comment(r#"let url = "redis://host"; // why"#), r#"let url = "redis://host"; "#);
}

#[test]
fn tests_are_told_from_the_product() {
    assert!(Source::new("coordinator/tests/simulation.rs", "").is_test());
    assert!(Source::new("coordinator/src/machine/tests.rs", "").is_test());
    assert!(!Source::new("coordinator/src/machine/decide.rs", "").is_test());
    let source = Source::new("worker/src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {}\n");
    assert_eq!(source.product_code().collect::<Vec<_>>(), [(1, "fn a() {}")]);
}
