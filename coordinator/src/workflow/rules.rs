//! The rules of the format: one walk over the tree that meets every problem.

use std::collections::HashMap;

use stepfleet_protocol::{
    limits::{EDGES_MAX, STEPS_MAX},
    name::Name,
    workflow::{
        Compensate, Defaults, Fallback, OnFailure, PRIORITY_MAX, RUN_TIMEOUT, Step, StepOnFailure, Steps, Workflow,
    },
};

use super::{
    fields::{Fields, Path, Reader},
    graph::Graph,
    policies::retry,
    report::{Complaint, Report, shown},
    schema,
    suggest::did_you_mean,
    template::{self, Source},
    tree::{Entry, Kind, Node, Pos},
};

/// Unknown steps for which a similar name is looked for; each costs a look at all steps.
const SUGGESTIONS_MAX: usize = 20;
/// Steps of a cycle that a report names.
const CYCLE_SHOWN_MAX: usize = 12;
/// Bytes of the text that names a dependency.
const TARGET_BYTES_MAX: usize = 256;
const STEP_FIELDS: [&str; 12] = [
    "handler",
    "needs",
    "queue",
    "timeout",
    "retry",
    "priority",
    "start_within",
    "with",
    "breaker",
    "fallback",
    "compensate",
    "on_failure",
];

const ON_FAILURE: [(&str, OnFailure); 3] =
    [("fail", OnFailure::Fail), ("suspend", OnFailure::Suspend), ("compensate", OnFailure::Compensate)];
const STEP_ON_FAILURE: [(&str, StepOnFailure); 3] = [
    ("fail", StepOnFailure::Fail),
    ("continue", StepOnFailure::Continue),
    ("skip_dependents", StepOnFailure::SkipDependents),
];

/// The workflow that the tree describes.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read(root: &Node) -> Result<Workflow, Report> {
    let mut walk = Walk::default();
    let workflow = walk.workflow(root);
    let report = walk.reader.report.sorted();
    match workflow {
        Some(workflow) if report.problems.is_empty() => Ok(workflow),
        _ => Err(report),
    }
}

/// `${{ steps.x.output }}` somewhere in the `with` of a step.
struct Reference {
    step: u32,
    source: u32,
    at: Option<Pos>,
    path: String,
}

#[derive(Default)]
struct Walk<'n> {
    reader: Reader,
    /// Every step that was written, in order, legal or not.
    index: HashMap<&'n str, u32>,
    /// For each step the last one that was seen to need it, plus one: finds a need written twice without a set a step.
    needed_by: Vec<u32>,
    references: Vec<Reference>,
    suggestions: usize,
}

impl<'n> Walk<'n> {
    fn workflow(&mut self, root: &'n Node) -> Option<Workflow> {
        const KNOWN: [&str; 7] = ["workflow", "description", "defaults", "timeout", "on_failure", "input", "steps"];
        let here = Path::ROOT;
        let fields = self.reader.fields(root, &here, &KNOWN)?;
        let r = &mut self.reader;
        let workflow = r.required(&fields, &here, "workflow", "the name of the workflow");
        let workflow = workflow.and_then(|n| r.name(n, &here.key("workflow")));
        let description = fields.set("description").and_then(|n| r.text(n, &here.key("description")));
        let timeout = fields.get("timeout").map_or(Some(RUN_TIMEOUT), |n| r.duration(n, &here.key("timeout")));
        let on_failure = fields.get("on_failure");
        let on_failure = on_failure.and_then(|n| r.one_of(n, &here.key("on_failure"), &ON_FAILURE));
        let defaults = fields.get("defaults").and_then(|n| self.defaults(n, &here.key("defaults")));
        let input = fields.get("input").and_then(|n| self.input(n, &here.key("input")));
        let steps = self.reader.required(&fields, &here, "steps", "a map of at least one step");
        let steps = steps.and_then(|n| self.steps(n, &here.key("steps")));
        Some(Workflow {
            workflow: workflow?,
            description: description.map(str::to_owned),
            defaults: defaults.unwrap_or_default(),
            timeout: timeout?,
            on_failure: on_failure.unwrap_or_default(),
            input,
            steps: steps?,
        })
    }

