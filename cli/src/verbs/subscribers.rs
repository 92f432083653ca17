//! `subscribers`: who is told what was committed, how far each is, and what was not delivered.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{SubscriberView, UndeliveredView};

use super::runs::shortened;
use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::table::{Rows, Word};
use crate::time::{ago, now_ms, span};

/// `subscribers …`
#[derive(Debug, Subcommand)]
pub(crate) enum Subscribers {
    /// List the subscribers of the outbox, and how far each is.
    #[command(after_help = "\
Examples:
  stepfleet subscribers list
  stepfleet subscribers list --output json | jq '.items[] | {name, lag, undelivered}'")]
    List(Paging),
    /// List entries that a subscriber did not take, the newest first.
    #[command(after_help = "\
Examples:
  stepfleet subscribers undelivered
  stepfleet subscribers undelivered --subscriber escalation-log --limit 100")]
    Undelivered(UndeliveredArgs),
}

/// `subscribers undelivered`
#[derive(Debug, Args)]
pub(crate) struct UndeliveredArgs {
    /// Only of this subscriber.
    #[arg(long, value_name = "NAME")]
    subscriber: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Runs a verb of `subscribers`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Subscribers, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Subscribers::List(paging) => list(&paging, session).await,
        Subscribers::Undelivered(args) => undelivered(&args, session).await,
    }
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["subscribers"]);
    let Some(page) = session.list::<SubscriberView>(call, paging).await? else { return Ok(Exit::Done) };
    let mut rows =
        Rows::new(session.out, &["SUBSCRIBER", "LAG", "OLDEST", "DELIVERED", "UNDELIVERED", "MISSED", "PARTITIONS"]);
    let warned = |count: u64| Word::new(count.to_string(), if count > 0 { Ink::Warn } else { Ink::Plain });
    for view in &page.items {
        rows.row(vec![
            view.name.as_str().into(),
            view.lag.to_string().into(),
            view.lag_ms.map(span).unwrap_or_default().into(),
            view.delivered.to_string().into(),
            warned(view.undelivered),
            warned(view.missed),
            view.partitions.len().to_string().into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("no subscribers yet; each appears once it has run");
    } else {
        rows.print(session.out)?;
    }
    if page.items.iter().any(|view| view.undelivered > 0) {
        session.out.hint("`stepfleet subscribers undelivered` shows what was not delivered, and why");
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn undelivered(args: &UndeliveredArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["subscribers", "undelivered"]).query("subscriber", args.subscriber.as_deref());
    let Some(page) = session.list::<UndeliveredView>(call, &args.paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(session.out, &["ID", "WHEN", "SUBSCRIBER", "EVENT", "TRIES", "ERROR"]);
    let now = now_ms();
    for view in &page.items {
        rows.row(vec![
            view.id.as_str().into(),
            ago(&view.at, now).into(),
            view.subscriber.as_str().into(),
            view.entry.as_str().into(),
            view.attempts.to_string().into(),
            shortened(&view.error, 200).into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("everything was delivered");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}
