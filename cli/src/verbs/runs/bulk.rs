//! `runs start --bulk`: a run for each line of a file, a thousand to a request.

use serde_json::Value;
use stepfleet_coordinator::http::view::{BulkAnswer, SubmitRequest};

use super::Session;
use super::start::problem_line;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::out::plain;

/// Lines of one request.
const LINES_MAX: usize = 1_000;
/// Bytes of one request, unless a single line is longer.
const BYTES_MAX: usize = 4 << 20;

/// What became of the lines so far.
#[derive(Debug, Default)]
struct Tally {
    taken: usize,
    known: usize,
    refused: usize,
}

/// Starts a run for each line: its input when `like` names a workflow or holds a definition, else the whole request.
///
/// Every line is read before the first is sent, so that a broken file starts nothing.
pub(super) async fn run(
    file: &str,
    like: SubmitRequest,
    key: Option<&str>,
    session: &Session<'_>,
) -> Result<Exit, Failure> {
    let requests = requests(&input::file(file)?, file, &like, key)?;
    if requests.is_empty() {
        return Err(Failure::usage(format!("`{file}` has no lines")).hint("one JSON value to a line"));
    }
    let total = requests.len();
    let mut tally = Tally::default();
    for batch in batches(&requests) {
        let numbers: Vec<usize> = batch.iter().map(|(number, _)| *number).collect();
        let body: String = batch.iter().flat_map(|(_, line)| [line.as_str(), "\n"]).collect();
        let sent = session.api.post(&["runs", "bulk"]).text("application/x-ndjson", body).send().await;
        let answer = sent.map_err(|failure| interrupted(failure, numbers[0], &tally, key))?;
        answers(&answer.text, &numbers, session, &mut tally)?;
        session.out.detail(&format!("{} of {total}", tally.taken + tally.refused));
    }
    let known = if tally.known > 0 { format!(" ({} of them before)", tally.known) } else { String::new() };
    let noun = if tally.taken == 1 { "run" } else { "runs" };
    session.out.say(&format!("{} {noun} taken{known}, {} refused", tally.taken, tally.refused));
    Ok(if tally.refused == 0 { Exit::Done } else { Exit::Failed })
}

/// The request of each line that is not empty, with the number of the line.
fn requests(text: &str, file: &str, like: &SubmitRequest, key: Option<&str>) -> Result<Vec<(usize, String)>, Failure> {
    let whole = like.workflow.is_none() && like.definition_text.is_none();
    let mut requests = Vec::new();
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let read = serde_json::from_str::<Value>(line).and_then(|value| {
            if whole { serde_json::from_value(value) } else { Ok(SubmitRequest { input: Some(value), ..like.clone() }) }
        });
        match read {
            Ok(mut request) => {
                request.durable |= like.durable;
                if let (Some(key), None) = (key, &request.idempotency_key) {
                    request.idempotency_key = Some(format!("{key}:{number}"));
                }
                requests.push((number, serde_json::to_string(&request).expect("requests have text keys")));
            }
            Err(error) => problems.push(format!("{file}:{number}:{}: {error}", error.column().max(1))),
        }
    }
    if problems.is_empty() {
        return Ok(requests);
    }
    let hint = if whole {
        "without a workflow each line is a request: {\"workflow\": \"orders\", \"input\": {}}"
    } else {
        "each line is the input of one run, as JSON"
    };
    Err(Failure::usage(format!("`{file}` has bad lines; nothing was started")).problems(problems).hint(hint))
}

fn batches(requests: &[(usize, String)]) -> Vec<&[(usize, String)]> {
    let mut batches = Vec::new();
    let mut rest = requests;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(LINES_MAX).take_while(|(_, line)| {
            bytes += line.len();
            bytes <= BYTES_MAX
        });
        let (batch, later) = rest.split_at(fits.count().max(1));
        batches.push(batch);
        rest = later;
    }
    batches
}

/// Writes one batch's answers: ids on stdout, refusals on stderr, both with `--output json` on stdout with the file's line numbers.
fn answers(text: &str, numbers: &[usize], session: &Session<'_>, tally: &mut Tally) -> Result<(), Failure> {
    let out = session.out;
    let mut answered = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut answer: BulkAnswer = serde_json::from_str(line)
            .map_err(|error| Failure::failed(format!("the API's answer cannot be read: {error}")))?;
        answered += 1;
        let place = usize::try_from(answer.line).ok().and_then(|line| numbers.get(line.checked_sub(1)?));
        let number = *place.ok_or_else(|| Failure::failed(format!("the API answered for line {}", answer.line)))?;
        answer.line = number as u64;
        tally.taken += usize::from(answer.run.is_some());
        tally.known += usize::from(answer.run.as_ref().is_some_and(|run| run.known));
        tally.refused += usize::from(answer.run.is_none());
        if out.is_json() {
            out.json(&answer)?;
            continue;
        }
        if let Some(run) = &answer.run {
            out.line(&run.id.to_string())?;
        }
        if let Some(problem) = &answer.error {
            out.warn(&format!("line {number}: {}", plain(problem.detail.trim_end_matches('.'))));
            crate::api::hint_of(problem).iter().for_each(|hint| out.hint(hint));
            problem.problems.iter().for_each(|problem| out.say(&format!("  {}", problem_line(problem))));
        }
    }
    if answered == numbers.len() {
        return Ok(());
    }
    Err(Failure::failed(format!("the API answered for {answered} of {} lines", numbers.len())))
}

/// A batch without an answer: what is certain, and how to go on without starting runs twice.
fn interrupted(failure: Failure, line: usize, tally: &Tally, key: Option<&str>) -> Failure {
    let mut failure = failure;
    failure.text += &format!("; {} runs were taken before line {line}", tally.taken);
    match key {
        Some(key) => failure.hint(format!("repeat the command; `--idempotency-key {key}` starts no run twice")),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_inputs_of_a_workflow_or_whole_requests() {
        let like = SubmitRequest { workflow: Some("orders".into()), durable: true, ..SubmitRequest::default() };
        let lines = requests("1\n\n{\"a\":2}\n", "f", &like, Some("k")).expect("good lines");
        assert_eq!(
            lines,
            [
                (1, r#"{"workflow":"orders","input":1,"durable":true,"idempotency_key":"k:1"}"#.to_owned()),
                (3, r#"{"workflow":"orders","input":{"a":2},"durable":true,"idempotency_key":"k:3"}"#.to_owned()),
            ]
        );
        let lines =
            requests("{\"workflow\":\"w\",\"idempotency_key\":\"mine\"}", "f", &SubmitRequest::default(), Some("k"));
        assert_eq!(lines.expect("good lines")[0].1, r#"{"workflow":"w","idempotency_key":"mine"}"#);
    }

    #[test]
    fn every_bad_line_is_named_before_anything_is_sent() {
        let failure = requests("1\n{\n{\"wrkflow\":1}", "f", &SubmitRequest::default(), None).expect_err("bad lines");
        assert_eq!(failure.exit(), Exit::Usage);
        assert_eq!(failure.problems.len(), 3, "{:?}", failure.problems);
        assert!(failure.problems[1].starts_with("f:2:"), "{:?}", failure.problems);
    }

    #[test]
    fn batches_are_bounded_and_lose_nothing() {
        let requests: Vec<(usize, String)> = (1..=2_500).map(|number| (number, "1".to_owned())).collect();
        let sizes: Vec<usize> = batches(&requests).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        let long = vec![(1, "x".repeat(BYTES_MAX + 1)), (2, "x".repeat(BYTES_MAX)), (3, "x".into())];
        let sizes: Vec<usize> = batches(&long).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }
}
