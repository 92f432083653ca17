//! The door for workflow definitions: checked here once, completely, so that nothing behind it meets a broken one.
//!
//! [`check`] reads YAML or JSON and reports every problem with its place; [`Template`] is the compiled `with` of a step;
//! [`schema()`] is the published form of the format. No Redis and no clock (but for the time limit of expressions).

mod difference;
mod fields;
mod graph;
mod policies;
mod report;
mod rules;
mod schema;
mod suggest;
pub mod template;
mod tokens;
mod tree;

#[cfg(test)]
mod tests;

use stepfleet_protocol::{policy::Policies, workflow::Workflow};

pub use difference::policies_difference;
pub use report::{PROBLEMS_MAX, Problem, Report};
pub use schema::{policies_schema, schema, validate_input};
pub use template::{RenderError, RunScope, Scope, Source, Template, TemplateProblem};
pub use tokens::{Role, TOKENS_MAX, TokenEntry};
pub use tree::{ALIAS_BYTES_MAX, DEPTH_MAX, NODES_MAX};

/// Checks a definition in YAML or JSON. Time is linear in its size but for references between far-away steps.
///
/// # Errors
/// Every problem, with line and column.
pub fn check(text: &str) -> Result<Workflow, Report> {
    tree::parse(text).map_err(broken).and_then(|root| rules::read(&root))
}

/// Checks a definition that is already parsed, by the same rules; its problems have paths, but no line and column.
///
/// # Errors
/// Every problem.
pub fn check_value(value: &serde_json::Value) -> Result<Workflow, Report> {
    tree::Node::from_value(value).map_err(broken).and_then(|root| rules::read(&root))
}

/// Checks the fleet's policies, in YAML or JSON.
///
/// # Errors
/// Every problem, with line and column.
pub fn check_policies(text: &str) -> Result<Policies, Report> {
    tree::parse(text).map_err(broken).and_then(|root| policies::read(&root))
}

/// Checks policies that are already parsed, by the same rules; their problems have paths, but no line and column.
///
/// # Errors
/// Every problem.
pub fn check_policies_value(value: &serde_json::Value) -> Result<Policies, Report> {
    tree::Node::from_value(value).map_err(broken).and_then(|root| policies::read(&root))
}

/// Checks a file of API tokens, in YAML or JSON.
///
/// # Errors
/// Every problem, with line and column.
pub fn check_tokens(text: &str) -> Result<Vec<TokenEntry>, Report> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        let complaint = report::Complaint::new("nothing found").allowed("a map with `tokens`");
        return Err(broken((None, complaint)));
    }
    tree::parse(text).map_err(broken).and_then(|root| tokens::read(&root))
}

fn broken((at, complaint): tree::Broken) -> Report {
    let mut report = Report::default();
    report.add(at, String::new(), complaint);
    report
}
