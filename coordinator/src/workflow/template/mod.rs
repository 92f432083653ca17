//! The `with` of a step: any value, in whose texts `${{ }}` holds CEL over `input`, `steps.<name>.output`, `run`, `attempt`.
//!
//! A text that is exactly one expression becomes its value with its type; inside a longer text the value is printed. Keys of
//! maps are never expressions. Compiled once per workflow, rendered once per attempt, in a pool: the time of a render is bounded.

mod compile;
mod evaluate;
mod expression;
mod meter;
mod path;
mod render;
mod stack;
mod text;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde_json::Value;
use stepfleet_protocol::name::Name;

use super::report::shown;
use compile::Compiler;
use expression::{Body, Expression};
pub use expression::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX};
pub use meter::{EXPRESSION_KEPT_BYTES_MAX, EXPRESSION_MS_MAX};
use render::Rendering;

/// Expressions of one `with`.
pub const EXPRESSIONS_MAX: usize = 1_000;
/// Time that the rendering of one `with` may take.
pub const RENDER_MS_MAX: u64 = 1_000;

/// A value that has to be loaded before a template is rendered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The input of the run.
    Input,
    /// The output of a step.
    Output(Name),
}

/// What expressions see.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The input of the run.
    pub input: Arc<Value>,
    /// Outputs of completed steps; at least those among the template's sources.
    pub outputs: BTreeMap<Name, Arc<Value>>,
    /// The run itself.
    pub run: RunScope,
    /// The attempt that the rendering is for, from 1.
    pub attempt: u32,
}

/// `run` in an expression.
#[derive(Debug, Clone)]
pub struct RunScope {
    /// The id of the run.
    pub id: String,
    /// The name of its workflow.
    pub workflow: String,
    /// When it was created, RFC 3339 in UTC.
    pub created_at: String,
}

/// An expression that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("with{path}: {message}")]
pub struct TemplateProblem {
    /// Where in the `with`: `.headers[0]`. Empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// An expression without a value, or a result that is too large. A fault of the data: the same data fails again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("with{path}: {message}")]
pub struct RenderError {
    /// Where in the `with`: `.headers[0]`. Empty for the whole.
    pub path: String,
    /// What is wrong, with the expression. Bounded, whatever the data.
    pub message: String,
}

/// A compiled `with`.
#[derive(Debug, Clone)]
pub struct Template {
    root: Part,
    sources: BTreeSet<Source>,
    whole: Option<Source>,
    expressions: usize,
}

#[derive(Debug, Clone)]
enum Part {
    /// No expression in it, escapes resolved.
    Static(Value),
    Whole(Expression),
    Text(Vec<Chunk>),
    List(Vec<Part>),
    Map(Vec<(String, Part)>),
}

#[derive(Debug, Clone)]
enum Chunk {
    Literal(String),
    Printed(Expression),
}

impl Template {
    /// Compiles a `with`.
    ///
    /// # Errors
    /// Every expression that cannot be compiled.
    pub fn parse(with: &Value) -> Result<Self, Vec<TemplateProblem>> {
        let mut compiler = Compiler::default();
        let root = compiler.part(with, Place::Root);
        if compiler.expressions > EXPRESSIONS_MAX {
            let found = format!("too many expressions: {}, allowed are {EXPRESSIONS_MAX}", compiler.expressions);
            compiler.problems.push(TemplateProblem { path: String::new(), message: found });
        }
        if !compiler.problems.is_empty() {
            return Err(compiler.problems);
        }
        let whole = match &root {
            Part::Whole(Expression { body: Body::Path(path), .. }) if path.keys.is_empty() => path.source(),
            _ => None,
        };
        Ok(Self { root, sources: compiler.sources, whole, expressions: compiler.expressions })
    }

    /// Whether there is no expression at all, so that rendering needs nothing.
    pub fn is_static(&self) -> bool {
        self.expressions == 0
    }

    /// The value that the entire `with` stands for, if it is exactly `${{ input }}` or `${{ steps.x.output }}`: it can be
    /// passed on by reference.
    pub fn whole(&self) -> Option<&Source> {
        self.whole.as_ref()
    }

    /// What has to be in the scope.
    pub fn sources(&self) -> &BTreeSet<Source> {
        &self.sources
    }

    /// The value for a worker, at most 1 MiB (`PAYLOAD_BYTES_MAX`) as JSON. Takes at most [`RENDER_MS_MAX`] and one expression's time.
    ///
    /// # Errors
    /// The first expression that has no value, or that makes the result too large.
    pub fn render(&self, scope: &Scope) -> Result<Value, RenderError> {
        Rendering::new(scope).part(&self.root, Place::Root)
    }
}

/// Looks at one text of a `with`, for the checker: how many expressions, what they need, what is wrong with them.
pub(super) fn inspect(text: &str) -> (usize, BTreeSet<Source>, Vec<String>) {
    let mut compiler = Compiler::default();
    compiler.text(text, Place::Root);
    (compiler.expressions, compiler.sources, compiler.problems.into_iter().map(|p| p.message).collect())
}

/// Where a part is, as a chain up to the root.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Key(above, key) => write!(f, "{above}.{}", shown(key)),
            Place::Item(above, i) => write!(f, "{above}[{i}]"),
        }
    }
}
