//! Commands to a run: cancel, suspend, resume, retry, resolve, compensate. Each waits for the coordinator's answer.

use clap::Args;
use reqwest::StatusCode;
use serde::Serialize;
use stepfleet_coordinator::http::view::{CommandRequest, CommandTaken, ResolveRequest, RetryRequest, SuspendRequest};

use super::{RunArg, Session};
use crate::failure::{Exit, Failure};
use crate::input;

/// A command with its reason.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    run: RunArg,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// `runs cancel`
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// `runs suspend`
#[derive(Debug, Args)]
pub(crate) struct SuspendArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// Stop running attempts, uncounted, instead of letting them finish.
    #[arg(long)]
    now: bool,
}

/// `runs retry`
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// Go back to this step: it and everything behind it is done again, with the outputs of the steps before it.
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
}

/// `runs resolve`
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// The name of the step.
    #[arg(value_name = "STEP")]
    step: String,
    /// It is done, with this output: `JSON`, `@file`, or `-`; `null` for none.
    #[arg(long, value_name = "JSON", required_unless_present = "fail", conflicts_with = "fail")]
    complete: Option<String>,
    /// It failed for good, for this reason.
    #[arg(long, value_name = "TEXT")]
    fail: Option<String>,
}

/// `runs compensate`
#[derive(Debug, Args)]
pub(crate) struct CompensateArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn cancel(args: CancelArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let CommandArgs { run, reason } = args.command;
    session.out.confirm(&format!("cancel run `{}` for good?", run.id), args.yes)?;
    send(session, &run.id, "cancel", &CommandRequest { reason }).await
}

pub(super) async fn suspend(args: SuspendArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let CommandArgs { run, reason } = args.command;
    send(session, &run.id, "suspend", &SuspendRequest { reason, now: args.now }).await
}

pub(super) async fn resume(args: CommandArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    send(session, &args.run.id, "resume", &CommandRequest { reason: args.reason }).await
}

pub(super) async fn retry(args: RetryArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let CommandArgs { run, reason } = args.command;
    send(session, &run.id, "retry", &RetryRequest { reason, from: args.from }).await
}

pub(super) async fn resolve(args: ResolveArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let CommandArgs { run, reason } = args.command;
    let complete = args.complete.as_deref().map(|given| input::json("--complete", given)).transpose()?;
    let request = ResolveRequest { step: args.step, complete, fail: args.fail, reason };
    send(session, &run.id, "resolve", &request).await
}

pub(super) async fn compensate(args: CompensateArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let CommandArgs { run, reason } = args.command;
    session
        .out
        .confirm(&format!("undo the completed steps of run `{}`? it cannot go on after that", run.id), args.yes)?;
    send(session, &run.id, "compensate", &CommandRequest { reason }).await
}

async fn send(session: &Session<'_>, id: &str, verb: &str, body: &impl Serialize) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.post(&["runs", id, verb]).json(body).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let taken: CommandTaken = answer.read()?;
    match taken.state {
        Some(state) => out.line(&format!("{id} {state}"))?,
        None => out.line(id)?,
    }
    if answer.status == StatusCode::ACCEPTED {
        out.say(&format!("{verb} was taken; the coordinator has not answered yet"));
        out.hint(&format!("see `stepfleet runs show {id}`"));
    } else if matches!(verb, "resume" | "retry" | "resolve" | "compensate") {
        out.hint(&format!("follow it with `stepfleet runs watch {id}`"));
    }
    Ok(Exit::Done)
}
