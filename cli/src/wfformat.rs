//! Import of recorded workflows: a WfCommons WfFormat 1.5 graph becomes a workflow of `sleep` steps with the same shape.
//!
//! What the tasks did is not imported, only who waited for whom and for how long each ran. Edges may be written as `parents`,
//! as `children`, or both; they are united.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use stepfleet_coordinator::workflow::check_value;
use stepfleet_protocol::{
    duration::Millis,
    limits::NAME_BYTES_MAX,
    name::Name,
    workflow::{Defaults, OnFailure, RUN_TIMEOUT, STEP_TIMEOUT, Step, Steps, Workflow},
};

#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    name: Option<String>,
    workflow: Graph,
}

#[derive(Deserialize)]
struct Graph {
    specification: Specification,
    #[serde(default)]
    execution: Execution,
}

#[derive(Deserialize)]
struct Specification {
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: String,
    #[serde(default)]
    parents: Vec<String>,
    #[serde(default)]
    children: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Execution {
    #[serde(default)]
    tasks: Vec<Executed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Executed {
    id: String,
    runtime_in_seconds: f64,
}

/// The workflow of a WfFormat instance: one `sleep` of runtime / `time_scale` per task, rounded to milliseconds; a task without a
/// recorded runtime sleeps for nothing. Names are made legal and unique; time-outs grow with the sleeps.
///
/// # Errors
/// Text that is not WfFormat, an edge to a task that does not exist, a cycle, a time scale or runtime that is not a positive number.
pub(crate) fn workflow_from_wfformat(json: &str, time_scale: f64) -> anyhow::Result<Workflow> {
    ensure!(time_scale.is_finite() && time_scale > 0.0, "bad time scale `{time_scale}`: allowed is a number above 0");
    let instance: Instance = serde_json::from_str(json).context("not a WfFormat instance")?;
    let tasks = &instance.workflow.specification.tasks;
    let index: HashMap<&str, usize> = tasks.iter().enumerate().map(|(i, task)| (task.id.as_str(), i)).collect();
    ensure!(index.len() == tasks.len(), "two tasks have the same id");
    let names = names(tasks);
    let needs = needs(tasks, &index)?;
    let mut runtimes = HashMap::new();
    for task in &instance.workflow.execution.tasks {
        runtimes.insert(task.id.as_str(), scaled(task, time_scale)?);
    }
    let mut total = Millis(0);
    let mut steps = Steps::with_capacity(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        let sleep = runtimes.get(task.id.as_str()).copied().unwrap_or_default();
        total = Millis(total.0.saturating_add(sleep.0));
        let timeout = Millis(sleep.0.saturating_mul(2));
        let step = Step {
            needs: needs[i].iter().map(|need| names[*need].clone()).collect(),
            timeout: (timeout > STEP_TIMEOUT).then_some(timeout),
            with: Some(json!({ "duration": format!("{}ms", sleep.0) })),
            ..Step::new(Name::new("sleep").expect("a legal name"))
        };
        steps.insert(names[i].clone(), step);
    }
    let workflow = Workflow {
        workflow: legal(instance.name.as_deref().unwrap_or("imported"), "imported"),
        description: None,
        defaults: Defaults::default(),
        timeout: RUN_TIMEOUT.max(Millis(total.0.saturating_mul(2))),
        on_failure: OnFailure::Fail,
        input: None,
        steps,
    };
    Ok(check_value(&serde_json::to_value(&workflow)?)?)
}

fn scaled(task: &Executed, time_scale: f64) -> anyhow::Result<Millis> {
    let ms = (task.runtime_in_seconds * 1_000.0 / time_scale).round();
    // Ten years over two, because time-outs are twice as long.
    if !(0.0..1.5e11).contains(&ms) {
        bail!("task `{}` has a bad runtime: {} s with time scale {time_scale}", task.id, task.runtime_in_seconds);
    }
    Ok(Millis(ms as u64))
}

/// The tasks that each task needs, from both ways of writing an edge.
fn needs(tasks: &[Task], index: &HashMap<&str, usize>) -> anyhow::Result<Vec<BTreeSet<usize>>> {
    let find = |id: &str, from: &Task| {
        index.get(id).copied().with_context(|| format!("task `{}` refers to an unknown task `{id}`", from.id))
    };
    let mut needs = vec![BTreeSet::new(); tasks.len()];
    for (i, task) in tasks.iter().enumerate() {
        for parent in &task.parents {
            needs[i].insert(find(parent, task)?);
        }
        for child in &task.children {
            needs[find(child, task)?].insert(i);
        }
    }
    Ok(needs)
}

/// One name per task. What is too long loses its beginning, because the end tells tasks apart.
fn names(tasks: &[Task]) -> Vec<Name> {
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(tasks.len());
    for task in tasks {
        let mut name = legal(&task.id, "task");
        let mut copy = 2;
        while !taken.insert(name.clone()) {
            name = legal(&format!("{}-{copy}", task.id), "task");
            copy += 1;
        }
        names.push(name);
    }
    names
}

fn legal(text: &str, otherwise: &str) -> Name {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' };
    let text: String = text.chars().map(plain).collect();
    let tail = &text[text.len().saturating_sub(NAME_BYTES_MAX)..];
    let tail = tail.trim_start_matches(['_', '-', '.']);
    Name::new(if tail.is_empty() { otherwise } else { tail }).expect("only legal characters are left")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(tasks: serde_json::Value) -> String {
        json!({
            "name": "a graph", "schemaVersion": "1.5",
            "workflow": {
                "specification": { "tasks": tasks, "files": [] },
                "execution": { "makespanInSeconds": 9, "tasks": [
                    { "id": "a b", "runtimeInSeconds": 12.3456, "machines": ["m"] },
                    { "id": "_c", "runtimeInSeconds": 1_000 },
                ] },
            },
        })
        .to_string()
    }

    #[test]
    fn tasks_become_sleeps_that_wait_for_their_parents() {
        let json = instance(json!([
            { "name": "x", "id": "a b", "parents": [], "children": ["_c", "a-b"] },
            { "name": "x", "id": "a-b", "parents": ["a b"] },
            { "name": "x", "id": "_c", "children": [] },
            { "name": "x", "id": "___", "parents": ["_c", "a-b"] },
        ]));
        let workflow = workflow_from_wfformat(&json, 2.0).expect("a good instance");
        assert_eq!(workflow.workflow.as_str(), "a-graph");
        let steps: Vec<(&str, Vec<&str>, String, Option<Millis>)> = workflow
            .steps
            .iter()
            .map(|(name, step)| {
                let needs = step.needs.iter().map(Name::as_str).collect();
                let with = step.with.as_ref().and_then(|w| w["duration"].as_str()).expect("a duration");
                (name.as_str(), needs, with.to_owned(), step.timeout)
            })
            .collect();
        assert_eq!(
            steps,
            [
                ("a-b", vec![], "6173ms".to_owned(), None),
                ("a-b-2", vec!["a-b"], "0ms".to_owned(), None),
                ("c", vec!["a-b"], "500000ms".to_owned(), Some(Millis(1_000_000))),
                ("task", vec!["a-b-2", "c"], "0ms".to_owned(), None),
            ]
        );
    }

    #[test]
    fn long_names_keep_their_ends_and_bad_graphs_are_refused() {
        let id = |end: &str| format!("{}{end}", "x".repeat(80));
        let json = instance(json!([{ "id": id("1") }, { "id": id("2") }, { "id": format!("y{}", id("2")) }]));
        let workflow = workflow_from_wfformat(&json, 1.0).expect("a good instance");
        let ends: Vec<&str> = workflow.steps.keys().map(|n| &n.as_str()[60..]).collect();
        assert_eq!(ends, ["xx1", "xx2", "2-2"]);
        for (json, scale, expected) in [
            ("{}".to_owned(), 1.0, "not a WfFormat instance"),
            (instance(json!([])), 0.0, "bad time scale `0`: allowed is a number above 0"),
            (instance(json!([])), 1.0, "steps: no steps: allowed is at least one"),
            (instance(json!([{ "id": "a" }, { "id": "a" }])), 1.0, "two tasks have the same id"),
            (instance(json!([{ "id": "a", "parents": ["z"] }])), 1.0, "task `a` refers to an unknown task `z`"),
            (
                instance(json!([{ "id": "a", "parents": ["b"] }, { "id": "b", "parents": ["a"] }])),
                1.0,
                "steps.a: cycle of needs: a -> b -> a",
            ),
        ] {
            let error = workflow_from_wfformat(&json, scale).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }
}