    fn defaults(&mut self, node: &'n Node, here: &Path<'_>) -> Option<Defaults> {
        let fields = self.reader.fields(node, here, &["queue", "timeout", "retry", "priority"])?;
        let common = self.common(&fields, here);
        Some(Defaults { queue: common.queue, timeout: common.timeout, retry: common.retry, priority: common.priority })
    }

    /// What a step and the defaults have in common.
    fn common(&mut self, fields: &Fields<'n>, here: &Path<'_>) -> Defaults {
        let r = &mut self.reader;
        let queue = fields.set("queue").and_then(|n| r.name(n, &here.key("queue")));
        let timeout = fields.set("timeout").and_then(|n| r.duration(n, &here.key("timeout")));
        let priority = fields.set("priority");
        let priority = priority.and_then(|n| r.whole_number(n, &here.key("priority"), 0..=u64::from(PRIORITY_MAX)));
        let retry = fields.set("retry").and_then(|n| retry(r, n, &here.key("retry")));
        Defaults { queue, timeout, retry, priority: priority.and_then(|p| u8::try_from(p).ok()) }
    }

    fn input(&mut self, node: &'n Node, here: &Path<'_>) -> Option<serde_json::Value> {
        if !matches!(node.kind, Kind::Map(_) | Kind::Bool(_)) {
            self.reader.wrong_type(node, here, "a JSON Schema");
            return None;
        }
        let schema = self.reader.value(node, here, &mut |_, _, _, _| {});
        if let Err(found) = schema::check_schema(&schema) {
            self.reader.complain(node.at, here, Complaint::new(format!("bad JSON Schema: {found}")));
        }
        Some(schema)
    }

    fn steps(&mut self, node: &'n Node, here: &Path<'_>) -> Option<Steps> {
        let entries = self.reader.entries(node, here, "a map of at least one step")?;
        if entries.is_empty() {
            self.reader.complain(node.at, here, Complaint::new("no steps").allowed("at least one"));
        }
        if entries.len() > STEPS_MAX {
            let found = Complaint::new(format!("too many steps: {}", entries.len()));
            self.reader.complain(node.at, here, found.allowed(format!("at most {STEPS_MAX}")));
            return None;
        }
        self.index = (0u32..).zip(&entries).map(|(i, entry)| (entry.key.as_str(), i)).collect();
        self.needed_by = vec![0; entries.len()];
        let mut steps = Steps::with_capacity(entries.len());
        let mut graph = Vec::with_capacity(entries.len());
        for (i, entry) in (0u32..).zip(&entries) {
            let path = here.key(&entry.key);
            let name = self.reader.checked_name(&entry.key, entry.at, &path);
            let mut needs = Vec::new();
            if let (Some(step), Some(name)) = (self.step(i, entry, &path, &mut needs), name) {
                steps.insert(name, step);
            }
            graph.push(needs);
        }
        let edges: usize = graph.iter().map(Vec::len).sum();
        if edges > EDGES_MAX {
            let found = Complaint::new(format!("too many edges: {edges}"));
            self.reader.complain(node.at, here, found.allowed(format!("at most {EDGES_MAX}")));
            return None;
        }
        self.graph(&entries, graph, here);
        Some(steps)
    }

