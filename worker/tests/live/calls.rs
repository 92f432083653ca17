//! Two-phase external calls, and the classifier that is asked about what handlers leave open.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    call::{CallId, CallRecord, CallState},
    codec,
    failure::{Category, Failure as Wire},
    message::{Job, Outcome},
    value::Payload,
};
use stepfleet_worker::{Attempt, Classifier, ErrorContext, Evidence, Failure, StandardClassifier, Verdict};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    health::get,
    owner::{self, Owner, job, keys},
    server::{Server, free_port},
};

fn output(outcome: Outcome) -> Json {
    match outcome {
        Outcome::Completed(Some(Payload::Inline(bytes))) => codec::unpack(&bytes).expect("a value"),
        other => panic!("it should have an output: {other:?}"),
    }
}

fn failed(outcome: Outcome) -> (Category, String) {
    match outcome {
        Outcome::Failed(Wire { category, code, .. }) => (category, code.unwrap_or_default()),
        other => panic!("it should have failed: {other:?}"),
    }
}

impl Owner {
    /// The next job of a step whose run is known.
    async fn again(&mut self, job: &Job, attempt: u32, n: u32) -> Job {
        self.ask(redis::cmd("HSET").arg(keys(0).run(&job.run)).arg("r").arg("a record")).await;
        let mut next = Job { attempt, ..job.clone() };
        next.id.n += 1_000 * n;
        next
    }

    async fn call(&mut self, job: &Job, attempt: u32, n: u32) -> Option<CallRecord> {
        let field = CallId { index: 0, generation: 1, attempt, n }.to_string();
        let got = self.ask(redis::cmd("HGET").arg(keys(0).calls(&job.run)).arg(field)).await;
        match got {
            redis::Value::BulkString(bytes) => Some(codec::unpack(&bytes).expect("a record")),
            _ => None,
        }
    }

    /// Puts a record as a worker leaves it that dies in the middle of a call.
    async fn begun(&mut self, job: &Job, attempt: u32) {
        let record = json!({"v": 1, "step": "step", "job": "1-0000000000000007.9.9", "kind": "http", "key": "k",
            "state": "started", "intended_ms": 5, "started_ms": 6});
        let field = CallId { index: 0, generation: 1, attempt, n: 1 }.to_string();
        let key = keys(0).calls(&job.run);
        self.ask(redis::cmd("HSET").arg(key).arg(field).arg(codec::pack(&record))).await;
    }
}

/// What became of a call, by its order in the attempt, and how often each was made.
#[derive(Clone, Default)]
struct Provider(Arc<Mutex<HashMap<String, u32>>>);

impl Provider {
    fn charge(&self, key: &str) -> u32 {
        let mut all = self.0.lock().expect("no panic");
        let times = all.entry(key.to_owned()).or_default();
        *times += 1;
        *times
    }

