//! `partitions`: who owns what, and adding more.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{AddPartitions, Page, PartitionView};
use stepfleet_protocol::limits::PARTITIONS_MAX;

use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out};
use crate::table::{Rows, Word};

/// `partitions …`
#[derive(Debug, Subcommand)]
pub(crate) enum Partitions {
    /// List the partitions, who owns each, and what it has to do.
    #[command(after_help = "\
Examples:
  stepfleet partitions list
  stepfleet partitions list --output json | jq '.items[] | select(.owner == null)'")]
    List(Paging),
    /// Add partitions, for good: runs never move, and partitions are never taken away.
    #[command(after_help = "\
Examples:
  stepfleet partitions add 8")]
    Add(AddArgs),
}

/// `partitions add`
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// How many more.
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..i64::from(PARTITIONS_MAX)))]
    more: u16,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Runs a verb of `partitions`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Partitions, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Partitions::List(paging) => list(&paging, session).await,
        Partitions::Add(args) => add(&args, session).await,
    }
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["partitions"]);
    let Some(page) = session.list::<PartitionView>(call, paging).await? else { return Ok(Exit::Done) };
    table(&page.items, session.out)?;
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

fn table(partitions: &[PartitionView], out: &Out) -> Result<(), Failure> {
    let headings = ["PARTITION", "SLOT", "LAG", "ACTIVE", "TIMERS", "TODO", "DEAD", "QUARANTINE", "OWNER"];
    let mut rows = Rows::new(out, &headings);
    for partition in partitions {
        let owner = match &partition.owner {
            Some(owner) => Word::from(owner),
            None => Word::new("nobody", Ink::Bad),
        };
        let warned = |count: u64| Word::new(count.to_string(), if count > 0 { Ink::Warn } else { Ink::Plain });
        rows.row(vec![
            partition.id.to_string().into(),
            partition.slot.to_string().into(),
            partition.log_lag.to_string().into(),
            partition.active.to_string().into(),
            partition.timers.to_string().into(),
            partition.todo.to_string().into(),
            warned(partition.dead_letters),
            warned(partition.quarantine),
            owner,
        ]);
    }
    rows.print(out)
}

async fn add(args: &AddArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let out = session.out;
    let now = count(session).await?;
    let wanted = now.saturating_add(args.more);
    if wanted > PARTITIONS_MAX {
        return Err(Failure::usage(format!("there are `{now}` partitions; at most `{PARTITIONS_MAX}` are allowed")));
    }
    out.confirm(&format!("go from {now} to {wanted} partitions, for good?"), args.yes)?;
    let answer = session.api.post(&["partitions"]).json(&AddPartitions { count: wanted }).send().await?;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    out.line(&format!("{wanted} partitions"))?;
    out.hint("coordinators claim them within seconds; see `stepfleet partitions list`");
    Ok(Exit::Done)
}

/// How many partitions there are. They are numbered without gaps.
async fn count(session: &Session<'_>) -> Result<u16, Failure> {
    let mut count = 0;
    let mut cursor: Option<String> = None;
    loop {
        let call = session.api.get(&["partitions"]).query("cursor", cursor.as_deref());
        let page: Page<PartitionView> = call.send().await?.read()?;
        count = page.items.iter().map(|partition| partition.id + 1).fold(count, u16::max);
        cursor = page.next;
        if cursor.is_none() {
            return Ok(count);
        }
    }
}