    fn step(&mut self, i: u32, entry: &'n Entry, here: &Path<'_>, edges: &mut Vec<u32>) -> Option<Step> {
        let fields = self.reader.fields(&entry.value, here, &STEP_FIELDS)?;
        let handler = self.reader.required(&fields, here, "handler", "the name of a handler");
        let handler = handler.and_then(|n| self.reader.name(n, &here.key("handler")));
        let needs = fields.get("needs").map_or_else(Vec::new, |n| self.needs(i, n, &here.key("needs"), edges));
        let common = self.common(&fields, here);
        let start_within = fields.set("start_within");
        let start_within = start_within.and_then(|n| self.reader.time_limit(n, &here.key("start_within")));
        let with = fields.set("with").map(|n| self.with(i, false, n, &here.key("with")));
        let breaker = fields.set("breaker").and_then(|n| self.target(i, n, &here.key("breaker")));
        let fallback = fields.set("fallback").and_then(|n| self.fallback(n, &here.key("fallback")));
        let compensate = fields.set("compensate").and_then(|n| self.compensate(i, n, &here.key("compensate")));
        let on_failure = fields.set("on_failure");
        let on_failure = on_failure.and_then(|n| self.reader.one_of(n, &here.key("on_failure"), &STEP_ON_FAILURE));
        let Defaults { queue, timeout, retry, priority } = common;
        Some(Step {
            handler: handler?,
            needs,
            queue,
            timeout,
            retry,
            priority,
            start_within,
            with,
            breaker,
            fallback,
            compensate,
            on_failure,
        })
    }

    /// The text that names a dependency, in which expressions may be.
    fn target(&mut self, step: u32, node: &'n Node, here: &Path<'_>) -> Option<String> {
        let text = self.reader.text(node, here)?;
        if text.trim().is_empty() || text.len() > TARGET_BYTES_MAX {
            let found = Complaint::new(format!("a text of {} bytes", text.len()));
            self.reader.complain(
                node.at,
                here,
                found.allowed(format!("1 to {TARGET_BYTES_MAX} bytes, not only spaces")),
            );
            return None;
        }
        self.with(step, false, node, here);
        Some(text.to_owned())
    }

    fn fallback(&mut self, node: &'n Node, here: &Path<'_>) -> Option<Fallback> {
        let fields = self.reader.fields(node, here, &["handler", "queue"])?;
        let r = &mut self.reader;
        let handler = r.required(&fields, here, "handler", "the name of a handler");
        let handler = handler.and_then(|n| r.name(n, &here.key("handler")));
        let queue = fields.set("queue").and_then(|n| r.name(n, &here.key("queue")));
        Some(Fallback { handler: handler?, queue })
    }

    fn compensate(&mut self, step: u32, node: &'n Node, here: &Path<'_>) -> Option<Compensate> {
        let fields = self.reader.fields(node, here, &["handler", "queue", "timeout", "retry", "with"])?;
        let r = &mut self.reader;
        let handler = r.required(&fields, here, "handler", "the name of a handler");
        let handler = handler.and_then(|n| r.name(n, &here.key("handler")));
        let Defaults { queue, timeout, retry, .. } = self.common(&fields, here);
        let with = fields.set("with").map(|n| self.with(step, true, n, &here.key("with")));
        Some(Compensate { handler: handler?, queue, timeout, retry, with })
    }

