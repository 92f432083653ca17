//! `coordinator`: schedules steps, and serves the API.

use std::net::SocketAddr;

use clap::Args;
use stepfleet_connect::Settings;
use stepfleet_coordinator::{
    http::{self, AppState},
    shell::{fleet, metrics::Metrics},
    store::client::Client,
};
use stepfleet_protocol::{keys::Keys, limits::PARTITIONS_MAX, name::Name};

use super::logs::{self, LogFormat};
use super::redis::{self, RedisArgs};
use super::settings::{address, number};
use super::{Checks, Given, stop_on_signals};
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// `coordinator`, as it was written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet coordinator --redis redis://127.0.0.1:6379
  stepfleet coordinator --redis redis-cluster://10.0.0.1:6379,10.0.0.2:6379 --partitions 32
  STEPFLEET_REDIS_URL=rediss://fleet:secret@redis:6380 stepfleet coordinator --log-format json")]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(super) redis: RedisArgs,
    /// Address of the API.
    #[arg(long, value_name = "ADDRESS", env = "STEPFLEET_LISTEN", default_value = "127.0.0.1:7070")]
    pub(super) listen: String,
    /// Allow addresses that other hosts can reach, though the API knows no users yet.
    #[arg(long, env = "STEPFLEET_INSECURE_LISTEN")]
    pub(super) insecure_listen: bool,
    /// Serve `/livez`, `/readyz` and `/metrics` at this address too.
    #[arg(long, value_name = "ADDRESS", env = "STEPFLEET_METRICS_LISTEN")]
    pub(super) metrics_listen: Option<String>,
    /// Partitions of a new installation; an existing one keeps its own, see `partitions add`.
    #[arg(long, value_name = "N", env = "STEPFLEET_PARTITIONS", default_value = "8")]
    pub(super) partitions: String,
    /// Name of this coordinator; the host's if not given.
    #[arg(long, value_name = "NAME", env = "STEPFLEET_NAME")]
    pub(super) name: Option<String>,
    /// How log lines look. STEPFLEET_LOG sets a filter.
    #[arg(long, value_enum, value_name = "FORM", env = "STEPFLEET_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
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
    /// A second address for probes and metrics.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Partitions of a new installation.
    pub(crate) partitions: u16,
    /// Name without the boot id.
    pub(crate) name: Name,
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
        for (id, address) in [("listen", listen), ("metrics_listen", metrics_listen.flatten())] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback() && !self.insecure_listen) {
                let text = "is not loopback, and the API knows no users yet; hint: --insecure-listen if the network is trusted";
                checks.problem(id, format!("`{address}` {text}"));
            }
        }
        if listen.is_some() && listen == metrics_listen.flatten() {
            checks.problem("metrics_listen", "is the address of the API, which serves these paths already");
        }
        let partitions = checks.read("partitions", &self.partitions, |text| number(text, 1..=PARTITIONS_MAX.into()));
        let host = host();
        let name = checks.read("name", self.name.as_deref().unwrap_or(&host), Name::new);
        let config = (|| {
            Some(Config {
                redis: redis?,
                keys: Keys::new(&self.redis.redis_prefix),
                listen: listen?,
                metrics_listen: metrics_listen?,
                partitions: u16::try_from(partitions?).ok()?,
                name: name?,
            })
        })();
        checks.done(config)
    }
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
    let config = args.check(given)?;
    logs::start(args.log_format, "info")?;
    let redis = redis::connect(config.redis.clone()).await?;
    redis::fit(&redis, false, out).await?;
    let stop = stop_on_signals()?;
    serve(redis, &config, stop).await
}

/// Runs a coordinator until `stop`.
///
/// # Errors
/// The address of the API cannot be opened.
pub(super) async fn serve(
    redis: stepfleet_connect::Redis,
    config: &Config,
    stop: tokio_util::sync::CancellationToken,
) -> Result<Exit, Failure> {
    let metrics = Metrics::new();
    let settings = fleet::Config {
        name: format!("{}@{}", config.name, uuid::Uuid::new_v4().simple()),
        keys: config.keys.clone(),
        partitions: config.partitions,
        retention: stepfleet_coordinator::shell::retention::Retention::default(),
    };
    let app = AppState::new(Client::new(redis.clone(), config.keys.clone()), metrics.registry.clone());
    let mut listeners = Vec::new();
    for address in std::iter::once(config.listen).chain(config.metrics_listen) {
        let fault = |error: std::io::Error| Failure::usage(format!("`{address}` cannot be opened: {error}"));
        listeners.push(tokio::net::TcpListener::bind(address).await.map_err(fault)?);
    }
    tracing::info!(address = %config.listen, "the API listens");
    let served = futures::future::try_join_all(
        listeners.into_iter().map(|listener| http::serve(listener, app.clone(), stop.clone())),
    );
    let (served, ()) = tokio::join!(served, fleet::run(redis, settings, metrics, stop.clone()));
    served.map_err(|error| Failure::failed(format!("the API has ended: {error}")))?;
    Ok(Exit::Done)
}
