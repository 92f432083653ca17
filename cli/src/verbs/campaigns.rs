//! `campaigns`: replays or closes many dead letters. The coordinator runs them: this program may end meanwhile. They begin with
//! `dead-letters replay` and `dead-letters purge`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stepfleet_coordinator::http::view::{CampaignDryRun, CampaignItem, CampaignView, CommandRequest, Page};
use stepfleet_protocol::duration::Millis;

use super::dead_letters::filter::Filter;
use super::dead_letters::patch::Patch;
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
    Pause(Wish),
    /// Let a held campaign go on.
    #[command(after_help = "\
Examples:
  stepfleet campaigns resume 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Resume(Wish),
    /// End a campaign. What it has replayed goes on.
    #[command(after_help = "\
Examples:
  stepfleet campaigns cancel 0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10")]
    Cancel(Wish),
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

/// What is wished of a campaign.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    #[command(flatten)]
    named: Named,
    /// Why, for the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// What `dead-letters replay` and `purge` say of many letters.
#[derive(Debug, Args)]
pub(crate) struct Many {
    /// All of them, or all that the filters let through.
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Letters a second: `50/s` or `50`; 0 for no limit.
    #[arg(long, value_name = "N/s", default_value = "0", value_parser = rate)]
    rate: u32,
    /// Take up at most so many letters.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Why, for the history and the audit.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Only say how many are meant.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not wait for the end of the campaign.
    #[arg(long)]
    detach: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// What `dead-letters replay` says beside that.
#[derive(Debug, Args)]
pub(crate) struct Caution {
    /// Try so many first; the others follow if none of them failed again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    canary: u32,
    /// Let the rate grow over this time, from a tenth of it: `60s`.
    #[arg(long, value_name = "TIME")]
    ramp: Option<Millis>,
    /// Stop when so many per cent of the letters that ended, 10 at least, failed again: `20%`; 0 for never.
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    stop_when_failing: u8,
    /// Wait for each letter until a live worker of its handler and queue has a version that fits: `>=1.4`.
    #[arg(long, value_name = "VERSIONS")]
    when_version: Option<String>,
    /// Also letters whose step came back three times or more.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) patch: Patch,
}

impl Caution {
    /// Whether something is said that has no meaning for single letters.
    pub(super) fn is_for_many(&self) -> bool {
        self.canary > 0
            || self.stop_when_failing > 0
            || self.force
            || self.ramp.is_some()
            || self.when_version.is_some()
    }
}

fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().map_err(|_| "allowed is a whole number of letters a second: `50/s` or `50`".to_owned())
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|number| *number <= 100);
    number.ok_or_else(|| "allowed are 0 to 100 per cent: `20%` or `20`".to_owned())
}

impl Many {
    /// Whether letters are meant by what they are, and not by their ids.
    pub(super) fn is_said(&self) -> bool {
        self.all || !self.filter.is_empty()
    }

    fn body(&self, caution: Option<&Caution>) -> Result<Value, Failure> {
        let mut body = json!({
            "kind": if caution.is_some() { "replay" } else { "discard" },
            "filter": self.filter.body(),
            "all": self.all,
            "rate": self.rate,
            "dry_run": true,
        });
        if let Some(caution) = caution {
            body["canary"] = caution.canary.into();
            body["stop_when_failing"] = caution.stop_when_failing.into();
            body["force"] = caution.force.into();
            body["ramp_ms"] = caution.ramp.map_or(0, |ramp| ramp.0).into();
            let patch = caution.patch.read()?;
            for (name, value) in [("patch", patch), ("when_version", caution.when_version.clone().map(Value::from))] {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
        }
        for (name, value) in [("reason", self.reason.clone().map(Value::from)), ("max", self.max.map(Value::from))] {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        Ok(body)
    }
}

/// Runs a verb of `campaigns`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Campaigns, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Campaigns::List(paging) => list(&paging, session).await,
        Campaigns::Show(named) => show(&session.api.get(&["campaigns", &named.id]).send().await?, session.out),
        Campaigns::Watch(named) => watch(&named.id, session).await,
        Campaigns::Pause(wish) => want(wish, "pause", session).await,
        Campaigns::Resume(wish) => want(wish, "resume", session).await,
        Campaigns::Cancel(wish) => want(wish, "cancel", session).await,
        Campaigns::Export(named) => export(&named.id, session).await,
    }
}

