//! From what was found to one sentence, a word, the facts, and what to do. Pure: a table in, words out.

use serde_json::{Map, Value, json};
use stepfleet_protocol::{failure::Category, limits::NO_HANDLER_MS, state::State};

use super::super::view::{Explanation, StepExplanation};
use crate::{
    machine::{
        decision::{Transition, Why},
        run::Ending,
    },
    store::read::{
        explain::{GateFacts, Situation, Spot},
        runs::Found,
    },
    time::rfc3339,
};

/// What is known of the run.
pub(super) struct Seen<'a> {
    pub(super) run: &'a Found,
    /// Its history, oldest first, as far as it was read.
    pub(super) history: &'a [Transition],
    /// The server's time in Unix milliseconds.
    pub(super) now_ms: u64,
    /// The step's open dead letter.
    pub(super) letter: Option<String>,
}

fn answer(state: State, reason: &str, sentence: String, details: Value, next: Vec<String>) -> Explanation {
    let details = if let Value::Object(details) = details { details } else { Map::new() };
    let details = details.into_iter().filter(|(_, value)| !value.is_null()).collect();
    Explanation { state, sentence, reason: reason.to_owned(), details, next }
}

impl Seen<'_> {
    fn id(&self) -> String {
        self.run.id.to_string()
    }

    /// `12 s`, `3 min`, `2 h`.
    fn since(&self, at_ms: u64) -> String {
        span(self.now_ms.saturating_sub(at_ms))
    }

    /// The last transition of the run itself that says why.
    fn last(&self, whys: &[Why]) -> Option<&Transition> {
        self.history.iter().rev().find(|t| t.step.is_none() && whys.contains(&t.why))
    }

    /// ` by ann because "the bank is down"`, as far as the history knows.
    fn who(&self, whys: &[Why]) -> String {
        let Some(found) = self.last(whys) else { return String::new() };
        let actor = found.actor.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
        let note = found.note.as_ref().map(|note| format!(" because \"{note}\"")).unwrap_or_default();
        format!("{actor}{note}, {} ago", self.since(found.at_ms))
    }
}

fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// Why the run stands where it stands. `first` is its most telling step.
pub(super) fn run(seen: &Seen<'_>, first: Option<&StepExplanation>) -> Explanation {
    let record = &seen.run.record;
    let (state, id) = (record.state, seen.id());
    let counts = json!({ "completed": record.completed, "failed": record.failed, "active": record.active });
    let say = |reason: &str, sentence: String, next: Vec<String>| answer(state, reason, sentence, counts.clone(), next);
    if !state.is_finished()
        && let Some(ending) = record.ending
    {
        let (word, whys) = match ending {
            Ending::Cancelled => ("cancelled", Why::Cancelled),
            Ending::TimedOut => ("stopped because it ran past its time-out", Why::TimedOut),
        };
        let who = seen.who(&[whys]);
        let text = format!(
            "The run is being {word}{who}; it ends when the workers of its {} active steps confirm.",
            record.active
        );
        return say(
            "run_stopping",
            text,
            vec!["wait: a worker that does not confirm is found dead within a minute".into()],
        );
    }
    match state {
        State::Completed => {
            say("completed", "The run is completed.".into(), vec![format!("`stepfleet runs output {id}`")])
        }
        State::Cancelled => {
            say("cancelled", format!("The run was cancelled{}.", seen.who(&[Why::Cancelled])), Vec::new())
        }
        State::Failed => {
            let because = first.map(|step| format!(": {}", step.why.sentence)).unwrap_or_default();
            say("failed", format!("The run failed{because}"), vec![format!("`stepfleet runs retry {id}`")])
        }
        State::Suspended if record.review => {
            let because = first.map(|step| format!(": {}", step.why.sentence)).unwrap_or_default();
            let text = format!("The run waits for a person, because a step failed for want of good data{because}");
            say("data_review", text, first.map(|step| step.why.next.clone()).unwrap_or_default())
        }
        State::Suspended => {
            let text = format!("The run is suspended{}.", seen.who(&[Why::Suspended, Why::GaveUp, Why::Quarantined]));
            say("run_suspended", text, vec![format!("`stepfleet runs resume {id}`")])
        }
        State::Created | State::Queued | State::Processing | State::Waiting | State::Retrying | State::Skipped => {
            if record.work > 0 {
                let text = "A large transition of the run is under way: its steps follow part by part.".into();
                return say("in_progress", text, vec!["wait a moment and ask again".into()]);
            }
            match first {
                Some(step) => {
                    let mut told = say(&step.why.reason, step.why.sentence.clone(), step.why.next.clone());
                    told.details.extend(step.why.details.clone());
                    told.details.insert("step".into(), json!(step.step));
                    told
                }
                None => say(
                    "nothing_to_wait_for",
                    "The run goes on, and no step of it is open.".into(),
                    vec!["the auditor looks at it within a minute; `stepfleet doctor` says what it found".into()],
                ),
            }
        }
    }
}

