//! Spans that handlers begin themselves, in a worker that uses the library.

use std::time::Duration;

use anyhow::ensure;
use opentelemetry::{
    global,
    trace::{Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Fleet, users},
    otlp::{Receiver, Span},
    wait,
};
use stepfleet_worker::{Attempt, Failure, Worker};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;

const SOON: Duration = Duration::from_secs(30);

#[tracing::instrument]
async fn inner() {
    tokio::task::yield_now().await;
}

async fn charge(_: Attempt, _: Option<Value>) -> Result<(), Failure> {
    global::tracer("shop").in_span("ask the bank", |_| ());
    inner().await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    inner().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_a_handler_are_below_that_of_its_attempt() {
    let receiver = Receiver::start().await.unwrap();
    // As docs/tracing.md says it, with the layer for `tracing`.
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(receiver.grpc());
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter.build().unwrap()).build();
    global::set_tracer_provider(provider.clone());
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    let mine = tracing_subscriber::filter::filter_fn(|meta| meta.target().starts_with("e2e"));
    let layered = tracing_subscriber::Layer::with_filter(layer, mine);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layered)).unwrap();

    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 1)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100");
    fleet.add_coordinator().await.unwrap();
    let url = users::login_if_wanted(&server.url(), "worker");
    let worker = Worker::builder().redis(&url).name("shop").concurrency(4).handler("charge", charge).build().unwrap();
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let worker = tokio::spawn(worker.run_until(async move { asked.cancelled().await }));
    let api = fleet.api();
    let definition =
        json!({ "workflow": "orders", "steps": { "one": { "handler": "charge" }, "two": { "handler": "charge" } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();
    stop.cancel();
    worker.await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap().unwrap();

    let mut spans: Vec<Span> = Vec::new();
    let all = wait::until(SOON, "every span", async || {
        spans = receiver.spans();
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        let counts = ["process default", "ask the bank", "inner"].map(count);
        ensure!(counts == [2, 2, 4], "{counts:?}");
        Ok(())
    });
    all.await.unwrap();
    for attempt in spans.iter().filter(|span| span.name == "process default") {
        let below = spans.iter().filter(|span| span.parent == attempt.id);
        let mut names: Vec<&str> = below.clone().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["ask the bank", "inner", "inner"], "{spans:#?}");
        assert!(below.clone().all(|span| span.trace == attempt.trace), "{spans:#?}");
    }
    fleet.stop().await.unwrap();
}
