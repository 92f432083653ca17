//! Rendering a compiled `with`: values in, one value out, its size and time bounded.

use std::{borrow::Cow, time::Duration};

use serde_json::{Map, Value};
use stepfleet_protocol::limits::PAYLOAD_BYTES_MAX;

use super::{Chunk, Part, Place, RENDER_MS_MAX, RenderError, Scope, expression::Expression, meter::worked};
use crate::workflow::report::shown;

/// One rendering: what it may still take.
pub(super) struct Rendering<'s> {
    scope: &'s Scope,
    /// Up to this time of the thread; a rendering does not change threads.
    until: Duration,
    bytes_left: usize,
}

impl<'s> Rendering<'s> {
    pub(super) fn new(scope: &'s Scope) -> Self {
        let until = worked() + Duration::from_millis(RENDER_MS_MAX);
        Self { scope, until, bytes_left: PAYLOAD_BYTES_MAX }
    }

    pub(super) fn part(&mut self, part: &Part, place: Place<'_>) -> Result<Value, RenderError> {
        match part {
            Part::Static(value) => {
                self.take(value, place)?;
                Ok(value.clone())
            }
            Part::Whole(expression) => {
                let value = self.evaluate(expression, place)?;
                self.take(&value, place)?;
                Ok(value.into_owned())
            }
            Part::Text(chunks) => self.text(chunks, place),
            Part::List(parts) => {
                self.spend(2 + parts.len(), place)?;
                parts.iter().enumerate().map(|(i, part)| self.part(part, Place::Item(&place, i))).collect()
            }
            Part::Map(parts) => {
                let mut map = Map::with_capacity(parts.len());
                self.spend(2, place)?;
                for (key, part) in parts {
                    self.spend(key.len() + 4, place)?;
                    map.insert(key.clone(), self.part(part, Place::Key(&place, key))?);
                }
                Ok(Value::Object(map))
            }
        }
    }

    fn text(&mut self, chunks: &[Chunk], place: Place<'_>) -> Result<Value, RenderError> {
        let mut text = String::new();
        self.spend(2, place)?;
        for chunk in chunks {
            let before = text.len();
            match chunk {
                Chunk::Literal(literal) => text.push_str(literal),
                Chunk::Printed(expression) => match &*self.evaluate(expression, place)? {
                    Value::Null => {}
                    Value::String(value) => text.push_str(value),
                    value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                        text.push_str(&value.to_string());
                    }
                },
            }
            self.spend(escaped_bytes(&text[before..]), place)?;
        }
        Ok(Value::String(text))
    }

    fn evaluate(&self, expression: &Expression, place: Place<'_>) -> Result<Cow<'s, Value>, RenderError> {
        let left = self.until.saturating_sub(worked());
        let fault = |message: &str| RenderError {
            path: place.to_string(),
            message: format!("`${{{{ {} }}}}`: {message}", shown(&expression.text)),
        };
        if left.is_zero() {
            return Err(fault("rendering takes too long: allowed is 1 s for one step"));
        }
        expression.evaluate(self.scope, left).map_err(|message| fault(&message))
    }

    fn take(&mut self, value: &Value, place: Place<'_>) -> Result<(), RenderError> {
        match value {
            Value::Null | Value::Bool(_) => self.spend(5, place),
            Value::Number(n) => self.spend(n.to_string().len(), place),
            Value::String(text) => self.spend(2 + escaped_bytes(text), place),
            Value::Array(items) => {
                self.spend(2 + items.len(), place)?;
                items.iter().try_for_each(|item| self.take(item, place))
            }
            Value::Object(map) => {
                self.spend(2, place)?;
                map.iter().try_for_each(|(key, item)| {
                    self.spend(4 + escaped_bytes(key), place)?;
                    self.take(item, place)
                })
            }
        }
    }

    fn spend(&mut self, bytes: usize, place: Place<'_>) -> Result<(), RenderError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| RenderError {
            path: place.to_string(),
            message: format!("the result is too large: allowed are {PAYLOAD_BYTES_MAX} bytes"),
        })?;
        Ok(())
    }
}

/// What a text takes in JSON, without its quotes.
fn escaped_bytes(text: &str) -> usize {
    text.bytes()
        .map(|b| match b {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
            0..=31 => 6,
            _ => 1,
        })
        .sum()
}