    fn times(&self, key: &str) -> u32 {
        self.0.lock().expect("no panic").get(key).copied().unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_completed_is_not_made_again_by_a_later_attempt() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let provider = Provider::default();
    let theirs = provider.clone();
    let builder = owner::worker(&server).handler("pay", move |attempt: Attempt, kind: String| {
        let provider = theirs.clone();
        async move {
            let first = attempt.call(&kind).endpoint("https://pay.example").method("POST");
            let first = first.run(async |key| Ok(provider.charge(&key))).await?;
            if attempt.attempt() == 1 {
                return Err(Failure::transient("after the call"));
            }
            let second = attempt.call("mail").run(async |key| Ok(provider.charge(&key))).await?;
            Ok((first, second))
        }
    });
    let port = free_port();
    let worker = owner::start(builder.health(([127, 0, 0, 1], port).into()));
    let pay = job("pay", json!("charge"));
    let first = owner.again(&pay, 1, 1).await;
    assert_eq!(failed(owner.outcome(&first).await).0, Category::Transient);
    let record = owner.call(&pay, 1, 1).await.expect("it is on record");
    assert_eq!((record.state, record.kind.as_str(), record.method.as_str()), (CallState::Completed, "charge", "POST"));
    let second = owner.again(&pay, 2, 2).await;
    assert_eq!(output(owner.outcome(&second).await), json!([1, 1]));
    let key = pay.idempotency_key();
    assert_eq!((provider.times(&key), provider.times(&format!("{key}/2"))), (1, 1));
    let metrics = get(port, "/metrics").await.expect("metrics").1;
    for (outcome, count) in [("completed", 2), ("recorded", 1)] {
        let line = format!("stepfleet_worker_external_calls_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // Another call in the place of the first one is a mistake of the handler, and nothing is sent.
    let third = Job { input: job("pay", json!("refund")).input, ..owner.again(&pay, 3, 3).await };
    assert_eq!(failed(owner.outcome(&third).await), (Category::Permanent, "call_mismatch".to_owned()));
    // The records of a run that is gone would stay for ever.
    let gone = job("pay", json!("charge"));
    assert_eq!(failed(owner.outcome(&gone).await).1, "run_gone");
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_unknown_outcome_is_asked_about_and_stays_unknown_while_nobody_knows() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let answers = Arc::new(AtomicU32::new(0));
    let asked = answers.clone();
    let builder = owner::worker(&server).handler("pay", move |attempt: Attempt, (): ()| {
        let asked = asked.clone();
        async move {
            let ask = async |_: String| match asked.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Failure::permanent("no answer about it")),
                _ => Ok(Some("done".to_owned())),
            };
            let call = attempt.call("charge");
            call.settle_or_run(ask, async |_| Err::<String, _>(Failure::transient("the line went dead"))).await
        }
    });
    let worker = owner::start(builder);
    let pay = job("pay", Json::Null);
    let unknown = (Category::Transient, "call_unknown".to_owned());
    let first = owner.again(&pay, 1, 1).await;
    assert_eq!(failed(owner.outcome(&first).await), unknown);
    let second = owner.again(&pay, 2, 2).await;
    assert_eq!(failed(owner.outcome(&second).await), unknown);
    let record = owner.call(&pay, 1, 1).await.expect("it is on record");
    assert_eq!((record.state, record.note.as_deref()), (CallState::Unknown, Some("no answer about it")));
    let third = owner.again(&pay, 3, 3).await;
    assert_eq!(output(owner.outcome(&third).await), json!("done"));
    let record = owner.call(&pay, 1, 1).await.expect("it is on record");
    assert_eq!((record.state, record.settled_by), (CallState::Completed, Some(3)));
    assert_eq!(answers.load(Ordering::Relaxed), 2);
    worker.left().await;
}

/// Answers each request with the next of these, and keeps the first lines of requests with their keys.
async fn answering(answers: Vec<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let heard = asked.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                let mut part = [0; 4096];
                let count = socket.read(&mut part).await.expect("a request");
                text.push_str(&String::from_utf8_lossy(&part[..count]));
            }
            let first = text.lines().next().unwrap_or_default();
            let key = text.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap_or("none");
            heard.lock().expect("no panic").push(format!("{first} {key}"));
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            // A request whose answer is empty is cut off.
            if !answer.starts_with("HTTP/1.1 \r") {
                socket.write_all(answer.as_bytes()).await.expect("an open socket");
            }
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_call_is_settled_by_asking_and_sent_again_only_if_it_never_arrived() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = owner::start(owner::worker(&server));
    let (url, asked) = answering(vec!["404 No", "200 OK", "200 OK", "503 No", "", "200 OK"]).await;
    let settle = json!({"url": format!("{url}/by-key/{{idempotency_key}}")});
    let with =
        json!({"method": "POST", "url": format!("{url}/pay?token=x"), "idempotency": "two-phase", "settle": settle});
    // It never arrived: it is sent, with the same key.
    let absent = job("http", with.clone());
    owner.begun(&absent, 1).await;
    let next = owner.again(&absent, 2, 1).await;
    assert_eq!(output(owner.outcome(&next).await)["status"], 200);
    let states = (owner.call(&absent, 1, 1).await, owner.call(&absent, 2, 1).await);
    let (first, second) = (states.0.expect("a record"), states.1.expect("a record"));
    assert_eq!((first.state, first.settled_by, second.state), (CallState::Failed, Some(2), CallState::Completed));
    assert_eq!((second.endpoint, second.status), (format!("{url}/pay"), Some(200)));
    // It was done: the answer to the question is the answer. A lost job has the number of the attempt that takes its place.
    let done = job("http", with.clone());
    owner.begun(&done, 1).await;
    let next = owner.again(&done, 1, 1).await;
    assert_eq!(output(owner.outcome(&next).await)["body"], "ok");
    // Nobody knows.
    let unknown = job("http", with);
    owner.begun(&unknown, 1).await;
    let next = owner.again(&unknown, 2, 1).await;
    assert_eq!(failed(owner.outcome(&next).await), (Category::Transient, "call_unknown".to_owned()));
    assert_eq!(owner.call(&unknown, 1, 1).await.map(|call| call.state), Some(CallState::Unknown));
    assert_eq!(owner.call(&unknown, 2, 1).await, None, "nothing was sent");
    // Without a way to ask, what was cut off is unknown, and is sent again.
    let blind = job("http", json!({"method": "POST", "url": format!("{url}/blind"), "idempotency": "two-phase"}));
    let first = owner.again(&blind, 1, 1).await;
    assert_eq!(failed(owner.outcome(&first).await).1, "call_unknown");
    let second = owner.again(&blind, 2, 2).await;
    assert_eq!(output(owner.outcome(&second).await)["status"], 200);
    let first = owner.call(&blind, 1, 1).await.expect("a record");
    assert_eq!((first.state, first.settled_by), (CallState::Completed, Some(2)));
    let escaped = |job: &Job| job.idempotency_key().replace('/', "%2F");
    let line = |method: &str, path: &str, job: &Job| format!("{method} {path} HTTP/1.1 {}", job.idempotency_key());
    assert_eq!(
        *asked.lock().expect("no panic"),
        [
            line("GET", &format!("/by-key/{}", escaped(&absent)), &absent),
            line("POST", "/pay?token=x", &absent),
            line("GET", &format!("/by-key/{}", escaped(&done)), &done),
            line("GET", &format!("/by-key/{}", escaped(&unknown)), &unknown),
            line("POST", "/blind", &blind),
            line("POST", "/blind", &blind),
        ]
    );
    let wrong = job("http", json!({"url": url, "settle": {"url": url}}));
    assert_eq!(failed(owner.outcome(&wrong).await), (Category::Data, "bad_input".to_owned()));
    worker.left().await;
}

