//! Traces as a collector gets them, and what the log says of a job.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Fleet},
    otlp::{Receiver, Span},
    wait,
};

const SOON: Duration = Duration::from_secs(30);
/// Steps that the last but one needs.
const WIDTH: usize = 7;

/// A fleet whose spans are sent soon after they end.
async fn fleet(server: &str, protocol: &str, endpoint: String, worker: &[&str]) -> Fleet {
    let mut fleet = Fleet::at(server, 2)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .env("OTEL_BSP_SCHEDULE_DELAY", "100");
    fleet.add_coordinator().await.unwrap();
    fleet.add_worker(worker).unwrap();
    fleet
}

/// One step, seven that need it, of which one fails at first, one that needs them all, and one that tells its trace context.
fn ten_steps() -> Value {
    let shell = |script: &str| json!({ "command": ["sh", "-c", script], "output": "text" });
    let mut steps = json!({ "first": { "handler": "noop" } });
    for n in 1..=WIDTH {
        steps[format!("wide-{n}")] = json!({ "handler": "noop", "needs": ["first"] });
    }
    steps["wide-3"] = json!({ "handler": "exec", "needs": ["first"], "with": shell("test $STEPFLEET_ATTEMPT -gt 1"),
        "retry": { "max_attempts": 2, "backoff": { "base": "50ms", "jitter": "none" } } });
    steps["join"] = json!({ "handler": "noop", "needs": (1..=WIDTH).map(|n| format!("wide-{n}")).collect::<Vec<_>>() });
    steps["last"] = json!({ "handler": "exec", "needs": ["join"], "with": shell("printf %s $TRACEPARENT") });
    json!({ "workflow": "ten", "steps": steps })
}

/// Waits until the receiver has so many spans of a trace.
async fn trace(receiver: &Receiver, id: &str, count: usize) -> Vec<Span> {
    let mut found = Vec::new();
    let all = wait::until(SOON, "the spans of a trace", async || {
        found = receiver.spans().into_iter().filter(|span| span.trace == id).collect();
        let names: Vec<&str> = found.iter().map(|span| span.name.as_str()).collect();
        ensure!(found.len() >= count, "{} of {count}: {names:?}", found.len());
        Ok(())
    });
    all.await.unwrap();
    found
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn of<'a>(spans: &[&'a Span], step: &str, attempt: &str) -> &'a Span {
    let is = |span: &&&Span| span.get("stepfleet.step") == step && span.get("stepfleet.attempt") == attempt;
    spans.iter().find(is).unwrap_or_else(|| panic!("no span of {step} {attempt}"))
}

