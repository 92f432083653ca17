//! `workflows`: check and publish definitions. `check` and `schema` work offline, with the checker of the API itself.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{Registered, WorkflowDetail, WorkflowSummary};
use stepfleet_coordinator::workflow::{Report, check, schema};
use stepfleet_protocol::workflow::Workflow;

use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::input;
use crate::out::{Ink, Out, plain};
use crate::table::{Rows, pairs};
use crate::time::{ago, now_ms};

/// `workflows …`
#[derive(Debug, Subcommand)]
pub(crate) enum Workflows {
    /// Check definitions offline: every problem as `file:line:column`, exit code 1 if there is one.
    #[command(after_help = "\
Examples:
  stepfleet workflows check orders.yaml
  stepfleet workflows check flows/*.yaml
  generate-flow | stepfleet workflows check -
  stepfleet workflows check orders.yaml --output json | jq '.problems[].line'")]
    Check(FilesArg),
    /// Register definitions; an unchanged one keeps its version.
    #[command(after_help = "\
Examples:
  stepfleet workflows register orders.yaml
  stepfleet workflows register flows/*.yaml")]
    Register(FilesArg),
    /// List the registered workflows.
    #[command(after_help = "\
Examples:
  stepfleet workflows list")]
    List(Paging),
    /// Show a registered workflow with its versions.
    #[command(after_help = "\
Examples:
  stepfleet workflows show orders
  stepfleet workflows show orders --version 2 --output json | jq .definition > orders.json")]
    #[command(disable_version_flag = true)]
    Show(ShowArgs),
    /// Print the JSON Schema of definitions, for editors.
    #[command(after_help = "\
Examples:
  stepfleet workflows schema > workflow.schema.json")]
    Schema,
}

/// Definition files.
#[derive(Debug, Args)]
pub(crate) struct FilesArg {
    /// Definitions in YAML or JSON; `-` for stdin.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
}

/// `workflows show`
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The name of the workflow.
    #[arg(value_name = "NAME")]
    name: String,
    /// This version instead of the latest.
    #[arg(long, value_name = "N")]
    version: Option<u32>,
}

/// Runs a verb of `workflows`; `ask` makes a session when the API is needed.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run<'a>(
    verb: Workflows,
    out: &'a Out,
    ask: impl FnOnce() -> Result<Session<'a>, Failure>,
) -> Result<Exit, Failure> {
    match verb {
        Workflows::Check(args) => check_files(&args.files, out),
        Workflows::Schema => {
            let text = serde_json::to_string_pretty(&schema()).map_err(|error| Failure::failed(error.to_string()))?;
            out.line(&text)?;
            Ok(Exit::Done)
        }
        Workflows::Register(args) => register(&args.files, &ask()?).await,
        Workflows::List(paging) => list(&paging, &ask()?).await,
        Workflows::Show(args) => show(&args, &ask()?).await,
    }
}

fn name_of(file: &str) -> &str {
    if file == input::STDIN { "stdin" } else { file }
}

/// The problems of a definition as `file:line:column: path: …`.
pub(crate) fn lines_of(report: &Report, file: &str) -> Vec<String> {
    let line = |problem: &stepfleet_coordinator::workflow::Problem| {
        let place = match (problem.line, problem.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
            _ => file.to_owned(),
        };
        let bare = stepfleet_coordinator::workflow::Problem { line: None, column: None, ..problem.clone() };
        plain(&format!("{place}: {bare}"))
    };
    let more = (report.omitted > 0).then(|| format!("{file}: and {} more", report.omitted));
    report.problems.iter().map(line).chain(more).collect()
}

fn check_files(files: &[String], out: &Out) -> Result<Exit, Failure> {
    let mut bad = 0;
    let mut worst = Exit::Done;
    for file in files {
        let name = name_of(file);
        let checked = match input::file(file) {
            Ok(text) => check(&text),
            Err(failure) => {
                out.failure(&failure);
                (bad, worst) = (bad + 1, failure.exit());
                continue;
            }
        };
        if checked.is_err() {
            bad += 1;
            worst = if worst == Exit::Done { Exit::Failed } else { worst };
        }
        tell(name, &checked, out)?;
    }
    if bad > 0 && !out.is_json() {
        out.say(&format!("{bad} of {} {} problems", files.len(), if bad == 1 { "has" } else { "have" }));
    }
    Ok(worst)
}

fn tell(name: &str, checked: &Result<Workflow, Report>, out: &Out) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(&match checked {
            Ok(workflow) => serde_json::json!({
                "file": name, "valid": true, "name": workflow.workflow, "steps": workflow.steps.len(), "problems": [], "omitted": 0,
            }),
            Err(report) => serde_json::json!({
                "file": name, "valid": false, "problems": report.problems, "omitted": report.omitted,
            }),
        });
    }
    match checked {
        Ok(workflow) => {
            let steps = workflow.steps.len();
            let steps = format!("{steps} {}", if steps == 1 { "step" } else { "steps" });
            out.line(&format!("{name}: {} (workflow `{}`, {steps})", out.ink("ok", Ink::Good), workflow.workflow))
        }
        Err(report) => lines_of(report, name).iter().try_for_each(|line| out.line(line)),
    }
}

async fn register(files: &[String], session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let mut texts = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    for file in files {
        let text = input::file(file)?;
        match check(&text) {
            Ok(_) => texts.push((name_of(file), text)),
            Err(report) => problems.extend(lines_of(&report, name_of(file))),
        }
    }
    if !problems.is_empty() {
        return Err(Failure::failed("nothing was registered").problems(problems));
    }
    for (file, text) in texts {
        let sent = session.api.post(&["workflows"]).text("application/yaml", text).send().await;
        let answer = sent.map_err(|mut failure| {
            failure.text = format!("`{file}`: {}", failure.text);
            failure
        })?;
        if out.is_json() {
            out.line(answer.text.trim_end())?;
            continue;
        }
        let registered: Registered = answer.read()?;
        let word = if registered.created { "" } else { " (unchanged)" };
        out.line(&format!("{}@{}{word}", registered.name, registered.version))?;
    }
    Ok(Exit::Done)
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["workflows"]);
    let Some(page) = session.list::<WorkflowSummary>(call, paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(session.out, &["WORKFLOW", "VERSION", "REGISTERED"]);
    let now = now_ms();
    for workflow in &page.items {
        let registered = workflow.registered_at.as_deref().map(|at| ago(at, now)).unwrap_or_default();
        rows.row(vec![workflow.name.as_str().into(), workflow.latest.to_string().into(), registered.into()]);
    }
    if rows.is_empty() {
        session.out.say("no workflows");
        session.out.hint("register one with `stepfleet workflows register FILE`");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["workflows", &args.name]).query("version", args.version).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let workflow: WorkflowDetail = answer.read()?;
    let now = now_ms();
    let versions: Vec<String> = workflow.versions.iter().map(|version| version.version.to_string()).collect();
    let registered = workflow.registered_at.as_deref().map(|at| format!("{} ({at})", ago(at, now))).unwrap_or_default();
    pairs(
        out,
        &[
            ("workflow", plain(&workflow.name)),
            ("version", workflow.version.to_string()),
            ("registered", registered),
            ("versions", versions.join(", ")),
            ("plan", plain(&workflow.plan)),
        ],
    )?;
    if let Ok(definition) = serde_json::from_value::<Workflow>(workflow.definition) {
        steps(&definition, out)?;
    }
    out.hint(&format!("start a run with `stepfleet runs start {} --input JSON`", plain(&workflow.name)));
    Ok(Exit::Done)
}

fn steps(workflow: &Workflow, out: &Out) -> Result<(), Failure> {
    let mut rows = Rows::new(out, &["STEP", "HANDLER", "QUEUE", "NEEDS"]);
    for (name, step) in &workflow.steps {
        let queue = step.queue.as_ref().or(workflow.defaults.queue.as_ref());
        let needs: Vec<&str> = step.needs.iter().map(|need| need.as_str()).collect();
        rows.row(vec![
            name.as_str().into(),
            step.handler.as_str().into(),
            queue.map_or("default", |queue| queue.as_str()).into(),
            super::runs::shortened(&needs.join(", "), 200).into(),
        ]);
    }
    out.line("")?;
    rows.print(out)
}
