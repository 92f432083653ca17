//! `runs calls`: the recorded external calls of a run.

use clap::Args;
use stepfleet_coordinator::http::view::CallView;

use super::{Paging, RunArg, Session};
use crate::failure::{Exit, Failure};
use crate::out::Ink;
use crate::table::{Rows, Word};
use crate::time::clock;

/// `runs calls`
#[derive(Debug, Args)]
pub(crate) struct CallsArgs {
    #[command(flatten)]
    run: RunArg,
    #[command(flatten)]
    paging: Paging,
}

pub(super) async fn run(args: &CallsArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["runs", &args.run.id, "calls"]);
    let Some(mut page) = session.list::<CallView>(call, &args.paging).await? else { return Ok(Exit::Done) };
    page.items.sort_by(|a, b| (&a.step, a.generation, a.attempt, a.n).cmp(&(&b.step, b.generation, b.attempt, b.n)));
    let mut rows = Rows::new(session.out, &["STEP", "TRY", "CALL", "STATE", "BEGUN", "STATUS", "WHERE", "KEY", "NOTE"]);
    for call in &page.items {
        rows.row(vec![
            call.step.as_str().into(),
            call.attempt.to_string().into(),
            format!("{} {}", call.n, call.kind).into(),
            Word::new(call.state.as_str(), ink(call)),
            call.started_at.as_deref().map(clock).unwrap_or_default().into(),
            call.status.map(|status| status.to_string()).unwrap_or_default().into(),
            format!("{} {}", call.method, call.endpoint).trim().into(),
            call.key.as_str().into(),
            note(call).into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("no recorded calls");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

fn ink(call: &CallView) -> Ink {
    match call.state.as_str() {
        "completed" => Ink::Good,
        "failed" => Ink::Bad,
        "unknown" => Ink::Warn,
        _ => Ink::Busy,
    }
}

fn note(call: &CallView) -> String {
    let settled = call.settled_by.map(|attempt| format!("settled by try {attempt}"));
    settled.into_iter().chain(call.note.clone()).collect::<Vec<_>>().join(": ")
}
