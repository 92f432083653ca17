//! `quarantine`: log entries that could not be decided; each is kept with its bytes until somebody has looked.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::QuarantineView;

use super::runs::shortened;
use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::plain;
use crate::table::{Rows, pairs};
use crate::time::{ago, now_ms};

/// Digits of hex on one line.
const HEX_LINE: usize = 64;

/// `quarantine …`
#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// List what is in quarantine.
    #[command(after_help = "\
Examples:
  stepfleet quarantine list")]
    List(Paging),
    /// Show an entry with its bytes.
    #[command(after_help = "\
Examples:
  stepfleet quarantine show 3-1795132799999-0
  stepfleet quarantine show 3-1795132799999-0 --output json | jq -r .hex | xxd -r -p > entry")]
    Show(EntryArg),
    /// Throw entries away for good.
    #[command(after_help = "\
Examples:
  stepfleet quarantine discard 3-1795132799999-0
  stepfleet quarantine discard 3-1795132799999-0 3-1795132800001-0 --yes")]
    Discard(DiscardArgs),
}

/// One entry.
#[derive(Debug, Args)]
pub(crate) struct EntryArg {
    /// The id of the entry.
    #[arg(value_name = "ID")]
    id: String,
}

/// `quarantine discard`
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// The ids of the entries.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Runs a verb of `quarantine`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Quarantine, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Quarantine::List(paging) => list(&paging, session).await,
        Quarantine::Show(entry) => show(&entry.id, session).await,
        Quarantine::Discard(args) => discard(&args, session).await,
    }
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["quarantine"]);
    let Some(page) = session.list::<QuarantineView>(call, paging).await? else { return Ok(Exit::Done) };
    let mut rows = Rows::new(session.out, &["ENTRY", "WHEN", "BYTES", "WHY"]);
    let now = now_ms();
    for entry in &page.items {
        rows.row(vec![
            entry.id.as_str().into(),
            ago(&entry.at, now).into(),
            entry.bytes.to_string().into(),
            shortened(&entry.why, 200).into(),
        ]);
    }
    if rows.is_empty() {
        session.out.say("nothing is in quarantine");
    } else {
        rows.print(session.out)?;
    }
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

async fn show(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let answer = session.api.get(&["quarantine", id]).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let entry: QuarantineView = answer.read()?;
    pairs(
        out,
        &[
            ("entry", plain(&entry.id)),
            ("when", format!("{} ({})", ago(&entry.at, now_ms()), entry.at)),
            ("why", plain(&entry.why)),
            ("bytes", entry.bytes.to_string()),
        ],
    )?;
    if let Some(said) = &entry.entry {
        out.line(&format!("\n{}", serde_json::to_string_pretty(said).unwrap_or_default()))?;
    }
    if let Some(hex) = &entry.hex {
        out.line("")?;
        let digits: Vec<char> = plain(hex).chars().collect();
        digits.chunks(HEX_LINE).try_for_each(|line| out.line(&line.iter().collect::<String>()))?;
    }
    Ok(Exit::Done)
}

async fn discard(args: &DiscardArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let which = match args.ids.as_slice() {
        [id] => format!("entry `{id}`"),
        ids => format!("{} entries", ids.len()),
    };
    out.confirm(&format!("discard {which} for good?"), args.yes)?;
    for id in &args.ids {
        let answer = session.api.delete(&["quarantine", id]).send().await?;
        out.line(&if out.is_json() { answer.text.trim_end().to_owned() } else { format!("{id} discarded") })?;
    }
    Ok(Exit::Done)
}
