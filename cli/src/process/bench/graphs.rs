//! The workflows that are measured: no-op steps in different shapes.

use serde_json::{Map, Value, json};
use stepfleet_protocol::workflow::Workflow;

/// Steps between the first and the last of a fan-out.
const FAN_OUT_WIDTH: usize = 50;

/// A chain of steps.
///
/// # Errors
/// Never, for the handlers that exist.
pub(super) fn chain(steps: usize, handler: &str) -> anyhow::Result<Workflow> {
    let step = |i: usize| {
        let needs: Vec<String> = i.checked_sub(1).map(|i| format!("s{i}")).into_iter().collect();
        (format!("s{i}"), json!({ "handler": handler, "needs": needs }))
    };
    graph("bench", (0..steps).map(step).collect())
}

/// One step, fifty behind it, one behind these.
///
/// # Errors
/// Never.
pub(super) fn fan_out() -> anyhow::Result<Workflow> {
    wide("fan-out", FAN_OUT_WIDTH, 0)
}

/// One step, then a wide level, then a fan-in of all of it, then steps behind that; `steps` in all.
///
/// # Errors
/// Never.
pub(super) fn wide_graph(steps: usize) -> anyhow::Result<Workflow> {
    let width = steps * 8 / 10;
    wide("wide", width, steps.saturating_sub(width + 2))
}

fn wide(name: &str, width: usize, tail: usize) -> anyhow::Result<Workflow> {
    let mut all = Map::new();
    all.insert("first".into(), json!({ "handler": "noop" }));
    let level: Vec<String> = (0..width).map(|i| format!("w{i}")).collect();
    for name in &level {
        all.insert(name.clone(), json!({ "handler": "noop", "needs": ["first"] }));
    }
    all.insert("join".into(), json!({ "handler": "noop", "needs": level }));
    for i in 0..tail {
        all.insert(format!("t{i}"), json!({ "handler": "noop", "needs": ["join"] }));
    }
    graph(name, all)
}

/// One step that sleeps for so long.
///
/// # Errors
/// Never.
pub(super) fn long_job(seconds: u64) -> anyhow::Result<Workflow> {
    let step = json!({ "handler": "sleep", "with": { "duration": format!("{seconds}s") } });
    graph("long", Map::from_iter([("long".to_owned(), step)]))
}

/// One step that is given the whole input of its run.
///
/// # Errors
/// Never.
pub(super) fn with_input(name: &str) -> anyhow::Result<Workflow> {
    let step = json!({ "handler": "noop", "with": "${{ input }}" });
    graph(name, Map::from_iter([("taken".to_owned(), step)]))
}

fn graph(name: &str, steps: Map<String, Value>) -> anyhow::Result<Workflow> {
    Ok(serde_json::from_value(json!({ "workflow": name, "steps": steps }))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graphs_have_as_many_steps_as_they_say() {
        let steps = |graph: anyhow::Result<Workflow>| graph.expect("a workflow").steps.len();
        assert_eq!(steps(chain(10, "noop")), 10);
        assert_eq!(steps(fan_out()), 52);
        assert_eq!(steps(wide_graph(1_000)), 1_000);
    }
}
