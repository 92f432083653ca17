//! `worker`: the stock worker, with the handlers `exec`, `http` and `sleep`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use stepfleet_connect::Settings;
use stepfleet_protocol::{duration::Millis, name::Name, pod::pod_uid};
use stepfleet_worker::{RunError, Tracing, Worker, limits};
use tokio_util::sync::CancellationToken;

use super::redis::{self, RedisArgs};
use super::settings::{address, number};
use super::telemetry::{self, LogArgs};
use super::trace::TraceArgs;
use super::{Checks, Given, stop_on_signals};
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// `worker`, as it was written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet worker --redis redis://127.0.0.1:6379
  stepfleet worker --redis redis://127.0.0.1:6379 --queue urgent --queue default --concurrency 16
  STEPFLEET_REDIS_URL=redis://redis:6379 stepfleet worker --health-listen 127.0.0.1:7071")]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    redis: RedisArgs,
    /// A queue to take jobs of, the most urgent first; may be repeated [default: default].
    #[arg(short = 'Q', long = "queue", value_name = "NAME", env = "STEPFLEET_QUEUE", value_delimiter = ',')]
    queue: Vec<String>,
    /// Jobs at once.
    #[arg(long, value_name = "N", env = "STEPFLEET_CONCURRENCY", default_value_t = limits::CONCURRENCY_DEFAULT.to_string())]
    concurrency: String,
    /// Name of this worker; the host's if not given. Two workers may share it.
    #[arg(long, value_name = "NAME", env = "STEPFLEET_NAME")]
    name: Option<String>,
    /// After SIGTERM running jobs may take this long to finish; then they are stopped and handed back, uncounted.
    #[arg(long, value_name = "TIME", env = "STEPFLEET_DRAIN_TIMEOUT", default_value = "25s")]
    drain_timeout: String,
    /// Serve `/livez`, `/readyz` and `/metrics` at this address.
    #[arg(long, value_name = "ADDRESS", env = "STEPFLEET_HEALTH_LISTEN")]
    health_listen: Option<String>,
    /// Threads that run jobs, connections and beats. The stock handlers only wait for others, so that one is enough for
    /// hundreds of jobs at once, and costs the least.
    #[arg(long, value_name = "N", env = "STEPFLEET_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// Uid of the Kubernetes pod that this worker runs in, `metadata.uid` of the downward API: coordinators with --watch-pods
    /// then give its jobs to others as soon as the pod ends.
    #[arg(long, value_name = "UID", env = "STEPFLEET_POD_UID")]
    pod_uid: Option<String>,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    trace: TraceArgs,
}

/// `worker`, as it is meant.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where Redis is.
    pub(crate) redis: Settings,
    /// Prefix of every key.
    pub(crate) prefix: String,
    /// Queues, most urgent first; none is `default`.
    pub(crate) queues: Vec<Name>,
    /// Jobs at once.
    pub(crate) concurrency: usize,
    /// Name without the boot id; none is the host's.
    pub(crate) name: Option<Name>,
    /// Time for running jobs after SIGTERM.
    pub(crate) drain_timeout: Duration,
    /// Address for probes and metrics.
    pub(crate) health: Option<SocketAddr>,
    /// What spans of attempts say.
    pub(crate) tracing: Tracing,
    /// Uid of the pod that it runs in.
    pub(crate) pod: Option<String>,
}

impl WorkerArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All problems at once; exit code 2.
    pub(crate) fn check(&self, given: &Given) -> Result<Config, Failure> {
        let mut checks = Checks::new(given);
        let redis = self.redis.check(&mut checks);
        let queues: Vec<Name> = self.queue.iter().filter_map(|queue| checks.read("queue", queue, Name::new)).collect();
        let most = limits::CONCURRENCY_MAX as u64;
        let concurrency = checks.read("concurrency", &self.concurrency, |text| number(text, 1..=most));
        let name = checks.maybe("name", self.name.as_deref(), Name::new);
        let drain_timeout = checks.read("drain_timeout", &self.drain_timeout, Millis::parse);
        let health = checks.maybe("health_listen", self.health_listen.as_deref(), address);
        let tracing = self.trace.check(&mut checks);
        let pod = checks.maybe("pod_uid", self.pod_uid.as_deref(), pod_uid);
        let config = (|| {
            Some(Config {
                redis: redis?,
                prefix: self.redis.redis_prefix.clone(),
                queues,
                concurrency: usize::try_from(concurrency?).ok()?,
                name: name?,
                drain_timeout: drain_timeout?.std(),
                health: health?,
                tracing: tracing?,
                pod: pod?,
            })
        })();
        checks.done(config)
    }
}

/// Runs until SIGTERM or SIGINT, or until it is drained; then finishes what it has and leaves.
///
/// # Errors
/// It cannot begin: settings, server, address.
pub(crate) async fn run(args: WorkerArgs, given: &Given, out: &Out) -> Result<Exit, Failure> {
    let config = args.check(given)?;
    let level = if out.verbose() > 0 { "debug" } else { "info" };
    let telemetry = telemetry::start(&args.log, level, "stepfleet-worker")?;
    let redis = redis::connect(config.redis.clone()).await?;
    redis::fit(&redis, false, out).await?;
    let worked = work(&config, stop_on_signals()?).await;
    telemetry.end().await;
    worked
}

/// Runs a stock worker until `stop`, or until it is drained.
///
/// # Errors
/// It cannot begin.
pub(super) async fn work(config: &Config, stop: CancellationToken) -> Result<Exit, Failure> {
    let mut builder = Worker::builder()
        .redis_settings(config.redis.clone())
        .prefix(&config.prefix)
        .queues(config.queues.iter().map(Name::as_str))
        .concurrency(config.concurrency)
        .drain_timeout(config.drain_timeout)
        .tracing(config.tracing.clone())
        .stock_handlers();
    if let Some(name) = &config.name {
        builder = builder.name(name.as_str());
    }
    if let Some(uid) = &config.pod {
        builder = builder.pod_uid(uid);
    }
    if let Some(address) = config.health {
        builder = builder.health(address);
    }
    let worker = builder.build().map_err(|error| {
        Failure::usage(format!("{} problems in the settings", error.problems.len())).problems(error.problems)
    })?;
    worker.run_until(stop.cancelled_owned()).await.map_err(|error| match &error {
        RunError::Redis(error) => redis::failure(error),
        other => Failure::failed(other.to_string()),
    })?;
    Ok(Exit::Done)
}