    fn needs(&mut self, step: u32, node: &'n Node, here: &Path<'_>, edges: &mut Vec<u32>) -> Vec<Name> {
        let Kind::List(items) = &node.kind else {
            let complaint = Complaint::new(format!("found {}", node.describe())).allowed("a list of step names");
            let hint =
                if let Kind::Text(text) = &node.kind { Some(format!("write `[{}]`", shown(text))) } else { None };
            self.reader.complain(node.at, here, complaint.hint(hint));
            return Vec::new();
        };
        let mut names = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let path = here.item(i);
            let Some(name) = self.reader.name(item, &path) else { continue };
            match self.index.get(name.as_str()).copied() {
                None => {
                    let complaint = Complaint::new(format!("unknown step `{name}`")).allowed("a step of this workflow");
                    let hint = self.similar(name.as_str());
                    self.reader.complain(item.at, &path, complaint.hint(hint));
                }
                Some(need) if need == step => {
                    self.reader.complain(item.at, &path, Complaint::new("a step that needs itself"));
                }
                Some(need) if std::mem::replace(&mut self.needed_by[need as usize], step + 1) == step + 1 => {
                    let complaint = Complaint::new(format!("duplicate need `{name}`")).allowed("each step once");
                    self.reader.complain(item.at, &path, complaint);
                }
                Some(need) => {
                    edges.push(need);
                    names.push(name);
                }
            }
        }
        names
    }

    fn similar(&mut self, name: &str) -> Option<String> {
        if self.suggestions >= SUGGESTIONS_MAX || self.reader.report.is_full() {
            return None;
        }
        self.suggestions += 1;
        // By name, so that the same text gets the same hint every time.
        let mut names: Vec<&str> = self.index.keys().copied().collect();
        names.sort_unstable();
        did_you_mean(name, names.into_iter())
    }

    /// A value with expressions, which may refer to the outputs of steps that `step` needs; `own` lets them refer to its own.
    fn with(&mut self, step: u32, own: bool, node: &'n Node, here: &Path<'_>) -> serde_json::Value {
        let mut met: Vec<(Name, Option<Pos>, String)> = Vec::new();
        let mut expressions = 0;
        let value = self.reader.value(node, here, &mut |reader, text, at, path| {
            let (count, sources, faults) = template::inspect(text);
            expressions += count;
            for fault in faults {
                reader.complain(at, path, Complaint::new(fault));
            }
            for source in sources {
                match source {
                    Source::Input => {}
                    Source::Output(name) => met.push((name, at, path.to_string())),
                }
            }
        });
        if expressions > template::EXPRESSIONS_MAX {
            let found = Complaint::new(format!("too many expressions: {expressions}"));
            self.reader.complain(node.at, here, found.allowed(format!("at most {}", template::EXPRESSIONS_MAX)));
        }
        for (name, at, path) in met {
            if let Some(source) = self.index.get(name.as_str()).copied() {
                if own && source == step {
                    continue;
                }
                self.references.push(Reference { step, source, at, path });
                continue;
            }
            let hint = self.similar(name.as_str());
            let complaint = Complaint::new(format!("an expression refers to an unknown step `{name}`"));
            self.reader.report.add(at, path, complaint.hint(hint));
        }
        value
    }

    /// What only the whole graph can tell: cycles, and expressions that refer to a step which need not have run.
    fn graph(&mut self, entries: &[&'n Entry], needs: Vec<Vec<u32>>, here: &Path<'_>) {
        let name = |step: u32| entries[step as usize].key.as_str();
        let graph = Graph::new(needs);
        let order = match graph.order() {
            Ok(order) => order,
            Err(cycles) => {
                for cycle in cycles {
                    let mut shown: Vec<&str> = cycle.iter().take(CYCLE_SHOWN_MAX).map(|s| name(*s)).collect();
                    if cycle.len() > CYCLE_SHOWN_MAX {
                        shown.push("…");
                    }
                    shown.push(name(cycle[0]));
                    let first = entries[cycle[0] as usize];
                    let found = format!("cycle of needs: {}", shown.join(" -> "));
                    self.reader.complain(first.at, &here.key(&first.key), Complaint::new(found));
                }
                return;
            }
        };
        let pairs: Vec<(u32, u32)> = self.references.iter().map(|r| (r.step, r.source)).collect();
        for wrong in graph.not_ancestors(&order, &pairs) {
            let Reference { step, source, at, ref path } = self.references[wrong];
            let found = if step == source {
                "an expression refers to the output of its own step".to_owned()
            } else {
                format!("an expression refers to step `{}`, which `{}` does not wait for", name(source), name(step))
            };
            let hint = (step != source).then(|| format!("add `{}` to the needs of `{}`", name(source), name(step)));
            self.reader.report.add(at, path.clone(), Complaint::new(found).hint(hint));
        }
    }
}
