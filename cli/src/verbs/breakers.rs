//! `breakers`: what is held back because a dependency is down, and the switch by hand.

use clap::{Args, Subcommand};
use stepfleet_coordinator::http::view::{BreakerView, CommandRequest, OpenRequest};
use stepfleet_protocol::duration::Millis;

use super::{Paging, Session};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out, plain};
use crate::table::{Rows, Word, pairs};
use crate::time::{ago, now_ms, span};

/// `breakers …`
#[derive(Debug, Subcommand)]
pub(crate) enum Breakers {
    /// List the circuit breakers that were heard of within a day.
    #[command(after_help = "\
Examples:
  stepfleet breakers list
  stepfleet breakers list --output json | jq '.items[] | select(.state != \"closed\")'")]
    List(Paging),
    /// Show a circuit breaker: why it is open, what is parked behind it, when it is tried again.
    #[command(after_help = "\
Examples:
  stepfleet breakers show handler:charge
  stepfleet breakers show target:api.example.com")]
    Show(Named),
    /// Open a circuit breaker: its steps wait, and no attempt is lost.
    #[command(after_help = "\
Examples:
  stepfleet breakers open handler:charge --reason 'the bank is down until noon'
  stepfleet breakers open target:api.example.com --for 30m --reason maintenance")]
    Open(OpenArgs),
    /// Close a circuit breaker: what is parked is released in growing waves.
    #[command(after_help = "\
Examples:
  stepfleet breakers close handler:charge --reason 'the bank is back'")]
    Close(Switch),
    /// Close a circuit breaker, forget what it counted, and release what is parked at once.
    #[command(after_help = "\
Examples:
  stepfleet breakers reset handler:charge --reason 'false alarm'")]
    Reset(Switch),
}

/// Which circuit breaker.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its name: `handler:<name>` or `target:<text>`.
    #[arg(value_name = "BREAKER")]
    name: String,
}

/// `breakers close` and `breakers reset`
#[derive(Debug, Args)]
pub(crate) struct Switch {
    #[command(flatten)]
    named: Named,
    /// Why, for the audit.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// `breakers open`
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    #[command(flatten)]
    switch: Switch,
    /// For how long; until somebody closes it if it is left out.
    #[arg(long = "for", value_name = "DURATION", value_parser = Millis::parse)]
    duration: Option<Millis>,
}

/// Runs a verb of `breakers`.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(verb: Breakers, session: &Session<'_>) -> Result<Exit, Failure> {
    match verb {
        Breakers::List(paging) => list(&paging, session).await,
        Breakers::Show(named) => {
            let answer = session.api.get(&["breakers", &named.name]).send().await?;
            show(&answer, session.out)
        }
        Breakers::Open(args) => {
            let OpenArgs { switch: Switch { named, reason }, duration } = args;
            let body = OpenRequest { reason, duration: duration.map(|d| d.to_string()) };
            let answer = session.api.post(&["breakers", &named.name, "open"]).json(&body).send().await?;
            show(&answer, session.out)
        }
        Breakers::Close(switch) => close(switch, "close", session).await,
        Breakers::Reset(switch) => close(switch, "reset", session).await,
    }
}

async fn close(switch: Switch, verb: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    let body = CommandRequest { reason: switch.reason };
    let answer = session.api.post(&["breakers", &switch.named.name, verb]).json(&body).send().await?;
    show(&answer, session.out)
}

async fn list(paging: &Paging, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = || session.api.get(&["breakers"]);
    let Some(page) = session.list::<BreakerView>(call, paging).await? else { return Ok(Exit::Done) };
    if page.items.is_empty() {
        session.out.say("no circuit breaker was heard of within a day");
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(session.out, &["BREAKER", "STATE", "SINCE", "PARKED", "OK", "FAILED", "WHY"]);
    let now = now_ms();
    for breaker in &page.items {
        rows.row(vec![
            plain(&breaker.name).into(),
            state(&breaker.state),
            breaker.since.as_deref().map(|at| ago(at, now)).unwrap_or_default().into(),
            breaker.parked.to_string().into(),
            breaker.ok.to_string().into(),
            breaker.failed.to_string().into(),
            plain(&breaker.reason).into(),
        ]);
    }
    rows.print(session.out)?;
    session.more(page.next.as_deref());
    Ok(Exit::Done)
}

fn state(text: &str) -> Word {
    let ink = match text {
        "closed" => Ink::Good,
        "open" => Ink::Bad,
        _ => Ink::Warn,
    };
    Word::new(text, ink)
}

fn show(answer: &crate::api::Answer, out: &Out) -> Result<Exit, Failure> {
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let breaker: BreakerView = answer.read()?;
    let now = now_ms();
    let mut all: Vec<(&str, String)> = vec![("breaker", plain(&breaker.name)), ("state", breaker.state.clone())];
    if let Some(since) = &breaker.since {
        all.push(("since", format!("{since} ({})", ago(since, now))));
    }
    match (&breaker.until, breaker.state.as_str()) {
        (Some(until), "open") => all.push(("tried again", until.clone())),
        (None, "open") => all.push(("tried again", "when somebody closes it".into())),
        _ => {}
    }
    if !breaker.reason.is_empty() {
        all.push(("why", plain(&breaker.reason)));
        all.push(("by", plain(&breaker.actor)));
    }
    all.push(("parked", breaker.parked.to_string()));
    all.push(("window", format!("{} ok, {} failed, {} failed in a row", breaker.ok, breaker.failed, breaker.row)));
    if let Some(p) = &breaker.policy {
        let opens = if p.enabled {
            format!(
                "after {} failures in a row or {:.0} % of calls, from {} calls in {} on",
                p.failures,
                p.ratio * 100.0,
                p.minimum_calls,
                span(p.window_ms)
            )
        } else {
            "only by hand".to_owned()
        };
        all.push(("opens", opens));
        let again = format!("for {}, at most {}; {} jobs try", span(p.break_ms), span(p.break_cap_ms), p.canaries);
        all.push(("stays open", again));
    }
    pairs(out, &all)?;
    Ok(Exit::Done)
}
