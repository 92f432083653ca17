//! `queues`: how much waits, for how long, and who takes it.

use clap::Subcommand;
use stepfleet_coordinator::http::view::QueueView;

use super::{Paging, Session, workers};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::table::{Rows, Word};
use crate::time::span;

/// `queues …`
#[derive(Debug, Subcommand)]
pub(crate) enum Queues {
    /// List the queues.
    #[command(after_help = "\
Examples:
  stepfleet queues list
  stepfleet queues list --output json | jq '.items[] | {name, depth, oldest_age_ms}'")]
    List(Paging),
}

/// Runs a verb of `queues`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Queues, session: &Session<'_>) -> Result<Exit, Failure> {
    let Queues::List(paging) = verb;
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

/// The queues as a table.
///
/// # Errors
/// stdout is closed or broken.
pub(super) fn table(queues: &[QueueView], out: &Out) -> Result<(), Failure> {
    let mut rows = Rows::new(out, &["QUEUE", "WAITING", "OLDEST", "WITH WORKERS", "WORKERS", "SLOTS", "LEVEL"]);
    for queue in queues {
        let (word, ink) = workers::level(queue.level);
        rows.row(vec![
            queue.name.as_str().into(),
            queue.depth.to_string().into(),
            queue.oldest_age_ms.map(span).unwrap_or_default().into(),
            queue.pending.to_string().into(),
            queue.workers.to_string().into(),
            queue.slots.to_string().into(),
            Word::new(word, ink),
        ]);
    }
    rows.print(out)
}
