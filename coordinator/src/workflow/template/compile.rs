//! Compiling a `with`: every text of it is looked at once, and every fault is met.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Chunk, EXPRESSIONS_MAX, Part, Place, Source, TemplateProblem,
    expression::Expression,
    path::DataPath,
    text::{self, Piece},
};
use crate::workflow::{report::shown, tree::DEPTH_MAX};

#[derive(Default)]
pub(super) struct Compiler {
    pub(super) problems: Vec<TemplateProblem>,
    pub(super) sources: BTreeSet<Source>,
    pub(super) expressions: usize,
    depth: usize,
}

impl Compiler {
    pub(super) fn part(&mut self, with: &Value, place: Place<'_>) -> Part {
        if self.depth > DEPTH_MAX {
            self.problem(place, format!("nested too deeply: allowed are {DEPTH_MAX} levels"));
            return Part::Static(Value::Null);
        }
        self.depth += 1;
        let part = match with {
            Value::Null | Value::Bool(_) | Value::Number(_) => Part::Static(with.clone()),
            Value::String(text) => self.text(text, place),
            Value::Array(items) => {
                let parts: Vec<Part> =
                    items.iter().enumerate().map(|(i, item)| self.part(item, Place::Item(&place, i))).collect();
                if parts.iter().all(Part::is_static) {
                    Part::Static(parts.into_iter().filter_map(Part::into_static).collect())
                } else {
                    Part::List(parts)
                }
            }
            Value::Object(map) => {
                let part = |(key, value): (&String, &Value)| (key.clone(), self.part(value, Place::Key(&place, key)));
                let parts: Vec<(String, Part)> = map.iter().map(part).collect();
                if parts.iter().all(|(_, part)| part.is_static()) {
                    let entry = |(key, part): (String, Part)| Some((key, part.into_static()?));
                    Part::Static(Value::Object(parts.into_iter().filter_map(entry).collect()))
                } else {
                    Part::Map(parts)
                }
            }
        };
        self.depth -= 1;
        part
    }

    pub(super) fn text(&mut self, text: &str, place: Place<'_>) -> Part {
        if !text.contains("${{") {
            return Part::Static(text.into());
        }
        let pieces = match text::split(text) {
            Ok(pieces) => pieces,
            Err(message) => {
                self.problem(place, message);
                return Part::Static(Value::Null);
            }
        };
        if let [Piece::Expression(expression)] = pieces.as_slice() {
            return self.expression(expression, place).map_or(Part::Static(Value::Null), Part::Whole);
        }
        let mut chunks = Vec::with_capacity(pieces.len());
        let mut printed = false;
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => chunks.push(Chunk::Literal(literal.to_owned())),
                Piece::Expression(expression) => {
                    chunks.extend(self.expression(expression, place).map(Chunk::Printed));
                    printed = true;
                }
            }
        }
        if printed {
            return Part::Text(chunks);
        }
        let literal = |chunk: &Chunk| match chunk {
            Chunk::Literal(text) => text.clone(),
            Chunk::Printed(_) => String::new(),
        };
        Part::Static(chunks.iter().map(literal).collect::<String>().into())
    }

    fn expression(&mut self, text: &str, place: Place<'_>) -> Option<Expression> {
        self.expressions += 1;
        if self.expressions > EXPRESSIONS_MAX {
            return None;
        }
        match Expression::compile(text) {
            Ok(expression) => {
                self.sources.extend(expression.paths().iter().filter_map(DataPath::source));
                Some(expression)
            }
            Err(faults) => {
                for fault in faults {
                    self.problem(place, format!("in `{}`: {fault}", shown(text)));
                }
                None
            }
        }
    }

    fn problem(&mut self, place: Place<'_>, message: String) {
        self.problems.push(TemplateProblem { path: place.to_string(), message });
    }
}

impl Part {
    fn is_static(&self) -> bool {
        matches!(self, Part::Static(_))
    }

    fn into_static(self) -> Option<Value> {
        match self {
            Part::Static(value) => Some(value),
            Part::Whole(_) | Part::Text(_) | Part::List(_) | Part::Map(_) => None,
        }
    }
}