async fn a_run_of_ten_steps_with_a_retry_is_one_trace(protocol: &str, endpoint: fn(&Receiver) -> String) {
    let receiver = Receiver::start().await.unwrap();
    let server = lab::server().await.unwrap();
    let fleet = fleet(&server.url(), protocol, endpoint(&receiver), &[]).await;
    let api = fleet.api();
    let run = api.submit(&ten_steps(), json!(null)).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();
    let shown = api.run(&run).await.unwrap();
    let id = shown["traceparent"].as_str().context("a trace context").unwrap()[3..35].to_owned();
    let spans = trace(&receiver, &id, 2 + 11 * 3).await;
    assert_eq!(spans.len(), 2 + 11 * 3, "{:?}", spans.iter().map(|s| &s.name).collect::<Vec<_>>());
    assert_eq!(spans.iter().map(|span| &span.id).collect::<BTreeSet<_>>().len(), spans.len(), "each has an id");
    assert!(spans.iter().all(|span| span.time.0 <= span.time.1), "no span ends before it begins");

    let [submit] = named(&spans, "send runs")[..] else { panic!("one submit") };
    assert_eq!((submit.kind, submit.parent.as_str()), (SpanKind::Producer, ""));
    assert_eq!((submit.get("messaging.message.conversation_id"), submit.failed), (run.as_str(), false));
    let [whole] = named(&spans, "run ten")[..] else { panic!("one run") };
    assert_eq!((whole.kind, &whole.parent, whole.failed), (SpanKind::Internal, &submit.id, false));
    assert_eq!(whole.get("stepfleet.outcome"), "completed");
    let (sent, processed, settled) =
        (named(&spans, "send default"), named(&spans, "process default"), named(&spans, "settle default"));
    assert_eq!((sent.len(), processed.len(), settled.len()), (11, 11, 11));
    for send in &sent {
        let (step, attempt) = (send.get("stepfleet.step"), send.get("stepfleet.attempt"));
        let (process, settle) = (of(&processed, step, attempt), of(&settled, step, attempt));
        assert_eq!((&send.parent, &process.parent, &settle.parent), (&whole.id, &send.id, &send.id), "{step}");
        let kinds = (send.kind, process.kind, settle.kind);
        assert_eq!(kinds, (SpanKind::Producer, SpanKind::Consumer, SpanKind::Client));
        let services = (send.service.as_str(), process.service.as_str(), settle.service.as_str());
        assert_eq!(services, ("stepfleet-coordinator", "stepfleet-worker", "stepfleet-coordinator"));
        let failed = (step, attempt) == ("wide-3", "1");
        assert_eq!((process.failed, settle.failed), (failed, failed), "{step} {attempt}");
        for (span, operation) in [(send, "send"), (&process, "process"), (&settle, "settle")] {
            let told = ["system", "operation.name", "operation.type", "destination.name", "message.conversation_id"]
                .map(|name| span.get(&format!("messaging.{name}")));
            assert_eq!(told, ["stepfleet", operation, operation, "default", &run]);
            assert_eq!(span.get("messaging.message.id"), send.get("messaging.message.id"));
            assert!(!span.attributes.keys().any(|name| name.ends_with("put")), "no values: {span:?}");
        }
    }
    let link_to = |span: &Span| (id.clone(), span.id.clone());
    let (first, again) = (of(&sent, "wide-3", "1"), of(&sent, "wide-3", "2"));
    assert_eq!(again.links, [link_to(first), link_to(of(&sent, "first", "1"))]);
    let settle = of(&settled, "wide-3", "1");
    assert_eq!((settle.events.as_slice(), settle.get("error.type")), (&["retry planned".to_owned()][..], "transient"));
    let needed: BTreeSet<_> =
        (1..=WIDTH).map(|n| link_to(of(&sent, &format!("wide-{n}"), if n == 3 { "2" } else { "1" }))).collect();
    assert_eq!(of(&sent, "join", "1").links.iter().cloned().collect::<BTreeSet<_>>(), needed, "the last job of each");
    let last = of(&processed, "last", "1");
    let text = api.output(&run, "last").await.unwrap().to_string();
    assert!(text.contains(&format!("00-{id}-{}-01", last.id)), "the handler has its span's context: {text}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_run_of_ten_steps_with_a_retry_is_one_trace_over_grpc() {
    a_run_of_ten_steps_with_a_retry_is_one_trace("grpc", Receiver::grpc).await;
}

#[tokio::test]
async fn a_run_of_ten_steps_with_a_retry_is_one_trace_over_http() {
    a_run_of_ten_steps_with_a_retry_is_one_trace("http/protobuf", Receiver::http).await;
}

#[tokio::test]
async fn a_submitter_has_the_run_in_its_trace_a_dead_letter_is_seen_and_attempts_may_be_traces_of_their_own() {
    let receiver = Receiver::start().await.unwrap();
    let server = lab::server().await.unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let path = log.path().to_str().unwrap();
    let worker = ["--trace-parentage", "link", "--trace-values", "200", "--log-format", "json", "--log-file", path];
    let fleet = fleet(&server.url(), "grpc", receiver.grpc(), &worker).await;
    let api = fleet.api();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let definition = json!({ "workflow": "bad", "steps": { "only": { "handler": "exec", "retry": { "max_attempts": 1 },
        "with": { "command": ["sh", "-c", "exit 1"], "env": { "DB_PASSWORD": "hunter2" } } } } });
    let submit = async |traceparent: &str| {
        let request = client.post(format!("{}/api/v1/runs", api.base())).header("traceparent", traceparent);
        let answer = request.json(&json!({ "definition": definition })).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let run = answer["id"].as_str().context("an id").unwrap().to_owned();
        api.until_state(&run, "failed", SOON).await.unwrap();
        run
    };
    // One that is not recorded goes first, so that its spans would have come before those of the other.
    let quiet = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00";
    submit(quiet).await;
    let (id, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let run = submit(&format!("00-{id}-{span}-01")).await;
    let spans = trace(&receiver, id, 5).await;
    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["run bad", "send dead-letters", "send default", "send runs", "settle default"].into());
    let one = |name: &str| named(&spans, name)[0];
    assert_eq!(one("send runs").parent, span, "the submit is below the submitter's span");
    assert!(one("run bad").failed);
    let letter = one("send dead-letters");
    assert_eq!((&letter.parent, letter.get("stepfleet.dead_letter.cause")), (&one("settle default").id, "exhausted"));
    let mut own = None;
    let come = wait::until(SOON, "the span of the attempt", async || {
        let all = receiver.spans();
        own =
            all.into_iter().find(|s| s.name == "process default" && s.get("messaging.message.conversation_id") == run);
        own.as_ref().map(|_| ()).context("it has not come")
    });
    come.await.unwrap();
    let own = own.unwrap();
    assert!(own.trace != id && own.parent.is_empty(), "it is a trace of its own");
    assert_eq!(own.links, [(id.to_owned(), one("send default").id.clone())]);
    let input = own.get("stepfleet.input");
    assert!(input.contains(r#""DB_PASSWORD":"***""#), "as JSON: {input}");
    assert!(!receiver.spans().iter().any(|span| format!("{span:?}").contains("hunter2")), "a secret is shown");
    let quiet_id = &quiet[3..35];
    let told = |span: &Span| span.trace == quiet_id || span.links.iter().any(|(trace, _)| trace == quiet_id);
    assert_eq!(receiver.spans().iter().filter(|span| told(span)).count(), 0, "nobody asked for it");

    let lines = || -> Vec<Value> {
        let text = fleet.workers[0].stderr();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let failed = lines().into_iter().rfind(|line| line["fields"]["message"] == "the attempt failed");
    let failed = failed.context("a failed attempt is in the log").unwrap();
    let where_it_was = ["run", "step", "attempt", "trace"].map(|name| failed["span"][name].clone());
    assert_eq!(where_it_was, [json!(run), json!("only"), json!(1), json!(own.trace)]);
    let told = wait::until(SOON, "the coordinator's line", async || {
        let text = fleet.coordinators[0].program.stderr();
        let line = text.lines().find(|line| line.contains("a step needs attention") && line.contains(&run));
        ensure!(line.context("none yet")?.contains(id), "{line:?} has the trace");
        Ok(())
    });
    told.await.unwrap();
    std::fs::write(path, "stepfleet_worker=debug").unwrap();
    let changed = wait::until(SOON, "the level to change", async || {
        ensure!(lines().iter().any(|line| line["fields"]["message"] == "the log filter changes"), "not yet");
        Ok(())
    });
    changed.await.unwrap();
    let good = json!({ "workflow": "good", "steps": { "only": { "handler": "noop" } } });
    let run = api.submit(&good, json!(null)).await.unwrap();
    let seen = wait::until(SOON, "a line of the new level", async || {
        let is_it = |line: &Value| line["fields"]["message"] == "the attempt is done" && line["span"]["run"] == run;
        ensure!(lines().iter().any(is_it), "not yet");
        Ok(())
    });
    seen.await.unwrap();
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn each_run_of_a_bulk_submit_has_a_trace_of_its_own() {
    let receiver = Receiver::start().await.unwrap();
    let server = lab::server().await.unwrap();
    let fleet = fleet(&server.url(), "grpc", receiver.grpc(), &[]).await;
    let api = fleet.api();
    api.register(&json!({ "workflow": "good", "steps": { "only": { "handler": "noop" } } })).await.unwrap();
    let runs = api.submit_many("good", 3).await.unwrap();
    api.until_all(&runs, "completed", SOON).await.unwrap();
    let mut spans = Vec::new();
    let all = wait::until(SOON, "every span", async || {
        spans = receiver.spans();
        ensure!(spans.len() == 16, "{} spans", spans.len());
        Ok(())
    });
    all.await.unwrap();
    let [send] = named(&spans, "send runs")[..] else { panic!("one request") };
    assert_eq!((send.kind, send.get("messaging.batch.message_count")), (SpanKind::Client, "3"));
    let created = named(&spans, "create runs");
    let traces: BTreeSet<&str> = created.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!((created.len(), traces.len()), (3, 3));
    for create in created {
        assert_eq!(create.links, [(send.trace.clone(), send.id.clone())]);
        let below = |span: &&&Span| span.trace == create.trace && span.parent == create.id;
        assert_eq!(named(&spans, "run good").iter().filter(below).count(), 1);
    }
    fleet.stop().await.unwrap();
}