/// The effect is there: to make the call again, or to say that there is no result, would both be wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_large_to_be_kept_holds_the_step_for_a_person() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let builder = owner::worker(&server).handler("fetch", async |attempt: Attempt, bytes: usize| {
        let text = attempt.call("fetch").run(async |_| Ok("x".repeat(bytes))).await?;
        if attempt.attempt() == 1 { Err(Failure::transient("after the call")) } else { Ok(text.len()) }
    });
    let worker = owner::start(builder);
    for (bytes, kept) in [(8_000, true), (9_000, false)] {
        let fetch = job("fetch", json!(bytes));
        let first = owner.again(&fetch, 1, 1).await;
        assert_eq!(failed(owner.outcome(&first).await).0, Category::Transient);
        let record = owner.call(&fetch, 1, 1).await.expect("it is on record");
        assert_eq!((record.state, record.result.is_some()), (CallState::Completed, kept));
        let second = owner.again(&fetch, 2, 2).await;
        let outcome = owner.outcome(&second).await;
        if kept {
            assert_eq!(output(outcome), json!(bytes));
        } else {
            assert_eq!(failed(outcome), (Category::Data, "call_result_not_kept".to_owned()));
        }
    }
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_no_more_calls_on_record_than_are_allowed() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let builder = owner::worker(&server).handler("chat", async |attempt: Attempt, calls: u32| {
        for _ in 0..calls {
            attempt.call("say").run(async |_| Ok(())).await?;
        }
        Ok(())
    });
    let worker = owner::start(builder);
    let chat = job("chat", json!(1_001));
    let chat = owner.again(&chat, 1, 1).await;
    assert_eq!(failed(owner.outcome(&chat).await), (Category::Permanent, "too_many_calls".to_owned()));
    let records = owner.ask(redis::cmd("HLEN").arg(keys(0).calls(&chat.run))).await;
    assert_eq!(records, redis::Value::Int(1_001), "a thousand records and their count");
    worker.left().await;
}

/// At this provider a 409 passes.
struct Ours;

impl Classifier for Ours {
    fn classify(&self, evidence: &Evidence<'_>, context: &ErrorContext<'_>) -> Verdict {
        match evidence.status {
            Some(409) if context.handler == "http" && !context.is_final_attempt() => Category::Transient.into(),
            _ => StandardClassifier.classify(evidence, context),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_own_classifier_judges_what_stock_handlers_and_errors_leave_open() {
    let server = Server::start_with(&[]).await;
    let mut owner = Owner::new(&server, 1).await;
    let builder = owner::worker(&server).classifier(Ours).handler("read", async |_: Attempt, file: String| {
        std::fs::read_to_string(file)?;
        Ok(())
    });
    let worker = owner::start(builder);
    let (url, _) = answering(vec!["409 Conflict", "409 Conflict"]).await;
    let conflict = job("http", json!({"url": url}));
    assert_eq!(failed(owner.outcome(&conflict).await), (Category::Transient, "http_409".to_owned()));
    let last = Job { attempt: 3, ..job("http", json!({"url": url})) };
    assert_eq!(failed(owner.outcome(&last).await).0, Category::Permanent);
    let missing = job("read", json!("/no/such/file"));
    assert_eq!(failed(owner.outcome(&missing).await).0, Category::Permanent);
    let bad = job("exec", json!({"command": ["/bin/sh", "-c", "exit 65"]}));
    assert_eq!(failed(owner.outcome(&bad).await).0, Category::Data);
    worker.left().await;
}