/// Begins a campaign: of replays with `caution`, else of letters that are closed for good. Waits for its end unless told
/// otherwise.
///
/// # Errors
/// The answer to the question was no; or whatever kept it from its answer.
pub(super) async fn begin(many: &Many, caution: Option<&Caution>, session: &Session<'_>) -> Result<Exit, Failure> {
    // Read once: an input may come from stdin.
    let mut body = many.body(caution)?;
    let counted = session.api.post(&["campaigns"]).json(&body).send().await?;
    let found: CampaignDryRun = counted.read()?;
    let count = format!("{}{}", found.matched, if found.more { " or more" } else { "" });
    let which = many.filter.described();
    if many.dry_run {
        if session.out.is_json() {
            session.out.line(counted.text.trim_end())?;
        } else {
            let done = if caution.is_some() { "replayed" } else { "closed for good" };
            session.out.line(&format!("{count} would be {done}: {which}"))?;
        }
        return Ok(Exit::Done);
    }
    match caution {
        Some(_) => session.out.confirm(&format!("replay {which}: {count}?"), many.yes)?,
        None => {
            let what = format!("close {which} for good: {count}; type the number of letters to go on");
            session.out.confirm_by_typing(&what, &found.matched.to_string(), many.yes)?;
        }
    }
    body["dry_run"] = false.into();
    let answer = session.api.post(&["campaigns"]).json(&body).send().await?;
    let campaign: CampaignView = answer.read()?;
    if many.detach {
        return show(&answer, session.out);
    }
    session.out.hint(&format!("it goes on without this program: `stepfleet campaigns watch {}`", campaign.id));
    watch(&campaign.id, session).await
}

async fn want(wish: Wish, verb: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let body = CommandRequest { reason: wish.reason };
    let answer = session.api.post(&["campaigns", &wish.named.id, verb]).json(&body).send().await?;
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
            show(&answer, session.out)?;
            let stopped = campaign.phase.as_str() == "stopped";
            return Ok(if stopped { Exit::Failed } else { Exit::Done });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn progress(campaign: &CampaignView) -> String {
    let o = &campaign.outcomes;
    // Why it waits or stops belongs to where it stands.
    let why = campaign.why.as_deref().map(|why| format!(" ({})", plain(why))).unwrap_or_default();
    format!(
        "{}{why}: {} completed, {} failed again, {} discarded, {} skipped, {} under way",
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
        ("rate", shown_rate(&campaign)),
        ("patch", campaign.patch.as_ref().map(|patch| plain(&patch.to_string())).unwrap_or_default()),
        ("version", campaign.when_version.as_deref().map(plain).unwrap_or_default()),
        ("by", plain(&campaign.actor)),
        ("reason", campaign.reason.as_deref().map(plain).unwrap_or_default()),
        ("begun", campaign.at.clone()),
    ];
    pairs(out, &all)?;
    Ok(Exit::Done)
}

/// Letters a second, and how the rate grows; empty without a limit.
fn shown_rate(campaign: &CampaignView) -> String {
    let ramp = if campaign.ramp_ms > 0 { format!(", reached in {}", Millis(campaign.ramp_ms)) } else { String::new() };
    if campaign.rate == 0 { String::new() } else { format!("{}/s{ramp}", campaign.rate) }
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
    fn rates_and_shares_may_have_their_units() {
        assert_eq!((rate("50/s"), rate("7")), (Ok(50), Ok(7)));
        assert_eq!((percent("20%"), percent("100")), (Ok(20), Ok(100)));
        assert!(rate("50/m").is_err() && rate("-1").is_err() && percent("101%").is_err() && percent("x").is_err());
    }

    #[test]
    fn a_cell_is_quoted_where_it_must_be() {
        let cells = ["plain", "a,b", "say \"no\"", "=1+1"].map(quoted);
        assert_eq!(cells, ["plain", "\"a,b\"", "\"say \"\"no\"\"\"", "'=1+1"]);
    }
}
