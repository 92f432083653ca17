//! `runs`: start, look at, follow and command runs.

mod bulk;
mod calls;
mod command;
mod explain;
mod follow;
mod progress;
mod show;
mod start;

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::RunSummary;
use stepfleet_protocol::state::State;

use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::table::{Rows, Word};
use crate::time::{ago, now_ms, span};
pub(crate) use show::{error_text, read, shortened, worker_name};

/// `runs …`
#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// Start a run of a registered workflow or of a file, or many runs; prints the id of each on a line.
    #[command(after_help = "\
Examples:
  stepfleet runs start orders --input '{\"url\": \"https://example.org\"}'
  stepfleet runs start orders@3 --input @input.json --wait
  stepfleet runs start -f orders.yaml --wait --timeout 5m
  stepfleet runs start orders --bulk inputs.ndjson      a run for each line, which is its input
  stepfleet runs start --bulk runs.ndjson               lines as {\"workflow\": \"orders\", \"input\": {}}
  stepfleet runs start orders --idempotency-key order-4711  a repeated call finds the same run")]
    Start(start::StartArgs),
    /// List runs, newest first.
    #[command(after_help = "\
Examples:
  stepfleet runs list
  stepfleet runs list --state failed --workflow orders
  stepfleet runs list --output json | jq -r '.items[].id'")]
    List(ListArgs),
    /// Show a run: its state, its steps, its errors, and what can be done.
    #[command(after_help = "\
Examples:
  stepfleet runs show 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs show 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --output json | jq .steps")]
    Show(RunArg),
    /// Say why a run, or a step of it, does not go on, and what would make it go on.
    #[command(after_help = "\
Examples:
  stepfleet runs explain 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs explain 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 charge
  stepfleet runs explain 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --output json | jq -r .reason")]
    Explain(explain::ExplainArgs),
    /// Print the output of a step, or of the last steps, as JSON.
    #[command(after_help = "\
Examples:
  stepfleet runs output 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs output 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --step fetch | jq .body")]
    Output(OutputArgs),
    /// Every transition of a run, oldest first.
    #[command(after_help = "\
Examples:
  stepfleet runs history 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs history 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --limit 1000 --output json")]
    History(HistoryArgs),
    /// The external calls that a run's steps put on record: what was sent, and what is known of its effect. `unknown` is a
    /// call that nobody is at and whose outcome nobody knows.
    #[command(after_help = "\
Examples:
  stepfleet runs calls 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs calls 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --output json | jq '.items[] | select(.state == \"unknown\")'")]
    Calls(calls::CallsArgs),
    /// Follow a run until it ends or is suspended; exit code 1 unless it completed. Draws its progress on a terminal,
    /// prints a line for each transition elsewhere, and the API's JSON of each with `--output json`.
    #[command(after_help = "\
Examples:
  stepfleet runs watch 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs watch 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --timeout 10m
  stepfleet runs watch 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --output json | jq -r '.step + \" \" + .to'")]
    Watch(RunArg),
    /// Stop a run for good. What runs is stopped, what is finished stays.
    #[command(after_help = "\
Examples:
  stepfleet runs cancel 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs cancel 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --yes --reason 'sent twice'")]
    Cancel(command::CancelArgs),
    /// Hold a run: running attempts finish and count, nothing new begins. A failed run is held for a look, so that nobody
    /// retries it by mistake.
    #[command(after_help = "\
Examples:
  stepfleet runs suspend 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs suspend 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --now    stop running attempts too, uncounted")]
    Suspend(command::SuspendArgs),
    /// Let a suspended run go on; one that had failed goes on at its failed steps, as by a retry.
    #[command(after_help = "\
Examples:
  stepfleet runs resume 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Resume(command::CommandArgs),
    /// Reopen a failed run at its failed steps; what is finished stays finished. With `--from` the run goes back to that step.
    #[command(after_help = "\
Examples:
  stepfleet runs retry 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs retry 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --reason 'the disk is free again'
  stepfleet runs retry 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --from parse   parse and everything behind it again")]
    Retry(command::RetryArgs),
    /// Say by hand what became of a step that failed or is held: completed with an output, or failed. The run goes on.
    #[command(after_help = "\
Examples:
  stepfleet runs resolve 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 charge --complete '{\"receipt\": 4711}'
  stepfleet runs resolve 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 charge --complete @output.json --reason 'paid by hand'
  stepfleet runs resolve 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 notify --fail 'the customer is gone'")]
    Resolve(command::ResolveArgs),
    /// Undo the completed steps of a failed run that say how (`compensate`), the last first. The run stays failed.
    #[command(after_help = "\
Examples:
  stepfleet runs compensate 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet runs compensate 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 --yes --reason 'the order was withdrawn'")]
    Compensate(command::CompensateArgs),
}

