//! What keeps an expression from running away. CEL has no loops without an end, but lists within lists multiply: the crate has no
//! limit of its own, so compiled expressions are rewritten to call the functions of this module (their names cannot be written
//! in CEL) before every turn of a loop and every call, at every sum, and around what a list or map keeps.
//!
//! The meter belongs to the thread, because functions of the crate have no state. Once it is exceeded every further call
//! fails, and the result is thrown away even if the expression swallowed the error (`error || true`).

use std::{cell::Cell, time::Duration};

use cel::{
    Env, ExecutionError,
    common::{
        types::{CelBool, CelBytes, CelList, CelMap, CelString, DYN_TYPE},
        value::{CowVal, Val},
    },
};

/// Time of the processor that one expression may take.
pub const EXPRESSION_MS_MAX: u64 = 50;
/// What an expression may make and keep on its way, in bytes of text with 16 more for each value.
pub const EXPRESSION_KEPT_BYTES_MAX: usize = 16 << 20;

/// Names of the functions, as they stand in rewritten expressions.
pub(super) const TICK: &str = "@tick";
pub(super) const KEEP: &str = "@keep";
pub(super) const ADD: &str = "@add";

thread_local! {
    static DEADLINE: Cell<Option<Duration>> = const { Cell::new(None) };
    static KEPT: Cell<usize> = const { Cell::new(0) };
    static EXCEEDED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs one evaluation under the meter.
///
/// # Errors
/// The limit that was exceeded.
pub(super) fn metered<T>(limit: Duration, evaluate: impl FnOnce() -> T) -> Result<T, &'static str> {
    DEADLINE.set(Some(worked() + limit));
    KEPT.set(0);
    EXCEEDED.set(None);
    let result = evaluate();
    DEADLINE.set(None);
    EXCEEDED.take().map_or(Ok(result), Err)
}

/// How long this thread has been at work. Not the time of day: on a machine that is busy with others, or asleep, a sound
/// expression would run into its limit, and its step would be given up for bad data.
pub(super) fn worked() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map(Duration::from).expect("every system that runs this has the clock of a thread")
}

/// Adds the functions to an environment.
pub(super) fn install(env: &mut Env) {
    let functions: [(&str, usize, cel::common::functions::Function); 3] =
        [(TICK, 0, |_| tick()), (KEEP, 1, keep), (ADD, 2, add)];
    for (name, arguments, function) in functions {
        env.add_overload(name, name, (0..arguments).map(|_| DYN_TYPE).collect(), function)
            .expect("names with `@` are ours");
    }
}

fn exceed(limit: &'static str) -> ExecutionError {
    EXCEEDED.set(Some(limit));
    ExecutionError::function_error("limit", limit)
}

fn tick<'b, 'v>() -> Result<CowVal<'b, 'v>, ExecutionError> {
    if let Some(limit) = EXCEEDED.get() {
        return Err(exceed(limit));
    }
    match DEADLINE.get() {
        Some(deadline) if worked() > deadline => Err(exceed("it takes too long: allowed are 50 ms")),
        _ => Ok(CowVal::owned(CelBool::from(true))),
    }
}

/// Charges for a value that is made or kept.
pub(super) fn charge(bytes: usize) -> Result<(), ExecutionError> {
    KEPT.set(KEPT.get().saturating_add(bytes));
    if KEPT.get() > EXPRESSION_KEPT_BYTES_MAX {
        return Err(exceed("it makes too much: allowed are 16 MiB on the way"));
    }
    Ok(())
}

fn keep<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = arguments.pop().expect("one argument is declared");
    charge(16 + bytes_of(value.as_ref()))?;
    Ok(value)
}

fn add<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [left, right] = arguments.as_slice() else {
        return Err(ExecutionError::invalid_argument_count(2, arguments.len()));
    };
    charge(bytes_of(left.as_ref()).saturating_add(bytes_of(right.as_ref())))?;
    let adder = left.as_adder().ok_or_else(|| {
        let types = [left, right].map(|v| v.get_type().name().to_owned());
        ExecutionError::no_such_overload("_+_", types.to_vec())
    })?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}

/// What a value holds beyond itself. Stops counting when that is too much anyway.
fn bytes_of(value: &dyn Val) -> usize {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        return text.inner().len();
    }
    if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        return bytes.inner().len();
    }
    let mut total = 0;
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        for item in list.inner() {
            total += 16 + bytes_of(item.as_ref());
            if total > EXPRESSION_KEPT_BYTES_MAX {
                break;
            }
        }
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        for (key, item) in map.inner() {
            total += 32 + bytes_of(key.inner()) + bytes_of(item.as_ref());
            if total > EXPRESSION_KEPT_BYTES_MAX {
                break;
            }
        }
    }
    total
}
