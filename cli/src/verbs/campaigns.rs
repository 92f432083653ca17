//! `campaigns`: replays, or closes, many dead letters. The coordinator runs them: this program may end meanwhile.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stepfleet_coordinator::http::view::{CampaignItem, CampaignView, Page, Replayed};

use super::dead_letters::filter::Filter;
use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::{Out, plain};
use crate::table::{Rows, pairs};
use crate::time::{ago, now_ms};

/// Time between two looks of `watch`.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Items of one page.
const PAGE: usize = 100;

/// `campaigns …`
#[derive(Debug, Subcommand)]
pub(crate) enum Campaigns {
    /// Begin a campaign over the dead letters that are open now.
    #[command(after_help = "\
Examples:
  stepfleet campaigns begin --handler charge --dry-run
  stepfleet campaigns begin --fingerprint 4f1c9a7be2d3508a --canary 5 --rate 50 --stop-when-failing 20 --reason 'bank is back'
  stepfleet campaigns begin --discard --workflow old-report --older-than 30d --reason 'nobody needs them'")]
    Begin(Box<BeginArgs>),
    /// List the newest campaigns.
    #[command(after_help = "\
Examples:
  stepfleet campaigns list")]
    List(Paging),
    /// Show a campaign and how far it is.
    #[command(after_help = "\
Examples:
  stepfleet campaigns show 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Show(Named),
    /// Follow a campaign until it has ended.
    #[command(after_help = "\
Examples:
  stepfleet campaigns watch 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Watch(Named),
    /// Hold a campaign: it takes up no more letters.
    #[command(after_help = "\
Examples:
  stepfleet campaigns pause 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Pause(Named),
    /// Let a held campaign go on.
    #[command(after_help = "\
Examples:
  stepfleet campaigns resume 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Resume(Named),
    /// End a campaign. What it has replayed goes on.
    #[command(after_help = "\
Examples:
  stepfleet campaigns cancel 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Cancel(Named),
    /// Tell what became of each letter, as CSV, or as JSON with `--output json` (one item a line).
    #[command(after_help = "\
Examples:
  stepfleet campaigns export 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10 > report.csv")]
    Export(Named),
}

/// Which campaign.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its id.
    #[arg(value_name = "CAMPAIGN")]
    id: String,
}

/// `campaigns begin`
#[derive(Debug, Args)]
pub(crate) struct BeginArgs {
    /// Close the letters for good instead of replaying them.
    #[arg(long)]
    discard: bool,
    /// All open letters are meant, where no filter says which.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Try so many first; the others follow if none of them failed again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    canary: u32,
    /// Letters a second; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u32,
    /// Stop when so many per cent of the letters that ended, 10 at least, failed again; 0 for never.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    stop_when_failing: u8,
    /// Take up at most so many letters.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Also letters whose step came back three times or more.
    #[arg(long)]
    force: bool,
    /// Why, for the history and the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only count the letters that are meant.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

impl BeginArgs {
    fn body(&self, dry_run: bool) -> Value {
        let mut body = json!({
            "kind": if self.discard { "discard" } else { "replay" },
            "filter": self.filter.body(),
            "canary": self.canary,
            "rate": self.rate,
            "stop_when_failing": self.stop_when_failing,
            "force": self.force,
            "dry_run": dry_run,
        });
        for (name, value) in [("reason", self.reason.clone().map(Value::from)), ("max", self.max.map(Value::from))] {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }
}

/// Runs a verb of `campaigns`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Campaigns, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Campaigns::Begin(args) => begin(&args, session).await,
        Campaigns::List(paging) => list(&paging, session).await,
        Campaigns::Show(named) => show(&session.api.get(&["campaigns", &named.id]).send().await?, session.out),
        Campaigns::Watch(named) => watch(&named.id, session).await,
        Campaigns::Pause(named) => want(&named.id, "pause", session).await,
        Campaigns::Resume(named) => want(&named.id, "resume", session).await,
        Campaigns::Cancel(named) => want(&named.id, "cancel", session).await,
        Campaigns::Export(named) => export(&named.id, session).await,
    }
}

