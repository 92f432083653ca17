//! Workflows of many shapes, drawn from the seed.

use std::rc::Rc;

use serde_json::{Map, Value, json};
use stepfleet_protocol::workflow::Workflow;

use super::world::World;

/// The queues that workers serve.
pub(crate) const QUEUES: [&str; 2] = ["default", "slow"];
/// Tries of a step before it gives up, with every category alike.
pub(crate) const ATTEMPTS_MAX: u32 = 3;
/// Steps whose time-out is as long as this may take so long that an outage passes meanwhile.
pub(crate) const LONG_MS: u64 = 90_000;

/// A workflow of some shape.
pub(crate) fn draw(world: &World) -> Rc<Workflow> {
    let shape = world.draw(0..9);
    let needs: Vec<Vec<usize>> = match shape {
        _ if world.chance(0.03) => fan(125),
        0 => vec![vec![]],
        1 => (0..world.draw(2..7) as usize).map(|i| i.checked_sub(1).into_iter().collect()).collect(),
        2 => vec![vec![], vec![0], vec![0], vec![1, 2]],
        3 => fan(world.draw(3..9) as usize),
        4 => ladder(world.draw(2..4) as usize),
        _ => random(world, world.draw(3..9) as usize),
    };
    let mut steps = Map::new();
    for (index, needs) in needs.iter().enumerate() {
        let mut step = step(world, shape);
        step["needs"] = needs.iter().map(|need| format!("s{need}")).collect();
        steps.insert(format!("s{index}"), step);
    }
    let mut whole = json!({ "workflow": format!("shape{shape}"), "steps": steps });
    if world.chance(0.2) {
        // From two minutes on its owner keeps it in mind first.
        let timeout_s = if world.chance(0.3) { world.draw(120..200) } else { world.draw(15..60) };
        whole["timeout"] = json!(format!("{timeout_s}s"));
    }
    if world.chance(0.25) {
        whole["on_failure"] = json!("compensate");
    }
    Rc::new(serde_json::from_value(whole).expect("a legal workflow"))
}

/// One root, many leaves, one end.
fn fan(width: usize) -> Vec<Vec<usize>> {
    let mut needs = vec![vec![]];
    needs.extend((0..width).map(|_| vec![0]));
    needs.push((1..=width).collect());
    needs
}

/// Pairs of steps that need both of the pair before.
fn ladder(rungs: usize) -> Vec<Vec<usize>> {
    (0..rungs * 2).map(|i| if i < 2 { vec![] } else { vec![i / 2 * 2 - 2, i / 2 * 2 - 1] }).collect()
}

fn random(world: &World, count: usize) -> Vec<Vec<usize>> {
    (0..count).map(|i| (0..i).filter(|_| world.chance(0.35)).collect()).collect()
}

fn step(world: &World, shape: u64) -> Value {
    let timeout_s = if world.chance(0.06) { LONG_MS / 1_000 } else { world.draw(4..20) };
    let mut step = json!({
        "handler": "noop",
        "timeout": format!("{timeout_s}s"),
        "retry": { "max_attempts": ATTEMPTS_MAX, "backoff": { "base": "400ms", "cap": "4s" } },
    });
    if shape.is_multiple_of(2) && world.chance(0.6) {
        step["handler"] = json!("pay");
        step["breaker"] = json!("bank");
        if world.chance(0.2) {
            step["fallback"] = json!({ "handler": "other" });
        }
    }
    if world.chance(0.2) {
        step["queue"] = json!(QUEUES[1]);
    }
    if world.chance(0.15) {
        step["priority"] = json!(world.draw(0..10));
    }
    match world.draw(0..20) {
        0 => step["on_failure"] = json!("continue"),
        1 => step["on_failure"] = json!("skip_dependents"),
        2 => step["start_within"] = json!(format!("{}s", world.draw(2..20))),
        3 | 4 => step["compensate"] = json!({ "handler": "undo" }),
        _ => {}
    }
    step
}
