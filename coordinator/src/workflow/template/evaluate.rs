//! Evaluating expressions: JSON in, CEL between, JSON out, every size bounded.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use cel::{
    Context, ExecutionError,
    common::{
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
        value::Val,
    },
};
use serde_json::{Number, Value};

use super::{
    Scope,
    expression::{Body, Cel, ENV, Expression, variable},
    meter, stack,
};

/// Levels of a value that an expression may touch.
const VALUE_DEPTH_MAX: usize = 128;
/// Longest message of a failed expression, in bytes.
const MESSAGE_BYTES_MAX: usize = 300;

impl Expression {
    /// The value of the expression; borrowed if it only names a place.
    ///
    /// # Errors
    /// Why there is none. Never longer than a line.
    pub(super) fn evaluate<'s>(&self, scope: &'s Scope, limit: Duration) -> Result<Cow<'s, Value>, String> {
        match &self.body {
            Body::Path(path) => path.look_up(scope),
            Body::Cel(cel) => {
                let limit = limit.min(Duration::from_millis(meter::EXPRESSION_MS_MAX));
                let run = || meter::metered(limit, || run(cel, scope));
                match stack::with_room(cel.is_deep, || catch_unwind(AssertUnwindSafe(run))) {
                    Ok(Ok(result)) => result.map(Cow::Owned),
                    Ok(Err(exceeded)) => Err(exceeded.to_owned()),
                    Err(_) => Err("it cannot be evaluated".to_owned()),
                }
            }
        }
    }
}

fn run(cel: &Cel, scope: &Scope) -> Result<Value, String> {
    let found: Vec<Result<Cow<'_, Value>, String>> = cel.paths.iter().map(|path| path.look_up(scope)).collect();
    let mut context = Context::with_env(Arc::clone(&ENV));
    for (i, value) in found.iter().enumerate() {
        if let Ok(value) = value {
            context.add_variable_as_val(variable(i), to_cel(value, 0)?);
        }
    }
    let result = cel::Value::resolve(&cel.tree, &context).map_err(|error| explain(&error, &found))?;
    to_json(result, 0)
}

/// The crate's message, but with the path for a value that is not there.
fn explain(error: &ExecutionError, found: &[Result<Cow<'_, Value>, String>]) -> String {
    if let ExecutionError::UndeclaredReference(name) = error {
        let index = name.strip_prefix('@').and_then(|i| i.parse::<usize>().ok());
        if let Some(Err(missing)) = index.and_then(|i| found.get(i)) {
            return missing.clone();
        }
    }
    let mut message = Bounded(String::new());
    // Errors carry the values they met, which may be huge: the message is cut while it is written.
    let _ = write!(message, "{error}");
    message.0
}

/// A text that takes no more than [`MESSAGE_BYTES_MAX`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            if self.0.len() >= MESSAGE_BYTES_MAX {
                self.0.push('…');
                return Err(std::fmt::Error);
            }
            self.0.push(if c.is_control() { ' ' } else { c });
        }
        Ok(())
    }
}

fn too_deep() -> String {
    format!("a value is nested too deeply: allowed are {VALUE_DEPTH_MAX} levels")
}

fn to_cel<'v>(value: &'v Value, depth: usize) -> Result<Box<dyn Val + 'v>, String> {
    if depth > VALUE_DEPTH_MAX {
        return Err(too_deep());
    }
    meter::charge(16).map_err(|e| e.to_string())?;
    Ok(match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(b) => Box::new(CelBool::from(*b)),
        Value::Number(n) => number(n),
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(items) => {
            let items = items.iter().map(|item| to_cel(item, depth + 1)).collect::<Result<Vec<_>, _>>()?;
            Box::new(CelList::from(items))
        }
        Value::Object(map) => {
            let mut entries: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::with_capacity(map.len());
            for (key, item) in map {
                entries.insert(CelMapKey::from(key.as_str()), to_cel(item, depth + 1)?);
            }
            Box::new(CelMap::from(entries))
        }
    })
}

/// Whole numbers are CEL's `int`, so that `input.n + 1` works, and `uint` only beyond its range.
fn number<'v>(n: &Number) -> Box<dyn Val + 'v> {
    match (n.as_i64(), n.as_u64()) {
        (Some(n), _) => Box::new(CelInt::from(n)),
        (None, Some(n)) => Box::new(CelUInt::from(n)),
        (None, None) => Box::new(CelDouble::from(n.as_f64().unwrap_or(f64::NAN))),
    }
}

/// Keys in order: CEL's maps have none, and a result should not change from one evaluation to the next.
fn to_json(value: cel::Value, depth: usize) -> Result<Value, String> {
    if depth > VALUE_DEPTH_MAX {
        return Err(too_deep());
    }
    Ok(match value {
        cel::Value::Null => Value::Null,
        cel::Value::Bool(b) => b.into(),
        cel::Value::Int(i) => i.into(),
        cel::Value::UInt(i) => i.into(),
        cel::Value::Float(f) => {
            Number::from_f64(f).map(Value::Number).ok_or("the result is not a number that JSON can hold")?
        }
        cel::Value::String(text) => Value::String(Arc::unwrap_or_clone(text)),
        cel::Value::Timestamp(time) => time.to_rfc3339().into(),
        cel::Value::List(items) => {
            let items = Arc::unwrap_or_clone(items);
            Value::Array(items.into_iter().map(|item| to_json(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        cel::Value::Map(map) => {
            let mut entries: Vec<(String, cel::Value)> =
                Arc::unwrap_or_clone(map.map).into_iter().map(|(key, item)| (key.to_string(), item)).collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            let mut object = serde_json::Map::with_capacity(entries.len());
            for (key, item) in entries {
                object.insert(key, to_json(item, depth + 1)?);
            }
            Value::Object(object)
        }
        cel::Value::Bytes(_)
        | cel::Value::Duration(_)
        | cel::Value::Function(..)
        | cel::Value::Opaque(_)
        | cel::Value::Struct(_) => {
            return Err(format!(
                "the result is of type `{:?}`: allowed is what JSON can hold; hint: `string(…)`",
                value.type_of()
            ));
        }
    })
}
