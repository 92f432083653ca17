//! Plans in short notation: `a b:a c:a,b | max=5 base=30s`.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use stepfleet_coordinator::machine::plan::Plan;
use stepfleet_protocol::workflow::Workflow;

/// Compiles `steps | settings`. A step is `name:need,need`; `w*250:a` stands for `w0` to `w249`, and a need `w*` for all
/// of them. Settings hold for every step: `max`, `base`, `cap`, `timeout`; `run` is the run's time-out and `fail=suspend`
/// the run's end. `go=a,b` and `skip=a,b` name steps whose failure the run bears, `undo=a,b` those that can be undone, and
/// `start=5s` is `start_within` of all. There is no jitter unless `jitter=full` asks for it.
pub(crate) fn plan(text: &str) -> Arc<Plan> {
    let (steps, settings) = text.split_once('|').unwrap_or((text, ""));
    let mut written = Map::new();
    for word in steps.split_whitespace() {
        let (name, needs) = word.split_once(':').unwrap_or((word, ""));
        let mut all = Vec::new();
        for need in needs.split(',').filter(|n| !n.is_empty()) {
            match need.strip_suffix('*') {
                Some(stem) => all.extend(written.keys().filter(|k| numbered(k, stem)).cloned()),
                None => all.push(need.to_owned()),
            }
        }
        let names = match name.split_once('*') {
            Some((stem, count)) => (0..count.parse::<u32>().expect("a count")).map(|n| format!("{stem}{n}")).collect(),
            None => vec![name.to_owned()],
        };
        for name in names {
            written.insert(name, json!({ "handler": "work", "needs": all }));
        }
    }
    let mut workflow = json!({ "workflow": "w", "steps": written.clone() });
    let (mut retry, mut backoff) = (Map::new(), Map::from_iter([("jitter".to_owned(), json!("none"))]));
    for word in settings.split_whitespace() {
        let (key, value) = word.split_once('=').expect("key=value");
        match key {
            "max" => drop(retry.insert("max_attempts".into(), json!(value.parse::<u32>().expect("a number")))),
            "base" | "cap" | "jitter" => drop(backoff.insert(key.into(), json!(value))),
            "timeout" => workflow["defaults"]["timeout"] = json!(value),
            "run" => workflow["timeout"] = json!(value),
            "fail" => workflow["on_failure"] = json!(value),
            "go" => say(&mut workflow, value, "on_failure", &json!("continue")),
            "skip" => say(&mut workflow, value, "on_failure", &json!("skip_dependents")),
            "undo" => say(&mut workflow, value, "compensate", &json!({ "handler": "undo" })),
            "start" => {
                let all: Vec<String> = written.keys().cloned().collect();
                say(&mut workflow, &all.join(","), "start_within", &json!(value));
            }
            other => panic!("unknown setting `{other}`"),
        }
    }
    retry.insert("backoff".into(), Value::Object(backoff));
    workflow["defaults"]["retry"] = Value::Object(retry);
    let workflow: Workflow = serde_json::from_value(workflow).expect("a legal workflow");
    Arc::new(Plan::compile("hash".into(), &workflow))
}

/// Writes a key into these steps; names that are no steps are left out.
fn say(workflow: &mut Value, steps: &str, key: &str, value: &Value) {
    for name in steps.split(',') {
        if let Some(step) = workflow["steps"].get_mut(name) {
            step[key] = value.clone();
        }
    }
}

fn numbered(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}
