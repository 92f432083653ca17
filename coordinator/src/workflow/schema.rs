//! JSON Schemas: that of the format itself, and those with which workflows check the input of their runs.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use stepfleet_protocol::{policy::Policies, workflow::Workflow};

use super::report::shown;

/// Problems of one input that are named.
const INPUT_PROBLEMS_MAX: usize = 20;
/// Longest text of one such problem, in characters.
const PROBLEM_CHARS_MAX: usize = 300;

/// The JSON Schema (draft 2020-12) of the workflow format, generated from the types. What the checker accepts, it accepts;
/// what no schema can say (cycles, unknown steps, expressions) only the checker refuses.
pub fn schema() -> Value {
    titled::<Workflow>("Stepfleet workflow")
}

/// The JSON Schema of the fleet's policies. What the checker accepts, it accepts.
pub fn policies_schema() -> Value {
    titled::<Policies>("Stepfleet policies")
}

fn titled<T: schemars::JsonSchema>(title: &str) -> Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema.into()
}

/// Patterns run on an engine whose time is linear in the text, and nothing is fetched from elsewhere.
fn validator(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(1 << 20))
        .build(schema)
        .map_err(|e| cut(&e.to_string()))
}

/// Whether inputs can be checked with it.
///
/// # Errors
/// Why not.
pub(super) fn check_schema(schema: &Value) -> Result<(), String> {
    validator(schema).map(drop)
}

/// Checks the input of a run against the schema of its workflow. Null stands for an input that was not given.
///
/// # Errors
/// What is wrong with the input, each problem with its place (`/order/id: "x" is not of type "integer"`), at most 20. A schema that cannot
/// be used is one problem too, though the checker lets none through.
pub fn validate_input(schema: &Value, input: &Value) -> Result<(), Vec<String>> {
    let validator = validator(schema).map_err(|e| vec![format!("the workflow's input schema cannot be used: {e}")])?;
    let problem = |e: jsonschema::ValidationError<'_>| {
        let place = e.instance_path().to_string();
        let text = cut(&e.to_string());
        if place.is_empty() { text } else { format!("{}: {text}", shown(&place)) }
    };
    let problems: Vec<String> = validator.iter_errors(input).take(INPUT_PROBLEMS_MAX).map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn cut(text: &str) -> String {
    let mut out: String = text.chars().take(PROBLEM_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}