/// One run.
#[derive(Debug, Args)]
pub(crate) struct RunArg {
    /// The id of the run.
    #[arg(value_name = "RUN")]
    id: String,
}

/// `runs list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only runs in this state.
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    /// Only runs of this workflow.
    #[arg(long, value_name = "NAME")]
    workflow: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// `runs output`
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    #[command(flatten)]
    run: RunArg,
    /// The step; without it an object of the outputs of the last steps.
    #[arg(long, value_name = "NAME")]
    step: Option<String>,
}

/// `runs history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    run: RunArg,
    #[command(flatten)]
    paging: Paging,
}

/// Runs a verb of `runs`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Runs, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Runs::Start(args) => start::run(args, session).await,
        Runs::List(args) => list(&args, session).await,
        Runs::Show(run) => show::run(&run.id, session).await,
        Runs::Explain(args) => explain::run(&args, session).await,
        Runs::Output(args) => output(&args, session).await,
        Runs::History(args) => history(&args, session).await,
        Runs::Calls(args) => calls::run(&args, session).await,
        Runs::Watch(run) => follow::watch(&run.id, session).await,
        Runs::Cancel(args) => command::cancel(args, session).await,
        Runs::Suspend(args) => command::suspend(args, session).await,
        Runs::Resume(args) => command::resume(args, session).await,
        Runs::Retry(args) => command::retry(args, session).await,
        Runs::Resolve(args) => command::resolve(args, session).await,
        Runs::Compensate(args) => command::compensate(args, session).await,
    }
}

async fn list(args: &ListArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || {
        let call = session.api.get(&["runs"]).query("state", args.state);
        call.query("workflow", args.workflow.as_deref())
    };
    let Some(page) = session.list::<RunSummary>(call, &args.paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(session.out, &["RUN", "WORKFLOW", "STATE", "STEPS", "SUBMITTED", "TOOK"]);
    let now = now_ms();
    for run in &page.items {
        rows.row(vec![
            run.id.to_string().into(),
            workflow_of(run).into(),
            state_of(run),
            steps_of(run).into(),
            ago(&run.created_at, now).into(),
            run.duration_ms.map(span).unwrap_or_default().into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("no runs");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn output(args: &OutputArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = session.api.get(&["runs", &args.run.id, "output"]).query("step", args.step.as_deref());
    session.out.line(call.send().await?.text.trim_end())?;
    Ok(Exit::Done)
}

async fn history(args: &HistoryArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["runs", &args.run.id, "history"]);
    let Some(page) = session.list(call, &args.paging).await? else { return Ok(Exit::Done) };
    show::history(&page.items, session.out)?;
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

/// `orders@3`, or `orders` for an inline definition.
fn workflow_of(run: &RunSummary) -> String {
    run.version.map_or_else(|| run.workflow.clone(), |version| format!("{}@{version}", run.workflow))
}

fn state_of(run: &RunSummary) -> Word {
    let text = if run.review { format!("{} (review)", run.state) } else { run.state.to_string() };
    Word::new(text, Ink::of(run.state))
}

/// `3/5`, with what failed and what is at work.
fn steps_of(run: &RunSummary) -> String {
    let steps = run.steps;
    let mut text = format!("{}/{}", steps.completed, steps.total);
    if steps.failed > 0 {
        text += &format!(", {} failed", steps.failed);
    }
    if steps.skipped > 0 {
        text += &format!(", {} skipped", steps.skipped);
    }
    if steps.active > 0 {
        text += &format!(", {} active", steps.active);
    }
    text
}
