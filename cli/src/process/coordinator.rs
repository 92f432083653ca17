//! `coordinator`: schedules steps, and serves the API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stepfleet_connect::{Redis, Settings};
use stepfleet_coordinator::{
    http::{self, AppState, tokens::Tokens},
    shell::{fleet, lanes::Lanes, metrics::Metrics, observer::Pods, retention::Retention, spans::Spans},
    store::client::Client,
};
use stepfleet_protocol::{duration::Millis, keys::Keys, limits::PARTITIONS_MAX, name::Name};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::outbox::{Outbox, OutboxArgs};
use super::pods::{PodWatch, PodsArgs};
use super::redis::{self, RedisArgs};
use super::retention::{self, RetentionArgs};
use super::settings::{address, number};
use super::telemetry::{self, LogArgs};
use super::{Checks, Given, stop_on_signals};
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// How long requests under way may take once the coordinator stops.
const GRACE: Duration = Duration::from_secs(10);

/// `coordinator`, as it was written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet coordinator --redis redis://127.0.0.1:6379
  stepfleet coordinator --redis redis-cluster://10.0.0.1:6379,10.0.0.2:6379 --partitions 32
  stepfleet coordinator --redis redis://127.0.0.1:6379 --retain-completed 30d --retain-dead-letters 90d
  stepfleet coordinator --redis redis://127.0.0.1:6379 --listen 0.0.0.0:7070 --tokens-file tokens.yaml
  STEPFLEET_REDIS_URL=rediss://fleet:secret@redis:6380 stepfleet coordinator --log-format json")]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(super) redis: RedisArgs,
    /// Address of the API.
    #[arg(long, value_name = "ADDRESS", env = "STEPFLEET_LISTEN", default_value = "127.0.0.1:7070")]
    pub(super) listen: String,
    /// YAML file of the tokens that the API lets in: their names, roles and hashes, as `stepfleet tokens create` writes them. It
    /// is read again when it changes. Without it the API asks nobody who they are.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_TOKENS_FILE")]
    pub(super) tokens_file: Option<PathBuf>,
    /// Allow addresses that other hosts can reach without --tokens-file: whoever reaches the API may then do everything.
    #[arg(long, env = "STEPFLEET_INSECURE_LISTEN", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) insecure_listen: bool,
    /// Serve `/livez`, `/readyz` and `/metrics`, and nothing else, at this address too, loopback or not, to all who ask.
    #[arg(long, value_name = "ADDRESS", env = "STEPFLEET_METRICS_LISTEN")]
    pub(super) metrics_listen: Option<String>,
    /// Partitions of a new installation; an existing one keeps its own, see `partitions add`.
    #[arg(long, value_name = "N", env = "STEPFLEET_PARTITIONS", default_value = "8")]
    pub(super) partitions: String,
    /// How long a job may wait before more workers are wanted: `stepfleet_queue_wanted_workers` of `/metrics`, which autoscalers
    /// follow.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_QUEUE_AGE_TARGET", default_value = "10s")]
    pub(super) queue_age_target: String,
    /// Name of this coordinator; the host's if not given.
    #[arg(long, value_name = "NAME", env = "STEPFLEET_NAME")]
    pub(super) name: Option<String>,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    pub(super) retention: RetentionArgs,
    #[command(flatten)]
    pub(super) outbox: OutboxArgs,
    #[command(flatten)]
    pub(super) pods: PodsArgs,
}

/// `coordinator`, as it is meant.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where Redis is.
    pub(crate) redis: Settings,
    /// Keys of the installation.
    pub(crate) keys: Keys,
    /// Address of the API.
    pub(crate) listen: SocketAddr,
    /// Who is let in; none lets in everybody.
    pub(crate) tokens: Option<Tokens>,
    /// A second address for probes and metrics.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Partitions of a new installation.
    pub(crate) partitions: u16,
    /// How long a job may wait before more workers are wanted.
    pub(crate) queue_age_target: Duration,
    /// Name without the boot id.
    pub(crate) name: Name,
    /// What is kept of what is done with.
    pub(crate) retention: Retention,
    /// How subscribers are told what was committed.
    pub(crate) outbox: Outbox,
    /// Where spans go.
    pub(crate) spans: Spans,
    /// The watch of the pods of workers, if it is wanted.
    pub(crate) pods: Option<PodWatch>,
}

impl CoordinatorArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All problems at once; exit code 2.
    pub(crate) fn check(&self, given: &Given) -> Result<Config, Failure> {
        let mut checks = Checks::new(given);
        let redis = self.redis.check(&mut checks);
        let listen = checks.read("listen", &self.listen, address);
        let metrics_listen = checks.maybe("metrics_listen", self.metrics_listen.as_deref(), address);
        let tokens = self.tokens(&mut checks);
        let is_closed = self.tokens_file.is_some() || self.insecure_listen;
        if let Some(address) = listen.filter(|address| !address.ip().is_loopback() && !is_closed) {
            let hint = "hint: give --tokens-file, or --insecure-listen if all who reach this address may do everything";
            checks.problem("listen", format!("`{address}` is not loopback, and there are no tokens; {hint}"));
        }
        if listen.is_some() && listen == metrics_listen.flatten() {
            checks.problem("metrics_listen", "is the address of the API, which serves these paths already");
        }
        let partitions = checks.read("partitions", &self.partitions, |text| number(text, 1..=PARTITIONS_MAX.into()));
        let host = host();
        let name = checks.read("name", self.name.as_deref().unwrap_or(&host), Name::new);
        let queue_age_target = checks.read("queue_age_target", &self.queue_age_target, age_target);
        let retention = self.retention.check(retention::Keys::FindTheirRuns, &mut checks);
        let outbox = self.outbox.check(&mut checks);
        let pods = self.pods.check(&mut checks);
        let config = (|| {
            Some(Config {
                redis: redis?,
                keys: Keys::new(&self.redis.redis_prefix),
                listen: listen?,
                tokens: tokens?,
                metrics_listen: metrics_listen?,
                partitions: u16::try_from(partitions?).ok()?,
                queue_age_target: queue_age_target?,
                name: name?,
                retention: retention?,
                outbox: outbox?,
                spans: Spans::default(),
                pods: pods?,
            })
        })();
        checks.done(config)
    }

    /// The outer `None` after a problem.
    fn tokens(&self, checks: &mut Checks<'_>) -> Option<Option<Tokens>> {
        let Some(path) = &self.tokens_file else { return Some(None) };
        let opened = Tokens::open(path).map(Some);
        opened.map_err(|error| error.problems().iter().for_each(|why| checks.problem("tokens_file", why))).ok()
    }
}

