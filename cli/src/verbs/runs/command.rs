//! Commands to a run: cancel, suspend, resume, retry. Each waits for the coordinator's answer.

use clap::Args;
use reqwest::StatusCode;
use serde::Serialize;
use stepfleet_coordinator::http::view::{CommandRequest, CommandTaken, SuspendRequest};

use super::{RunArg, Session};
use crate::failure::{Exit, Failure};

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

pub(super) async fn retry(args: CommandArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    send(session, &args.run.id, "retry", &CommandRequest { reason: args.reason }).await
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
    } else if matches!(verb, "resume" | "retry") {
        out.hint(&format!("follow it with `stepfleet runs watch {id}`"));
    }
    Ok(Exit::Done)
}
