//! `runs show` and `runs history`: a run for people, with what can be done about it.

use stepfleet_coordinator::http::view::{AttemptView, HistoryView, Page, RunView, StepView};
use stepfleet_protocol::state::State;

use super::{Session, steps_of, workflow_of};
use crate::api::Answer;
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out, plain};
use crate::table::{Rows, Word, pairs};
use crate::time::{ago, clock, now_ms, span, unix_ms};

/// Steps that are read for one table.
const STEPS_SHOWN_MAX: usize = 1_000;
/// Characters of an input that are shown.
const INPUT_CHARS_MAX: usize = 400;

pub(super) async fn run(id: &str, session: &Session<'_>) -> Result<Exit, Failure> {
    if session.out.is_json() {
        session.out.line(session.api.get(&["runs", id]).send().await?.text.trim_end())?;
        return Ok(Exit::Done);
    }
    let (run, _) = read(id, session).await?;
    header(&run, session.out)?;
    steps(&run, session.out)?;
    for note in &run.notes {
        session.out.say(&format!("note: {}", plain(note)));
    }
    for hint in hints(&run) {
        session.out.hint(&hint);
    }
    Ok(Exit::Done)
}

/// A run with its steps, at most [`STEPS_SHOWN_MAX`] or so of them, and the API's own words about it.
///
/// # Errors
/// As every request.
pub(crate) async fn read(id: &str, session: &Session<'_>) -> Result<(RunView, Answer), Failure> {
    let answer = session.api.get(&["runs", id]).send().await?;
    let mut run: RunView = answer.read()?;
    while run.step_list.len() < STEPS_SHOWN_MAX
        && let Some(cursor) = run.steps_next.take()
    {
        let call = session.api.get(&["runs", id, "steps"]).query("limit", Some(100)).query("cursor", Some(cursor));
        let page: Page<StepView> = call.send().await?.read()?;
        run.step_list.extend(page.items);
        run.steps_next = page.next;
    }
    Ok((run, answer))
}

fn header(run: &RunView, out: &Out) -> Result<(), Failure> {
    let summary = &run.summary;
    let now = now_ms();
    let mut state = out.ink(summary.state.as_str(), Ink::of(summary.state));
    if let Some(ending) = &run.ending {
        state += &format!(" (being stopped: {})", plain(ending));
    } else if summary.review {
        state += " (a person has to look: a step failed for want of good data)";
    } else if run.in_progress {
        state += " (a large transition is under way)";
    }
    match run.compensation.as_str() {
        "" | "none" => {}
        word => state += &format!(", compensation {}", plain(word)),
    }
    let took = match (summary.duration_ms, unix_ms(&summary.created_at)) {
        (Some(ms), _) => span(ms),
        (None, Some(created)) => format!("{} so far", span(now.saturating_sub(created))),
        (None, None) => String::new(),
    };
    pairs(
        out,
        &[
            ("run", summary.id.to_string()),
            ("workflow", plain(&workflow_of(summary))),
            ("state", state),
            ("steps", steps_of(summary)),
            ("submitted", format!("{} ({})", ago(&summary.created_at, now), summary.created_at)),
            ("took", took),
            ("partition", run.partition.to_string()),
            ("input", run.input.as_ref().map(input).unwrap_or_default()),
        ],
    )
}

fn input(input: &stepfleet_coordinator::http::view::ValueView) -> String {
    match (&input.value, &input.note) {
        (Some(value), _) => shortened(&value.to_string(), INPUT_CHARS_MAX),
        (None, Some(note)) => format!("{} bytes: {}", input.bytes, plain(note)),
        (None, None) => format!("{} bytes", input.bytes),
    }
}