fn age_target(text: &str) -> Result<Duration, String> {
    const ALLOWED: std::ops::RangeInclusive<Millis> = Millis(100)..=Millis(86_400_000);
    let found = Millis::parse(text).map_err(|error| error.to_string())?;
    if ALLOWED.contains(&found) {
        return Ok(Duration::from_millis(found.0));
    }
    Err(format!("`{found}` is out of range: allowed are {} to {}", ALLOWED.start(), ALLOWED.end()))
}

/// The host's name, as far as it makes a legal name.
pub(super) fn host() -> String {
    let text = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let legal = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '-' };
    let text: String = text.chars().map(legal).skip_while(|c| !c.is_ascii_alphanumeric()).take(63).collect();
    if text.is_empty() { "coordinator".to_owned() } else { text }
}

/// Runs until SIGTERM or SIGINT; then gives its partitions away and returns.
///
/// # Errors
/// It cannot begin: settings, server, address.
pub(crate) async fn run(args: CoordinatorArgs, given: &Given, out: &Out) -> Result<Exit, Failure> {
    let mut config = args.check(given)?;
    let level = if out.verbose() > 0 { "debug" } else { "info" };
    let telemetry = telemetry::start(&args.log, level, "stepfleet-coordinator")?;
    config.spans = telemetry.spans();
    let redis = redis::connect(config.redis.clone()).await?;
    redis::fit(&redis, false, out).await?;
    let stop = stop_on_signals()?;
    let served = serve(redis, &config, stop).await;
    telemetry.end().await;
    served
}

/// Runs a coordinator with its API until `stop`.
///
/// # Errors
/// An address cannot be opened, or the API ended by itself.
pub(super) async fn serve(redis: Redis, config: &Config, stop: CancellationToken) -> Result<Exit, Failure> {
    let listener = listen(config.listen, "--listen").await?;
    let probes = match config.metrics_listen {
        Some(address) => Some(listen(address, "--metrics-listen").await?),
        None => None,
    };
    let metrics = Metrics::new();
    let client = Client::new(redis.clone(), config.keys.clone());
    let open = AppState::new(client.clone(), metrics.clone()).with_age_target(config.queue_age_target);
    let open = open.with_spans(config.spans.clone());
    let app = match &config.tokens {
        Some(tokens) => open.clone().with_tokens(tokens.clone()),
        None => open.clone(),
    };
    let settings = fleet::Config {
        name: format!("{}@{}", config.name, uuid::Uuid::new_v4().simple()),
        keys: config.keys.clone(),
        partitions: config.partitions,
        retention: config.retention,
        dispatcher: Some(config.outbox.dispatcher(client, config.retention.audit_ms)),
        spans: config.spans.clone(),
        pods: match &config.pods {
            Some(watch) => watch.begin(&metrics, &stop).await?,
            None => Pods::default(),
        },
    };
    tracing::info!(coordinator = settings.name, api = %config.listen, redis = %config.redis, "the coordinator starts");
    let lanes = Lanes::open().map_err(|error| Failure::failed(format!("no threads for the owners: {error}")))?;
    let api = async {
        let served =
            tokio::try_join!(http::serve(listener, app, stop.clone()), serve_probes(probes, open, stop.clone()));
        // Without its API a coordinator is no use: the others take the partitions.
        stop.cancel();
        served
    };
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let ((), served) = tokio::join!(fleet::run_on(lanes, redis, settings, metrics, stop.clone()), async {
        tokio::select! {
            served = api => served.map(drop),
            // A client that keeps a request open does not keep the program.
            () = grace => Ok(()),
        }
    });
    served.map_err(|error| Failure::failed(format!("the API ended: {error}")))?;
    Ok(Exit::Done)
}

async fn listen(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let failure = Failure::usage(format!("cannot listen at `{address}`: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => failure.hint(format!(
                "another program listens there, perhaps another coordinator; choose another with {option}"
            )),
            _ => failure,
        }
    })
}

/// Only what looks at the process, for addresses that others can reach.
async fn serve_probes(listener: Option<TcpListener>, app: AppState, stop: CancellationToken) -> std::io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let api = http::router(app).into_service::<axum::body::Body>();
    let probes = ["/livez", "/readyz", "/metrics"]
        .into_iter()
        .fold(axum::Router::new(), |router, path| router.route_service(path, api.clone()));
    axum::serve(listener, probes).with_graceful_shutdown(stop.cancelled_owned()).await
}
