//! `queues`: how much waits, for how long, and who takes it.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{CommandRequest, QueueTaken, QueueView};

use super::{Paging, Session, workers};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out};
use crate::table::{Rows, Word};
use crate::time::span;

/// `queues …`
#[derive(Debug, Subcommand)]
pub(crate) enum Queues {
    /// List the queues.
    #[command(after_help = "\
Examples:
  stepfleet queues list
  stepfleet queues list --output json | jq '.items[] | {name, depth, oldest_age_ms, drain_ms}'")]
    List(Paging),
    /// Pause a queue: nothing of it is given to workers; attempts that run are finished.
    #[command(after_help = "\
Examples:
  stepfleet queues pause payments --reason 'the bank asked us to wait'")]
    Pause(PauseArgs),
    /// Let a paused queue go on.
    #[command(after_help = "\
Examples:
  stepfleet queues resume payments --reason 'the bank is ready'")]
    Resume(PauseArgs),
}

/// `queues pause` and `queues resume`
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The queue.
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// Why, for the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs a verb of `queues`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Queues, session: &Session<'_>) -> Result<Exit, Failure> {
    let paging = match verb {
        Queues::List(paging) => paging,
        Queues::Pause(args) => return switch(args, "pause", session).await,
        Queues::Resume(args) => return switch(args, "resume", session).await,
    };
    let call = || session.api.get(&["queues"]);
    let Some(page) = session.list::<QueueView>(call, &paging).await? else { return Ok(Exit::Done) };
    if page.items.is_empty() {
        session.out.say("no queues; a queue appears with its first job or worker");
    } else {
        table(&page.items, session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn switch(args: PauseArgs, verb: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let body = CommandRequest { reason: args.reason };
    let answer = session.api.post(&["queues", &args.queue, verb]).json(&body).send().await?;
    if session.out.is_json() {
        session.out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let taken: QueueTaken = answer.read()?;
    let (now, before) =
        (if taken.paused { "paused" } else { "not paused" }, if taken.changed { "" } else { " already" });
    session.out.line(&format!("queue {} is {now}{before}", taken.queue))?;
    Ok(Exit::Done)
}

/// The queues as a table.
///
/// # Errors
/// stdout is closed or broken.
pub(super) fn table(queues: &[QueueView], out: &Out) -> Result<(), Failure> {
    let mut rows =
        Rows::new(out, &["QUEUE", "WAITING", "OLDEST", "DONE IN", "WITH WORKERS", "WORKERS", "SLOTS", "LEVEL"]);
    for queue in queues {
        let (word, ink) = match queue.paused {
            Some(_) => ("paused", Ink::Warn),
            None => workers::level(queue.level),
        };
        rows.row(vec![
            queue.name.as_str().into(),
            queue.depth.to_string().into(),
            queue.oldest_age_ms.map(span).unwrap_or_default().into(),
            queue.drain_ms.filter(|_| queue.depth > 0).map(span).unwrap_or_default().into(),
            queue.pending.to_string().into(),
            queue.workers.to_string().into(),
            queue.slots.to_string().into(),
            Word::new(word, ink),
        ]);
    }
    rows.print(out)
}