async fn begin(args: &BeginArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    if args.filter.is_empty() != args.all {
        return Err(Failure::usage("which letters? give filters, or `--all` for every open dead letter"));
    }
    let counted = session.api.post(&["campaigns"]).json(&args.body(true)).send().await?;
    let found: Replayed = counted.read()?;
    if args.dry_run {
        if session.out.is_json() {
            session.out.line(counted.text.trim_end())?;
        } else {
            session.out.line(&format!("{} dead letters are meant", found.matched))?;
        }
        return Ok(Exit::Done);
    }
    let does = if args.discard { "close for good" } else { "replay" };
    session.out.confirm(&format!("{does} {} dead letters?", found.matched), args.yes)?;
    let answer = session.api.post(&["campaigns"]).json(&args.body(false)).send().await?;
    let campaign: CampaignView = answer.read()?;
    if args.detach {
        return show(&answer, session.out);
    }
    session.out.hint(&format!("it goes on without this program: `stepfleet campaigns watch {}`", campaign.id));
    watch(&campaign.id, session).await
}

async fn want(id: &str, verb: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let answer = session.api.post(&["campaigns", id, verb]).json(&json!({})).send().await?;
    show(&answer, session.out)
}

async fn watch(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let mut told = String::new();
    loop {
        let answer = session.api.get(&["campaigns", id]).send().await?;
        let campaign: CampaignView = answer.read()?;
        let line = progress(&campaign);
        if line != told {
            session.out.say(&line);
            told = line;
        }
        if campaign.phase.is_final() {
            return show(&answer, session.out);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn progress(campaign: &CampaignView) -> String {
    let o = &campaign.outcomes;
    format!(
        "{}: {} completed, {} failed again, {} discarded, {} skipped, {} under way",
        campaign.phase.as_str(),
        o.completed,
        o.failed_again,
        o.discarded,
        o.skipped,
        campaign.open
    )
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["campaigns"]);
    let Some(page) = session.list::<CampaignView>(call, paging).await? else { return Ok(Exit::Done) };
    if page.items.is_empty() {
        session.out.say("no campaigns");
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(session.out, &["CAMPAIGN", "WHEN", "BY", "PROGRESS"]);
    let now = now_ms();
    for campaign in &page.items {
        let progress = progress(campaign);
        rows.row(vec![
            campaign.id.as_str().into(),
            ago(&campaign.at, now).into(),
            plain(&campaign.actor).into(),
            progress.into(),
        ]);
    }
    rows.print(session.out)?;
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

fn show(answer: &crate::api::Answer, out: &Out) -> Result<Exit, Failure> {
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let campaign: CampaignView = answer.read()?;
    let all = [
        ("campaign", campaign.id.clone()),
        ("progress", progress(&campaign)),
        ("why", campaign.why.as_deref().map(plain).unwrap_or_default()),
        ("by", plain(&campaign.actor)),
        ("reason", campaign.reason.as_deref().map(plain).unwrap_or_default()),
        ("begun", campaign.at.clone()),
    ];
    pairs(out, &all)?;
    Ok(Exit::Done)
}

async fn export(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let csv = !session.out.is_json();
    if csv {
        session.out.line("letter,run,step,outcome,note")?;
    }
    let mut cursor: Option<String> = None;
    loop {
        let call = session.api.get(&["campaigns", id, "items"]).query("limit", Some(PAGE));
        let page: Page<CampaignItem> = call.query("cursor", cursor.as_deref()).send().await?.read()?;
        for item in &page.items {
            let line = serde_json::to_value(item).map_err(|error| Failure::failed(error.to_string()))?;
            if csv {
                let cell = |name: &str| quoted(line[name].as_str().unwrap_or_default());
                session.out.line(&["letter", "run", "step", "outcome", "note"].map(cell).join(","))?;
            } else {
                session.out.line(&line.to_string())?;
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(Exit::Done);
        }
    }
}

/// A cell of CSV as RFC 4180 writes it. What a table would take for a formula is text.
fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_it_must_be() {
        let cells = ["plain", "a,b", "say \"no\"", "=1+1"].map(quoted);
        assert_eq!(cells, ["plain", "\"a,b\"", "\"say \"\"no\"\"\"", "'=1+1"]);
    }
}