/// At most so many characters, with a mark where something was left out.
pub(crate) fn shortened(text: &str, chars: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn steps(run: &RunView, out: &Out) -> Result<(), Failure> {
    let mut rows = Rows::new(out, &["STEP", "STATE", "TRIES", "WORKER", "TOOK", "ERROR"]);
    for step in &run.step_list {
        let error = run.errors.iter().find(|error| error.step == step.name);
        rows.row(vec![
            step.name.as_str().into(),
            Word::new(step.state.as_str(), Ink::of(step.state)),
            tries(step).into(),
            step.worker.as_deref().map(worker_name).unwrap_or_default().into(),
            step.duration_ms.map(span).unwrap_or_default().into(),
            error.filter(|_| step.state != State::Completed).map(error_text).unwrap_or_default().into(),
        ]);
    }
    if rows.is_empty() {
        return Ok(());
    }
    out.line("")?;
    rows.print(out)?;
    if run.steps_next.is_some() {
        let (shown, total) = (run.step_list.len(), run.summary.steps.total);
        out.say(&format!("{shown} of {total} steps are shown; the others with `--output json`"));
    }
    Ok(())
}

fn tries(step: &StepView) -> String {
    let mut text = if step.attempts == 0 { String::new() } else { step.attempts.to_string() };
    if step.losses > 0 {
        text += &format!(" (+{} lost)", step.losses);
    }
    if step.generation > 1 {
        text += &format!(" (generation {})", step.generation);
    }
    if let Some(at) = &step.next_attempt_at {
        text += &format!(", next at {}", clock(at));
    }
    text
}

/// The name of a worker without its boot id.
pub(crate) fn worker_name(id: &str) -> &str {
    id.split_once('@').map_or(id, |(name, _)| name)
}

/// `permanent card_declined (high): the card was declined`.
pub(crate) fn error_text(error: &AttemptView) -> String {
    let code = error.code.as_deref().map(|code| format!(" {code}")).unwrap_or_default();
    let severity = error.severity.and_then(|severity| serde_json::to_value(severity).ok());
    let severity = severity.as_ref().and_then(|word| word.as_str()).map(|word| format!(" ({word})"));
    format!("{}{code}{}: {}", error.category, severity.unwrap_or_default(), error.message)
}

/// What a person may want to do next.
pub(super) fn hints(run: &RunView) -> Vec<String> {
    let id = run.summary.id;
    let letter = run.step_list.iter().find_map(|step| step.dead_letter.as_deref());
    let look = letter.map(|letter| format!("what happened: `stepfleet dead-letters show {letter}`"));
    let replay =
        letter.map(|letter| format!("with another input: `stepfleet dead-letters replay {letter} --input JSON`"));
    match run.summary.state {
        State::Failed if run.compensation == "done" => Vec::new(),
        State::Failed => {
            let retry = format!("when the cause is gone, go on where it failed: `stepfleet runs retry {id}`");
            look.into_iter().chain([retry]).collect()
        }
        State::Suspended if run.summary.review => look.into_iter().chain(replay).collect(),
        State::Suspended => vec![format!("let it go on: `stepfleet runs resume {id}`")],
        State::Completed => vec![format!("its output: `stepfleet runs output {id}`")],
        State::Created | State::Queued | State::Processing | State::Waiting | State::Retrying => {
            vec![format!("follow it: `stepfleet runs watch {id}`")]
        }
        State::Cancelled | State::Skipped => Vec::new(),
    }
}

/// The transitions as a table.
pub(super) fn history(items: &[HistoryView], out: &Out) -> Result<(), Failure> {
    let mut rows = Rows::new(out, &["TIME (UTC)", "STEP", "FROM", "TO", "TRY", "WORKER", "WHY"]);
    for item in items {
        rows.row(vec![
            moment(&item.at).into(),
            item.step.as_deref().unwrap_or("(run)").into(),
            Word::new(item.from.as_str(), Ink::Dim),
            Word::new(item.to.as_str(), Ink::of(item.to)),
            item.attempt.map(|attempt| attempt.to_string()).unwrap_or_default().into(),
            item.worker.as_deref().map(worker_name).unwrap_or_default().into(),
            why(item).into(),
        ]);
    }
    if rows.is_empty() {
        out.say("no transitions");
        return Ok(());
    }
    rows.print(out)
}

fn moment(at: &str) -> String {
    at.trim_end_matches('Z').replacen('T', " ", 1)
}

fn why(item: &HistoryView) -> String {
    let mut text = item.reason.replace('_', " ");
    if let Some(actor) = &item.actor {
        text += &format!(" by {actor}");
    }
    if let Some(note) = &item.note {
        text += &format!(": {note}");
    }
    text
}

/// One transition on one line: `12:00:01.123 fetch processing -> failed, attempt failed: the server said 503`.
pub(super) fn transition(item: &HistoryView, out: &Out) -> String {
    let place = item.step.as_deref().unwrap_or("(run)");
    let to = out.ink(item.to.as_str(), Ink::of(item.to));
    let from = if item.from == item.to { String::new() } else { format!("{} -> ", item.from) };
    let worker = item.worker.as_deref().map(|id| format!(" on {}", worker_name(id))).unwrap_or_default();
    let attempt = item.attempt.filter(|attempt| *attempt > 1).map(|n| format!(" (attempt {n})")).unwrap_or_default();
    format!("{} {} {from}{to}{attempt}{worker}, {}", clock(&item.at), plain(place), plain(&why(item)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state: &str, review: bool, letter: Option<&str>) -> RunView {
        serde_json::from_value(serde_json::json!({
            "id": "0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10", "workflow": "orders", "version": 3, "state": state,
            "created_at": "2026-11-19T23:59:59.999Z", "steps": { "total": 1, "completed": 0, "failed": 1, "active": 0 },
            "review": review, "partition": 0, "plan": "", "errors": [],
            "step_list": [{
                "name": "fetch", "index": 0, "handler": "http", "queue": "default", "state": "failed",
                "attempts": 3, "losses": 1, "generation": 2, "dead_letter": letter,
            }],
        }))
        .expect("a run")
    }

    #[test]
    fn hints_fit_the_state() {
        let first = |state, review, letter| hints(&run(state, review, letter)).first().cloned().unwrap_or_default();
        assert!(first("failed", false, Some("0-1-0")).contains("dead-letters show 0-1-0"));
        assert!(first("failed", false, None).contains("runs retry 0198c2f4"));
        assert!(first("suspended", false, None).contains("runs resume"));
        assert!(first("suspended", true, Some("0-1-0")).contains("dead-letters show"));
        assert!(first("processing", false, None).contains("runs watch"));
        assert!(first("completed", false, None).contains("runs output"));
        assert_eq!(first("cancelled", false, None), "");
    }

    #[test]
    fn tries_tell_losses_and_generations_apart() {
        assert_eq!(tries(&run("failed", false, None).step_list[0]), "3 (+1 lost) (generation 2)");
        let waits = StepView {
            losses: 0,
            generation: 1,
            next_attempt_at: Some("2026-11-20T00:00:01.500Z".into()),
            ..run("retrying", false, None).step_list.swap_remove(0)
        };
        assert_eq!(tries(&waits), "3, next at 00:00:01.500");
        assert_eq!(worker_name("alpha@1f2e"), "alpha");
        assert_eq!(shortened("äöü\n", 2), "äö…");
    }
}
