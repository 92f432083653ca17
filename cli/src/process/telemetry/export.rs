//! Traces over OTLP, set by the standard variables of OpenTelemetry
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). Without an endpoint nothing is sent.

use std::time::Duration;

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use stepfleet_coordinator::shell::spans::Ids;

use crate::failure::Failure;

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];
/// How long the last spans may take to be sent.
const END_WITHIN: Duration = Duration::from_secs(3);

/// The traces that are sent; none if nobody wants them.
#[derive(Debug)]
pub(super) struct Export(Option<SdkTracerProvider>);

impl Export {
    /// Whether any are sent.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what is left.
    pub(super) async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(END_WITHIN)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The first of them that is set, with its name.
fn first(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| Some((*name, variable(name)?)))
}

/// Starts the traces of `service`, which `OTEL_SERVICE_NAME` may call otherwise.
///
/// # Errors
/// A variable cannot be read.
pub(super) fn start(service: &'static str) -> Result<Export, Failure> {
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
    let Some(endpoint) = first(&ENDPOINTS).filter(|_| !is_off) else { return Ok(Export(None)) };
    check_endpoint(&endpoint)?;
    check_sampler()?;
    let protocol = protocol()?;
    let runtime = tokio::runtime::Handle::current();
    // The HTTP client blocks, and may not be made where tasks run; the gRPC one needs to know where they do.
    let made = std::thread::spawn(move || {
        if protocol == Protocol::Grpc {
            let _entered = runtime.enter();
            return SpanExporter::builder().with_tonic().build();
        }
        SpanExporter::builder().with_http().with_protocol(protocol).build()
    });
    let bad = |why: String| Failure::usage(format!("traces cannot be sent to `{}`: {why}", endpoint.1));
    let made = made.join().map_err(|_| bad("the exporter could not be made".to_owned()))?;
    let exporter = made.map_err(|error| bad(error.to_string()))?;
    let provider = SdkTracerProvider::builder()
        .with_id_generator(Ids::default())
        .with_resource(resource(service))
        .with_batch_exporter(exporter)
        .build();
    global::set_tracer_provider(provider.clone());
    tracing::info!(endpoint = endpoint.1, protocol = ?protocol, "traces are sent");
    Ok(Export(Some(provider)))
}

/// Attributes of the process: those of the environment go before ours.
fn resource(service: &'static str) -> Resource {
    let given = Resource::builder().build();
    let unnamed = given.get(&"service.name".into()).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if unnamed { builder.with_service_name(service).build() } else { builder.build() }
}

fn check_endpoint((name, text): &(&'static str, String)) -> Result<(), Failure> {
    let is_url =
        |url: &str| url.strip_prefix("http://").or(url.strip_prefix("https://")).is_some_and(|r| !r.is_empty());
    if is_url(text) {
        return Ok(());
    }
    Err(Failure::usage(format!("{name}: bad endpoint `{text}`: allowed is a URL, such as `http://127.0.0.1:4318`")))
}

fn protocol() -> Result<Protocol, Failure> {
    let Some((name, text)) = first(&PROTOCOLS) else { return Ok(Protocol::HttpBinary) };
    match text.as_str() {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::HttpBinary),
        _ => Err(Failure::usage(format!("{name}: bad protocol `{text}`: allowed are `grpc` and `http/protobuf`"))),
    }
}

fn check_sampler() -> Result<(), Failure> {
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return Ok(()) };
    if !SAMPLERS.contains(&sampler.as_str()) {
        let allowed = SAMPLERS.join("`, `");
        return Err(Failure::usage(format!("OTEL_TRACES_SAMPLER: bad sampler `{sampler}`: allowed are `{allowed}`")));
    }
    let Some(ratio) = variable("OTEL_TRACES_SAMPLER_ARG").filter(|_| sampler.ends_with("ratio")) else {
        return Ok(());
    };
    if ratio.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio)) {
        return Ok(());
    }
    let allowed = "allowed is a number from 0 to 1, such as `0.01`";
    Err(Failure::usage(format!("OTEL_TRACES_SAMPLER_ARG: bad ratio `{ratio}`: {allowed}")))
}
