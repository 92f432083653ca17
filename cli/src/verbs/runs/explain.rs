//! `runs explain`: why a run does not go on. One sentence first, the facts under it, and what to do.

use clap::Args;
use stepfleet_coordinator::http::view::{Explanation, RunExplanation};

use super::{RunArg, Session};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out, plain};

/// `runs explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    run: RunArg,
    /// Only this step.
    #[arg(value_name = "STEP")]
    step: Option<String>,
}

pub(super) async fn run(args: &ExplainArgs, session: &Session<'_>) -> Result<Exit, Failure> {
    let call = session.api.get(&["runs", &args.run.id, "explain"]).query("step", args.step.as_deref());
    let answer = call.send().await?;
    let out = session.out;
    if out.is_json() {
        out.line(answer.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let found: RunExplanation = answer.read()?;
    match found.steps.first().filter(|_| args.step.is_some()) {
        Some(step) => show(&step.why, out)?,
        None => {
            show(&found.run, out)?;
            for step in found.steps.iter().filter(|step| step.why.sentence != found.run.sentence) {
                let state = out.ink(step.why.state.as_str(), Ink::of(step.why.state));
                out.line(&format!("\n{} ({state}): {}", plain(&step.step), plain(&step.why.sentence)))?;
            }
            if found.steps_left_out > 0 {
                out.say(&format!("{} more steps are not finished; name one to see why", found.steps_left_out));
            }
        }
    }
    Ok(Exit::Done)
}

fn show(what: &Explanation, out: &Out) -> Result<(), Failure> {
    out.line(&plain(&what.sentence))?;
    for (name, value) in &what.details {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.line(&format!("  {:<20} {}", plain(&name.replace('_', " ")), plain(&text)))?;
    }
    for next in &what.next {
        out.hint(&plain(next));
    }
    Ok(())
}
