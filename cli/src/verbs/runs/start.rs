//! `runs start`: one run, waited for or not; many at once are in `bulk`.

use clap::Args;
use reqwest::StatusCode;
use stepfleet_coordinator::http::view::{SubmitRequest, Submitted};

use super::{Session, bulk, follow};
use crate::api::field_problem;
use crate::failure::{Exit, Failure};
use crate::input;

/// `runs start`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").args(["workflow", "file"]))]
pub(crate) struct StartArgs {
    /// A registered workflow, as `NAME` or `NAME@VERSION`.
    #[arg(value_name = "WORKFLOW", required_unless_present_any = ["file", "bulk"])]
    pub(super) workflow: Option<String>,
    /// A definition in YAML or JSON that need not be registered; `-` for stdin.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<String>,
    /// The input of the run: `JSON`, `@file`, or `-` for stdin.
    #[arg(short, long, value_name = "JSON", conflicts_with = "bulk")]
    pub(super) input: Option<String>,
    /// Start a run for each line of this NDJSON file (`-` for stdin): its input, or without a workflow the whole request.
    #[arg(long, value_name = "FILE")]
    pub(super) bulk: Option<String>,
    /// Follow the run until it ends; exit code 1 unless it completes. `--timeout` limits the wait.
    #[arg(short, long, conflicts_with = "bulk")]
    pub(super) wait: bool,
    /// Answer only when the submit is on disk or on a replica.
    #[arg(long)]
    pub(super) durable: bool,
    /// A later call with the same key (within 24 hours) finds the same run. For each line of --bulk `:` and its number are added.
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
}

pub(super) async fn run(args: StartArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    if args.file.as_deref() == Some(input::STDIN) && [&args.input, &args.bulk].into_iter().flatten().any(|f| f == "-") {
        return Err(Failure::usage("stdin can be read only once").hint("give one of the two as a file"));
    }
    let request = SubmitRequest {
        workflow: args.workflow.clone(),
        definition_text: args.file.as_deref().map(definition).transpose()?,
        input: args.input.as_deref().map(|given| input::json("--input", given)).transpose()?,
        durable: args.durable,
        ..SubmitRequest::default()
    };
    match &args.bulk {
        Some(file) => bulk::run(file, request, args.idempotency_key.as_deref(), session).await,
        None => one(&args, &request, session).await,
    }
}

/// The text of a definition, checked here, because the file's name and lines are known here.
fn definition(path: &str) -> Result<String, Failure> {
    let text = input::file(path)?;
    let Err(report) = stepfleet_coordinator::workflow::check(&text) else { return Ok(text) };
    let name = if path == input::STDIN { "stdin" } else { path };
    let problems = crate::verbs::workflows::lines_of(&report, name);
    Err(Failure::new(Exit::Failed, format!("`{name}` cannot be run")).problems(problems))
}

async fn one(args: &StartArgs, request: &SubmitRequest, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    // A key of our own, so that a submit without an answer can be repeated without starting a second run.
    let key = args.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let call = session.api.post(&["runs"]).header("idempotency-key", key.clone()).json(request);
    let answer = call.send().await.map_err(|failure| unanswered(failure, &key))?;
    let taken: Submitted = answer.read()?;
    let id = taken.id.to_string();
    if args.durable && taken.durability.as_deref() == Some("none") {
        out.warn("the submit is neither on disk nor on a replica; the server has no replica and no append-only file");
    }
    if taken.known {
        out.say("this idempotency key has started this run before");
    }
    if !args.wait {
        if out.is_json() {
            out.line(answer.text.trim_end())?;
            return Ok(Exit::Done);
        }
        out.line(&id)?;
        if answer.status == StatusCode::ACCEPTED {
            out.say("the submit was taken; the coordinator has not answered yet");
        }
        out.hint(&format!("follow it with `stepfleet runs watch {id}`"));
        return Ok(Exit::Done);
    }
    if !out.is_json() {
        out.line(&id)?;
    }
    follow::wait(&id, session).await
}

/// Without an answer nobody knows whether there is a run now; the same key finds out.
fn unanswered(failure: Failure, key: &str) -> Failure {
    let is_unknown = failure.exit() == Exit::Unreachable && failure.text.starts_with("no answer");
    if !is_unknown {
        return failure;
    }
    failure.hint(format!("whether the run was taken is unknown; repeat the command with `--idempotency-key {key}`"))
}

/// A line of a problem that the API found in what was sent.
pub(super) fn problem_line(problem: &stepfleet_coordinator::http::view::FieldProblem) -> String {
    field_problem(problem, None)
}