/// Why the step stands where it stands.
pub(super) fn step(seen: &Seen<'_>, found: &Situation) -> Explanation {
    let (state, name, id) = (found.step.state, &found.name, seen.id());
    let say = |reason: &str, sentence: String, details: Value, next: Vec<String>| {
        answer(state, reason, sentence, details, next)
    };
    let watch = || vec![format!("wait: `stepfleet runs watch {id}`")];
    match state {
        State::Completed => say("completed", format!("Step `{name}` is completed."), json!({}), Vec::new()),
        State::Cancelled => {
            say("cancelled", format!("Step `{name}` was cancelled with its run."), json!({}), Vec::new())
        }
        State::Skipped => {
            let text = format!("Step `{name}` is skipped, because a step it needs gave up.");
            say("skipped", text, json!({}), Vec::new())
        }
        State::Failed => failed(seen, found),
        State::Suspended => {
            let who = seen.who(&[Why::Suspended]);
            let text = format!("Step `{name}` is held, because its run is suspended{who}.");
            say("run_suspended", text, json!({}), vec![format!("`stepfleet runs resume {id}`")])
        }
        State::Created => needs(seen, found),
        State::Retrying => {
            let error = found.error.as_ref().map(|e| format!("{}: {}", e.failure.category, e.failure.message));
            let when = found.due_ms.map_or_else(
                || "its wait is over at this moment".to_owned(),
                |due| format!("it waits until {} (in {})", rfc3339(due), span(due.saturating_sub(seen.now_ms))),
            );
            let told = error.as_ref().map(|e| format!(" with {e}")).unwrap_or_default();
            let text =
                format!("Try {} of step `{name}` failed{told}; {when} for the next one.", found.step.attempts.max(1));
            let details =
                json!({ "due_at": found.due_ms.map(rfc3339), "attempts": found.step.attempts, "error": error });
            say("retry_waits", text, details, watch())
        }
        State::Waiting => say("waiting", format!("Step `{name}` waits for something outside."), json!({}), watch()),
        State::Queued | State::Processing => placed(seen, found),
    }
}

fn failed(seen: &Seen<'_>, found: &Situation) -> Explanation {
    let (name, id) = (&found.name, seen.id());
    let error = found.error.as_ref();
    let why = error.map_or_else(String::new, |e| format!(": {} {}", e.failure.category, e.failure.message));
    let text = format!("Step `{name}` gave up after {} tries{why}.", found.step.attempts.max(1));
    let data = error.is_some_and(|e| e.failure.category == Category::Data);
    let mut next = Vec::new();
    if let Some(letter) = &seen.letter {
        let input = if data { " --input JSON" } else { "" };
        next.push(format!("`stepfleet dead-letters replay {letter}{input}`"));
        next.push(format!("`stepfleet dead-letters show {letter}`"));
    }
    next.push(format!("`stepfleet runs retry {id}`"));
    let details = json!({
        "dead_letter": seen.letter, "attempts": found.step.attempts, "losses": found.step.losses,
        "category": error.map(|e| e.failure.category.as_str()), "code": error.and_then(|e| e.failure.code.clone()),
        "worker": error.and_then(|e| e.worker.as_ref()).map(ToString::to_string),
        "failed_at": error.map(|e| rfc3339(e.at_ms)),
    });
    answer(found.step.state, "dead_letter", text, details, next)
}

fn needs(seen: &Seen<'_>, found: &Situation) -> Explanation {
    let open: Vec<_> = found.needs.iter().filter(|(_, state)| *state != State::Completed).collect();
    let details = json!({ "needs_left": found.step.needs_left,
        "unmet": open.iter().map(|(step, state)| json!({ "step": step, "state": state })).collect::<Vec<_>>() });
    let list: Vec<String> = open.iter().take(3).map(|(step, state)| format!("`{step}` ({state})")).collect();
    let more = if open.len() > 3 { format!(" and {} more", open.len() - 3) } else { String::new() };
    let name = &found.name;
    let (reason, text) = if open.is_empty() {
        ("starting", format!("Everything that step `{name}` needs is done; it becomes ready with the next commits."))
    } else {
        ("needs_unmet", format!("Step `{name}` waits for steps that it needs: {}{more}.", list.join(", ")))
    };
    let next = open.first().map(|(step, _)| format!("`stepfleet runs explain {} {step}`", seen.id()));
    answer(found.step.state, reason, text, details, next.into_iter().collect())
}

