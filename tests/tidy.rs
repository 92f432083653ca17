//! What no compiler checks: layers, sizes, key literals, links, commands in the README.
//!
//! Each rule is a function from sources to problems, in `tidy/rust.rs` (about code) or `tidy/text.rs` (about everything
//! else), with a test on a small bad example, so that a rule that can no longer fail is noticed. The tests here run the
//! rules over the project.

#[path = "tidy/lessons.rs"]
mod lessons;
#[path = "tidy/mutants.rs"]
mod mutants;
#[path = "tidy/project.rs"]
mod project;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/text.rs"]
mod text;

use std::process::{Command, Stdio};

use project::{Source, project};
use stepfleet_tests::binary;

/// Fails with every problem on a line of its own.
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems\n  {}", problems.len(), problems.join("\n  "));
}

/// Runs a rule over every file of the project.
fn every(rule: impl Fn(&Source) -> Vec<String>) {
    assert_none(&project().iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn layers_hold() {
    every(rust::layers);
}

#[test]
fn crates_depend_in_one_direction_and_name_no_versions() {
    every(text::manifest);
}

#[test]
fn files_are_short_and_open_with_their_subject() {
    every(rust::shape);
}

#[test]
fn redis_keys_are_built_in_one_place() {
    every(rust::key_literals);
}

#[test]
fn nothing_sleeps_is_left_undone_or_is_skipped() {
    every(rust::left_undone);
}

#[test]
fn no_machine_is_named() {
    every(text::machine_paths);
}

#[test]
fn every_relative_link_resolves() {
    every(|source| text::links(source, |target| binary::root().join(target).exists()));
}

#[test]
fn every_command_in_the_documents_exists() {
    let sources = project();
    let makefile = sources.iter().find(|source| source.path == "Makefile").expect("there is a Makefile");
    let targets = text::make_targets(&makefile.text);
    every(|source| text::commands(source, |target| targets.contains(&target), stepfleet_knows));
}

#[test]
fn what_has_happened_to_others_is_shown_by_tests_that_exist() {
    assert_none(&lessons::lessons(&project()));
}

#[test]
fn every_deliberate_bug_is_in_the_list_the_code_and_the_documents() {
    assert_none(&mutants::mutants(&project()));
}

/// Whether the built program has the subcommand: `--help` is answered for what exists and is wrong use for what does not.
fn stepfleet_knows(words: &[&str]) -> bool {
    let program = binary::stepfleet().expect("the documents show commands, so the program must be built");
    let mut command = Command::new(program);
    command.args(words).arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("the program can be started").success()
}
