//! What becomes of jobs.

use serde_json::{Value as Json, json};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure as Wire},
    message::{Body, Job, Outcome, Returned},
    value::{Input, Payload, ValueRef},
};
use stepfleet_worker::{Attempt, Failure};

use crate::{
    owner::{self, Owner, job, keys, name},
    server::{Server, until},
};

#[derive(serde::Deserialize, serde::Serialize)]
struct Order {
    amount: u32,
}

fn worker(server: &Server) -> owner::Running {
    let builder = owner::worker(server)
        .handler("double", |_: Attempt, order: Order| async move { Ok(Order { amount: order.amount * 2 }) })
        .handler("repeat", |_: Attempt, times: usize| async move { Ok("x".repeat(times)) })
        .handler("length", |_: Attempt, text: String| async move { Ok(text.len()) })
        .handler("panic", |_: Attempt, _: Json| async move {
            assert!(std::env::var("NEVER_SET").is_ok(), "nothing is right");
            Ok(())
        })
        .handler("stuck", |_: Attempt, _: Json| async move {
            std::future::pending::<()>().await;
            Ok(())
        })
        .handler("parse", |_: Attempt, text: String| async move { Ok(text.parse::<u8>()?) })
        .handler("context", |attempt: Attempt, _: Json| async move {
            let limit = attempt.remaining().ok_or_else(|| Failure::permanent("no limit"))?;
            Ok(json!({
                "key": attempt.idempotency_key(), "step": attempt.step(), "of": attempt.max_attempts(),
                "limited": limit.as_secs() < 60, "trace": attempt.traceparent(),
            }))
        });
    owner::start(builder)
}

fn failed(outcome: Outcome) -> Wire {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("it should have failed: {other:?}"),
    }
}

