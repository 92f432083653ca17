//! `limits`: how much of one handler, or with one target, the fleet does, and what waits for it.

use clap::Subcommand;
use stepfleet_coordinator::http::view::LimitView;

use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::plain;
use crate::table::Rows;

/// `limits …`
#[derive(Debug, Subcommand)]
pub(crate) enum Limits {
    /// List the limits with what is in use and what waits.
    ///
    /// Limits are written in the fleet's policies: `limits: { "handler:charge-card": { concurrency: 20 } }`; see `policies apply`.
    #[command(after_help = "\
Examples:
  stepfleet limits list
  stepfleet limits list --output json | jq '.items[] | select(.parked > 0)'")]
    List(Paging),
}

/// Runs a verb of `limits`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Limits, session: &Session<'_>) -> Result<Exit, Failure> {
    let Limits::List(paging) = verb;
    let call = || session.api.get(&["limits"]);
    let Some(page) = session.list::<LimitView>(call, &paging).await? else { return Ok(Exit::Done) };
    if page.items.is_empty() {
        session.out.say("the fleet's policies have no limits");
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(session.out, &["LIMIT", "IN USE", "OF", "RATE", "BURST", "PARKED"]);
    let or_dash = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    for limit in &page.items {
        rows.row(vec![
            plain(&limit.name).into(),
            or_dash(limit.used).into(),
            or_dash(limit.concurrency).into(),
            limit.rate.as_deref().unwrap_or("-").into(),
            or_dash(limit.burst).into(),
            limit.parked.to_string().into(),
        ]);
    }
    rows.print(session.out)?;
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}
