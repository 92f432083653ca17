//! Paths into the data of a run: `input.a.b`, `steps.x.output.items[0]`. They are looked up in place, so that an expression
//! which is a path, most are, costs no more than the value it names.

use std::{borrow::Cow, fmt};

use serde_json::Value;
use stepfleet_protocol::name::Name;

use super::{Scope, Source};
use crate::workflow::{report::shown, suggest::did_you_mean};

const ROOTS: [&str; 4] = ["input", "steps", "run", "attempt"];
const RUN_FIELDS: [&str; 3] = ["id", "workflow", "created_at"];
/// Words of CEL that cannot be names. CEL refuses them with a better message.
const RESERVED: [&str; 4] = ["true", "false", "null", "in"];

/// Where a path begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Root {
    Input,
    Output(Name),
    Run,
    Attempt,
}

/// One step into a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Field(String),
    Item(usize),
}

/// A place in the data of a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DataPath {
    pub(super) root: Root,
    pub(super) keys: Vec<Key>,
}

impl DataPath {
    /// From the first name and what follows it.
    ///
    /// # Errors
    /// Why no data is there.
    pub(super) fn new(first: &str, mut keys: Vec<Key>) -> Result<Self, String> {
        let root = match first {
            "input" => Root::Input,
            "attempt" => Root::Attempt,
            "run" => {
                if let Some(Key::Field(field)) =
                    keys.first().filter(|k| !matches!(k, Key::Field(f) if RUN_FIELDS.contains(&f.as_str())))
                {
                    return Err(format!(
                        "unknown `run.{}`: allowed is `run.id`, `run.workflow`, `run.created_at`",
                        shown(field)
                    ));
                }
                Root::Run
            }
            "steps" => {
                let name = match keys.as_slice() {
                    [Key::Field(name), Key::Field(output), ..] if output == "output" => Name::new(name).ok(),
                    _ => None,
                };
                let Some(name) = name else {
                    return Err("`steps` not followed by a step and `output`: allowed is `steps.fetch.output`, or \
                                `steps[\"a-b\"].output` for a name with `-` or `.`"
                        .to_owned());
                };
                keys.drain(..2);
                Root::Output(name)
            }
            other => {
                let hint = did_you_mean(other, ROOTS.into_iter()).map(|h| format!("; hint: {h}")).unwrap_or_default();
                return Err(format!(
                    "unknown name `{}`: allowed is `input`, `steps`, `run`, `attempt`{hint}",
                    shown(other)
                ));
            }
        };
        Ok(Self { root, keys })
    }

    /// Reads a text that is nothing but a path, without CEL. None if it is, or may be, anything else.
    pub(super) fn read(text: &str) -> Option<Result<Self, String>> {
        let (first, mut rest) = ident(text)?;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (field, after) = ident(after)?;
                keys.push(Key::Field(field.to_owned()));
                rest = after;
                continue;
            }
            let (inside, after) = rest.strip_prefix('[')?.split_once(']')?;
            keys.push(item(inside)?);
            rest = after;
        }
        Some(Self::new(first, keys))
    }

    /// What has to be loaded to look it up.
    pub(super) fn source(&self) -> Option<Source> {
        match &self.root {
            Root::Input => Some(Source::Input),
            Root::Output(name) => Some(Source::Output(name.clone())),
            Root::Run | Root::Attempt => None,
        }
    }

    /// The value there.
    ///
    /// # Errors
    /// The part of the path that is not there.
    pub(super) fn look_up<'s>(&self, scope: &'s Scope) -> Result<Cow<'s, Value>, String> {
        match &self.root {
            Root::Input => self.descend(&scope.input).map(Cow::Borrowed),
            Root::Output(name) => {
                let output = scope.outputs.get(name).ok_or_else(|| format!("step `{name}` has no output"))?;
                self.descend(output).map(Cow::Borrowed)
            }
            Root::Run => {
                let run = &scope.run;
                let run = serde_json::json!({ "id": run.id, "workflow": run.workflow, "created_at": run.created_at });
                self.descend(&run).cloned().map(Cow::Owned)
            }
            Root::Attempt => self.descend(&scope.attempt.into()).cloned().map(Cow::Owned),
        }
    }

    fn descend<'v>(&self, mut value: &'v Value) -> Result<&'v Value, String> {
        for (depth, key) in self.keys.iter().enumerate() {
            let here = || Self { root: self.root.clone(), keys: self.keys[..depth].to_vec() };
            let next = match (key, value) {
                (Key::Field(field), Value::Object(map)) => map.get(field),
                (Key::Item(i), Value::Array(items)) => items.get(*i),
                (Key::Field(field), _) => {
                    return Err(format!("`{}` is {}, which has no field `{}`", here(), kind(value), shown(field)));
                }
                (Key::Item(_), _) => return Err(format!("`{}` is {}, not a list", here(), kind(value))),
            };
            value = next.ok_or_else(|| match key {
                Key::Field(field) => format!("`{}` has no field `{}`", here(), shown(field)),
                Key::Item(i) => format!("`{}` has no item {i}", here()),
            })?;
        }
        Ok(value)
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |k: &str| ident(k).is_some_and(|(_, rest)| rest.is_empty());
        match &self.root {
            Root::Input => f.write_str("input")?,
            Root::Output(name) if plain(name.as_str()) => write!(f, "steps.{name}.output")?,
            Root::Output(name) => write!(f, "steps[\"{name}\"].output")?,
            Root::Run => f.write_str("run")?,
            Root::Attempt => f.write_str("attempt")?,
        }
        for key in &self.keys {
            match key {
                Key::Field(field) if plain(field) => write!(f, ".{field}")?,
                Key::Field(field) => write!(f, "[\"{}\"]", shown(field))?,
                Key::Item(i) => write!(f, "[{i}]")?,
            }
        }
        Ok(())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn ident(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (name, rest) = text.split_at(end);
    let legal = name.bytes().next().is_some_and(|b| !b.is_ascii_digit()) && !RESERVED.contains(&name);
    legal.then_some((name, rest))
}

/// What stands in brackets: a whole number, or a text without quotes and escapes in it.
fn item(inside: &str) -> Option<Key> {
    if !inside.is_empty() && inside.len() < 10 && inside.bytes().all(|b| b.is_ascii_digit()) {
        // CEL would not take a leading zero for what it looks like.
        return if inside.len() > 1 && inside.starts_with('0') { None } else { inside.parse().ok().map(Key::Item) };
    }
    let quote = inside.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let text = inside[1..].strip_suffix(quote)?;
    let plain = !text.contains(['"', '\'', '\\', '\n', '\r']);
    plain.then(|| Key::Field(text.to_owned()))
}