fn output(outcome: Outcome) -> Json {
    match outcome {
        Outcome::Completed(Some(Payload::Inline(bytes))) => codec::unpack(&bytes).expect("a value"),
        Outcome::Completed(None) => Json::Null,
        other => panic!("it should have an output: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_handlers_get_their_input_and_give_their_output() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    assert_eq!(output(owner.outcome(&job("double", json!({"amount": 4}))).await), json!({"amount": 8}));
    assert_eq!(output(owner.outcome(&job("noop", Json::Null)).await), Json::Null);
    let wrong = failed(owner.outcome(&job("double", json!({"amount": "four"}))).await);
    assert_eq!((wrong.category, wrong.code.as_deref()), (Category::Data, Some("bad_input")));
    let missing = failed(owner.outcome(&job("double", Json::Null)).await);
    assert_eq!(missing.category, Category::Data);
    let error = failed(owner.outcome(&job("parse", json!("many"))).await);
    assert_eq!((error.category, error.message.as_str()), (Category::Transient, "invalid digit found in string"));

    let origin = error.origin.expect("a failure says which program it was");
    assert_eq!((origin.version.as_str(), origin.host.is_empty()), (env!("CARGO_PKG_VERSION"), false));

    let mut told = job("context", Json::Null);
    told.traceparent = Some("00-1-2-01".into());
    let key = format!("{}/step/1", told.run);
    let context = json!({"key": key, "step": "step", "of": 3, "limited": true, "trace": "00-1-2-01"});
    assert_eq!(output(owner.outcome(&told).await), context);
    worker.left().await;
    assert_eq!(owner.workers().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_travel_by_reference_and_too_large_ones_are_refused() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    let large = job("repeat", json!(9_000));
    let Outcome::Completed(Some(Payload::Ref(value))) = owner.outcome(&large).await else { panic!("not by reference") };
    assert_eq!(value, ValueRef { id: large.id.to_string(), bytes: 9_003 });
    let stored: Vec<u8> =
        redis::cmd("GET").arg(keys(0).value(&value.id)).query_async(&mut owner.connection).await.expect("it is stored");
    assert_eq!(codec::unpack::<String>(&stored), Ok("x".repeat(9_000)));

    let mut by_ref = job("length", Json::Null);
    by_ref.input = Input::Whole(Payload::Ref(value));
    assert_eq!(output(owner.outcome(&by_ref).await), json!(9_000));
    let mut dangling = job("length", Json::Null);
    dangling.input = Input::Whole(Payload::Ref(ValueRef { id: "nothing".into(), bytes: 1 }));
    assert_eq!(failed(owner.outcome(&dangling).await).code.as_deref(), Some("input_missing"));

    let refused = failed(owner.outcome(&job("repeat", json!(1 << 20))).await);
    assert_eq!((refused.category, refused.code.as_deref()), (Category::Permanent, Some("output_too_large")));
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panics_and_overruns_become_failures() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    let panicked = failed(owner.outcome(&job("panic", Json::Null)).await);
    assert_eq!((panicked.category, panicked.code.as_deref()), (Category::Transient, Some("panic")));
    assert_eq!(panicked.message, "the handler panicked: nothing is right");
    let overrun = failed(owner.outcome(&Job { timeout_ms: 50, ..job("stuck", Json::Null) }).await);
    assert_eq!(overrun.category, Category::Timeout);
    assert_eq!(overrun.message, "step `step` ran past its limit of 50ms");
    let as_asked = failed(owner.outcome(&job("fail", json!({"category": "system", "code": "disk"}))).await);
    assert_eq!((as_asked.category, as_asked.code.as_deref()), (Category::System, Some("disk")));
    let later = Job { attempt: 2, ..job("fail", json!({"times": 1})) };
    assert_eq!(output(owner.outcome(&later).await), Json::Null);
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_handler_is_handed_back_after_a_second() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    let begun = std::time::Instant::now();
    let outcome = owner.outcome(&job("unknown", Json::Null)).await;
    assert_eq!(outcome, Outcome::Returned(Returned::NoHandler));
    assert!(begun.elapsed().as_millis() >= 1_000, "{:?}", begun.elapsed());
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_name_no_job_go_to_the_quarantine_and_block_nothing() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    let stream = keys(0).jobs(&name("q"));
    owner.ask(redis::cmd("XADD").arg(&stream).arg("*").arg("m").arg(b"\xc1\xff")).await;
    owner.ask(redis::cmd("XADD").arg(&stream).arg("*").arg("z").arg(b"\x01")).await;
    owner.ask(redis::cmd("XADD").arg(&stream).arg("*").arg("what").arg("ever")).await;
    assert_eq!(output(owner.outcome(&job("noop", Json::Null)).await), Json::Null);
    until("all three are put aside", async || {
        owner.ask(redis::cmd("XLEN").arg(keys(0).quarantine())).await == redis::Value::Int(3)
    })
    .await;
    // A job of a newer version goes to those who understand it.
    let newer = Job { v: codec::VERSION + 1, ..job("noop", Json::Null) };
    assert_eq!(owner.outcome(&newer).await, Outcome::Returned(Returned::NoHandler));
    worker.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_long_job_is_reported_as_started_and_once() {
    let server = Server::start().await;
    let mut owner = Owner::new(&server, 1).await;
    let worker = worker(&server);
    let (short, long) = (job("noop", Json::Null), job("sleep", json!({"duration": "1500ms"})));
    owner.dispatch(0, "q", &short).await;
    let entry = owner.dispatch(0, "q", &long).await;
    let result = owner.result(&long).await;
    assert!(result.run_ms >= 1_500);
    let log = owner.log(0).await;
    let started = log.iter().filter_map(|body| match body {
        Body::Started(started) => Some(&started.jobs),
        _ => None,
    });
    let started: Vec<_> = started.flatten().collect();
    assert_eq!(started.len(), 1, "{log:?}");
    assert_eq!((started[0].0.job, started[0].0.entry), (long.id, entry));
    assert!(started[0].1 >= 1_000);
    worker.left().await;
}
