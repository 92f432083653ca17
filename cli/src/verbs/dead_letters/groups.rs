//! `dead-letters groups` and `dead-letters discard`.

use clap::Args;
use stepfleet_coordinator::http::view::{DiscardRequest, GroupView, LetterDiscarded};

use super::super::{Paging, Session};
use super::filter::Filter;
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::table::{Rows, Word};
use crate::time::{ago, now_ms};
use crate::verbs::runs::shortened;

/// `dead-letters groups`
#[derive(Debug, Args)]
pub(crate) struct GroupsArgs {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    paging: Paging,
}

/// `dead-letters discard`
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// The dead letters to close for good.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Lists groups.
///
/// # Errors
/// Whatever kept it from its answer.
pub(super) async fn list(args: &GroupsArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let call = || args.filter.apply(session.api.get(&["dead-letters", "groups"]));
    let Some(page) = session.list::<GroupView>(call, &args.paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(out, &["GROUP", "COUNT", "HANDLER", "CATEGORY", "FIRST", "LAST", "VERSIONS", "ERROR"]);
    let now = now_ms();
    for group in &page.items {
        let code = group.code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default();
        rows.row(vec![
            group.fingerprint.as_str().into(),
            group.count.to_string().into(),
            group.handler.as_str().into(),
            Word::new(group.category.as_str(), Ink::Bad),
            ago(&group.first_seen, now).into(),
            ago(&group.last_seen, now).into(),
            group.worker_versions.join(",").into(),
            shortened(&format!("{code}{}", group.message), 160).into(),
        ]);
    }
    if rows.is_empty() {
        out.say("no dead letters");
    } else {
        rows.print(out)?;
        out.hint("see the letters of one with `stepfleet dead-letters list --fingerprint GROUP`");
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

/// Closes letters for good.
///
/// # Errors
/// Whatever kept it from its answer.
pub(super) async fn discard(args: DiscardArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    out.confirm(&format!("discard {} for good?", args.ids.join(", ")), args.yes)?;
    let request = DiscardRequest { reason: args.reason };
    let mut worst = Exit::Done;
    for id in &args.ids {
        match session.api.post(&["dead-letters", id, "discard"]).json(&request).send().await {
            Ok(answer) if out.is_json() => out.line(answer.text.trim_end())?,
            Ok(answer) => {
                let discarded: LetterDiscarded = answer.read()?;
                let word = if discarded.state.is_some() { "discarded" } else { "taken, not answered yet" };
                out.line(&format!("{id} {word}"))?;
            }
            Err(failure) if args.ids.len() == 1 || failure.exit() == Exit::Unreachable => return Err(failure),
            // The others can still be discarded.
            Err(failure) => {
                out.failure(&failure);
                worst = failure.exit();
            }
        }
    }
    Ok(worst)
}