/// A step that is to run, or runs.
fn placed(seen: &Seen<'_>, found: &Situation) -> Explanation {
    let (name, queue, handler, readers) = (&found.name, &found.queue, &found.handler, &found.readers);
    let facts = json!({ "queue": queue, "handler": handler,
        "workers": readers.live, "workers_with_handler": readers.able,
        "slots": readers.slots, "running": readers.running });
    let with = |more: Value| {
        let mut all = facts.as_object().cloned().unwrap_or_default();
        all.extend(more.as_object().cloned().unwrap_or_default());
        Value::Object(all)
    };
    let state = found.step.state;
    let say = |reason: &str, sentence: String, more: Value, next: Vec<String>| {
        answer(state, reason, sentence, with(more), next)
    };
    let stopping = if found.step.stopping { ", which was told to stop" } else { "" };
    match &found.place {
        Spot::Gate(gate) => gated(seen, found, gate),
        Spot::Held { worker, silent: true, running_ms, .. } => {
            let text = format!("Step `{name}` is at worker {worker}, which has not been heard of for 30 s.");
            let next = vec!["wait: when the worker is declared dead, its jobs go to others".into()];
            say("worker_silent", text, json!({ "worker": worker, "running_ms": running_ms }), next)
        }
        Spot::Held { worker, running_ms: Some(ms), progress, .. } => {
            let progress_text = progress.map(|p| format!(", at {p} %")).unwrap_or_default();
            let text = format!(
                "Step `{name}` has been running on worker {worker} for {}{progress_text}{stopping}.",
                span(*ms)
            );
            let details = json!({ "worker": worker, "running_ms": ms, "progress": progress });
            say("held", text, details, vec![format!("`stepfleet workers show {worker}`")])
        }
        Spot::Held { worker, running_ms: None, .. } => {
            let text = format!("Worker {worker} took step `{name}` and had not begun it at its last beat{stopping}.");
            say("held", text, json!({ "worker": worker }), vec![format!("`stepfleet workers show {worker}`")])
        }
        Spot::Delivered { worker, idle_ms } => {
            let text = format!(
                "Step `{name}` was given to worker {worker} {} ago; its next beat tells more{stopping}.",
                span(*idle_ms)
            );
            say(
                "delivered",
                text,
                json!({ "worker": worker, "idle_ms": idle_ms }),
                vec!["ask again in ten seconds".into()],
            )
        }
        Spot::Waiting { ahead, since_ms, .. } if readers.able == 0 => {
            let waits = json!({ "ahead": ahead, "since": rfc3339(*since_ms) });
            let start = format!("start one: `stepfleet worker --queue {queue}`");
            if readers.live == 0 {
                let text = format!(
                    "No live worker subscribes to queue `{queue}`, where step `{name}` has waited for {}.",
                    seen.since(*since_ms)
                );
                return say("no_worker", text, waits, vec![start, "`stepfleet workers list`".into()]);
            }
            let limit = span(NO_HANDLER_MS);
            let text = format!(
                "No live worker of queue `{queue}` has the handler `{handler}` of step `{name}`; it gives up after \
                 {limit} of that."
            );
            say("no_handler", text, waits, vec![format!("start a worker that has the handler `{handler}`")])
        }
        Spot::Waiting { ahead, since_ms, per_second } => {
            let rate = per_second.filter(|rate| *rate > 0.0);
            let eta = rate.map(|rate| ((*ahead + 1) as f64 * 1_000.0 / rate) as u64);
            let soon = eta.map_or_else(
                || "no job of the queue was taken just now".to_owned(),
                |ms| format!("at the present rate it starts in about {}", span(ms)),
            );
            let text = format!(
                "Step `{name}` waits for a free slot: {ahead} are before it in queue `{queue}` of its partition, {} of \
                 {} slots are busy; {soon}.",
                readers.running, readers.slots
            );
            let details = json!({ "ahead": ahead, "since": rfc3339(*since_ms), "per_second": per_second,
                "starts_at": eta.map(|ms| rfc3339(seen.now_ms + ms)) });
            say("slots_busy", text, details, vec![format!("wait, or add workers to queue `{queue}`")])
        }
        Spot::None => {
            let text = format!("Step `{name}` is on its way from one place to the next.");
            let next = vec!["ask again: if it stays so, the auditor repairs it within a minute".into()];
            say("moving", text, json!({}), next)
        }
    }
}

fn gated(seen: &Seen<'_>, found: &Situation, gate: &GateFacts) -> Explanation {
    let name = &found.name;
    let since = gate.since_ms.map(|at| format!(", shut for {}", seen.since(at))).unwrap_or_default();
    let why = gate.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let opens = gate.opens_ms.map(|at| format!("; it may open at {}", rfc3339(at))).unwrap_or_default();
    let text = match &gate.limit {
        Some(limit) => {
            format!("Step `{name}` waits for the limit of `{}` ({limit}), with {} before it.", gate.gate, gate.ahead)
        }
        None => format!(
            "Step `{name}` is parked at the gate `{}`{since}{why}, with {} before it{opens}.",
            gate.gate, gate.ahead
        ),
    };
    let details = json!({ "gate": gate.gate, "limit": gate.limit, "ahead": gate.ahead, "parked": gate.parked,
        "since": gate.since_ms.map(rfc3339),
        "opens_at": gate.opens_ms.map(rfc3339), "why": gate.why });
    let next = match gate.gate.split_once(':') {
        Some(("queue", queue)) => format!("`stepfleet queues resume {queue}`"),
        _ if gate.limit.is_some() => "`stepfleet limits list`".to_owned(),
        _ => format!("`stepfleet breakers show {}`", gate.gate),
    };
    answer(found.step.state, "gated", text, details, vec![next])
}

#[cfg(test)]
mod tests;
