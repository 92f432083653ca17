//! `audit`: who asked for what, when, and what became of it.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::AuditView;

use super::runs::shortened;
use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::table::{Rows, Word};
use crate::time::{ago, now_ms};

/// `audit …`
#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// List what was asked for, the newest first.
    #[command(after_help = "\
Examples:
  stepfleet audit list --since 24h
  stepfleet audit list --actor cli:ada --action run.
  stepfleet audit list --target run:0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10
  stepfleet audit list --since 2026-11-19T00:00:00Z --until 2026-11-20T00:00:00Z --output json")]
    List(ListArgs),
}

/// `audit list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only of this actor.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only of this action, `run.cancel`; or of all that begin so, `run.`.
    #[arg(long, value_name = "WORD")]
    action: Option<String>,
    /// Only about this target, `run:<id>`; or about all that begin so, `worker:`.
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Not before this time: as `2026-11-19T23:59:59Z`, or so long ago, as `24h`.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after this time, written the same way.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Runs a verb of `audit`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Audit, session: &Session<'_>) -> Result<Exit, Failure> {
    let Audit::List(args) = verb;
    let call = || {
        let call = session.api.get(&["audit"]).query("actor", args.actor.as_deref());
        let call = call.query("action", args.action.as_deref()).query("target", args.target.as_deref());
        call.query("since", args.since.as_deref()).query("until", args.until.as_deref())
    };
    let Some(page) = session.list::<AuditView>(call, &args.paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(session.out, &["WHEN", "ACTOR", "ACTION", "OUTCOME", "TARGET", "WHY"]);
    let now = now_ms();
    for entry in &page.items {
        let why = [entry.message.as_deref(), entry.reason.as_deref()].into_iter().flatten().collect::<Vec<_>>();
        let ink = if entry.outcome == "refused" { Ink::Warn } else { Ink::Plain };
        rows.row(vec![
            ago(&entry.at, now).into(),
            entry.actor.as_str().into(),
            entry.action.as_str().into(),
            Word::new(&entry.outcome, ink),
            entry.target.as_str().into(),
            shortened(&why.join("; "), 200).into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("nobody asked for anything like this");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}
