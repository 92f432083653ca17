//! `dev`: everything on this machine, for trying things out and for developing workflows.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use stepfleet_connect::Settings;
use stepfleet_coordinator::{shell::retention::Retention, store::client::Client};
use stepfleet_protocol::{
    keys::{Keys, PREFIX_DEFAULT},
    limits::PARTITIONS_MAX,
    name::Name,
};
use stepfleet_worker::Tracing;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::outbox::{Outbox, OutboxArgs};
use super::retention::{self, RetentionArgs};
use super::server::{self, Server};
use super::settings::number;
use super::telemetry::{self, LogArgs};
use super::trace::TraceArgs;
use super::{Checks, Given, coordinator, redis, stop_on_signals, worker};
use crate::failure::{Exit, Failure};
use crate::out::{Ink, Out};

/// Time for running jobs after Ctrl-C.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the coordinator may take to own its partitions.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two looks whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Most workers in one process.
const WORKERS_MAX: u64 = 64;

/// `dev`, as it was written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet dev
  stepfleet dev --data-dir /tmp/fleet --port 8080 --workers 3
  stepfleet dev -v                     with the log of coordinator and workers")]
pub(crate) struct DevArgs {
    /// Where the server keeps its data; what was begun goes on at the next start.
    #[arg(long, value_name = "FOLDER", env = "STEPFLEET_DATA_DIR", default_value = "stepfleet-data")]
    data_dir: PathBuf,
    /// Port of the API on 127.0.0.1.
    #[arg(long, value_name = "PORT", env = "STEPFLEET_PORT", default_value = "7070")]
    port: String,
    /// Partitions of a new data folder.
    #[arg(long, value_name = "N", env = "STEPFLEET_PARTITIONS", default_value = "1")]
    partitions: String,
    /// Workers, each with the handlers `exec`, `http` and `sleep`. 0 leaves that to others.
    #[arg(long, value_name = "N", env = "STEPFLEET_WORKERS", default_value = "1")]
    workers: String,
    /// Jobs at once of each worker.
    #[arg(long, value_name = "N", env = "STEPFLEET_CONCURRENCY", default_value = "16")]
    concurrency: String,
    /// A queue for the workers, the most urgent first; may be repeated [default: default].
    #[arg(short = 'Q', long = "queue", value_name = "NAME", env = "STEPFLEET_QUEUE", value_delimiter = ',')]
    queue: Vec<String>,
    /// The server program; `valkey-server` or `redis-server` on the PATH or in `.tools` if not given.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_SERVER")]
    server: Option<PathBuf>,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    outbox: OutboxArgs,
    #[command(flatten)]
    trace: TraceArgs,
}

/// `dev`, as it is meant.
#[derive(Debug)]
struct Config {
    port: u16,
    partitions: u16,
    workers: usize,
    concurrency: usize,
    queues: Vec<Name>,
    retention: Retention,
    outbox: Outbox,
    tracing: Tracing,
}

impl DevArgs {
    fn check(&self, given: &Given) -> Result<Config, Failure> {
        let mut checks = Checks::new(given);
        let port = checks.read("port", &self.port, |text| number(text, 1..=65_535));
        let partitions = checks.read("partitions", &self.partitions, |text| number(text, 1..=PARTITIONS_MAX.into()));
        let workers = checks.read("workers", &self.workers, |text| number(text, 0..=WORKERS_MAX));
        let most = stepfleet_worker::limits::CONCURRENCY_MAX as u64;
        let concurrency = checks.read("concurrency", &self.concurrency, |text| number(text, 1..=most));
        let queues = self.queue.iter().filter_map(|queue| checks.read("queue", queue, Name::new)).collect();
        let retention = self.retention.check(retention::Keys::MayBeLost, &mut checks);
        let outbox = self.outbox.check(&mut checks);
        let tracing = self.trace.check(&mut checks);
        let config = (|| {
            Some(Config {
                port: u16::try_from(port?).ok()?,
                partitions: u16::try_from(partitions?).ok()?,
                workers: usize::try_from(workers?).ok()?,
                concurrency: usize::try_from(concurrency?).ok()?,
                queues,
                retention: retention?,
                outbox: outbox?,
                tracing: tracing?,
            })
        })();
        checks.done(config)
    }
}

/// Runs everything until Ctrl-C; then stops workers, coordinator and server, in this order.
///
/// # Errors
/// It cannot begin, or the server ended by itself.
pub(crate) async fn run(args: DevArgs, given: &Given, out: &Out) -> Result<Exit, Failure> {
    let config = args.check(given)?;
    let level = match out.verbose() {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let telemetry = telemetry::start(&LogArgs::text(), level, "stepfleet-dev")?;
    let program = server::find(args.server.as_deref())?;
    let folder = folder(&args.data_dir)?;
    let lock = lock(&folder)?;
    let stop = stop_on_signals()?;
    let mut server = Server::start(program, &folder).await?;
    let url = format!("redis://127.0.0.1:{}", server.port);
    let settings = Settings::parse(&url).map_err(|error| redis::failure(&error))?;
    let redis = redis::connect(settings.clone()).await?;
    redis::fit(&redis, true, out).await?;

    let coordinator_config = coordinator::Config {
        redis: settings.clone(),
        keys: Keys::new(PREFIX_DEFAULT),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, config.port)),
        tokens: None,
        metrics_listen: None,
        partitions: config.partitions,
        queue_age_target: stepfleet_coordinator::http::AGE_TARGET,
        name: Name::new("dev").expect("a legal name"),
        retention: config.retention,
        outbox: config.outbox.clone(),
        spans: telemetry.spans(),
        pods: None,
    };
    let (stop_workers, stop_coordinator) = (CancellationToken::new(), CancellationToken::new());
    let client = Client::new(redis.clone(), coordinator_config.keys.clone());
    let mut coordinator = {
        let stop = stop_coordinator.clone();
        tokio::spawn(async move { coordinator::serve(redis, &coordinator_config, stop).await })
    };
    tokio::select! {
        () = ready(&client) => {}
        () = stop.cancelled() => {}
        // It ended before it was ready; below this is told.
        _ = server.ended() => {}
        () = tokio::time::sleep(READY_TIMEOUT) => out.warn("the partitions have no owner yet"),
        () = async { while !coordinator.is_finished() { tokio::time::sleep(LOOK_EVERY).await } } => {}
    }
    let mut workers = JoinSet::new();
    for number in 1..=config.workers {
        let settings = worker_config(&config, &settings, number);
        let stop = stop_workers.clone();
        workers.spawn(async move { worker::work(&settings, stop).await });
    }
    if !coordinator.is_finished() {
        tell(&config, &server, &folder, &url, out);
    }

    let mut early = None;
    let result = tokio::select! {
        () = stop.cancelled() => Ok(Exit::Done),
        why = server.ended() => Err(Failure::failed(format!("the server ended by itself: {why}"))
            .hint(format!("see `{}`", folder.join("server.log").display()))),
        ended = &mut coordinator => {
            let result = ended.unwrap_or_else(|error| Err(Failure::failed(format!("the coordinator ended: {error}"))));
            early = Some(());
            result
        }
    };
    out.say("stopping: workers, coordinator, server");
    stop_workers.cancel();
    while workers.join_next().await.is_some() {}
    stop_coordinator.cancel();
    if early.is_none() {
        let _ = coordinator.await;
    }
    telemetry.end().await;
    server.stop().await;
    drop(lock);
    result
}

/// Waits until every partition has an owner.
async fn ready(client: &Client) {
    while !client.unowned().await.is_ok_and(|unowned| unowned.is_empty()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn worker_config(config: &Config, redis: &Settings, number: usize) -> worker::Config {
    worker::Config {
        redis: redis.clone(),
        prefix: PREFIX_DEFAULT.to_owned(),
        queues: config.queues.clone(),
        concurrency: config.concurrency,
        name: Some(Name::new(&format!("dev-{number}")).expect("a legal name")),
        drain_timeout: DRAIN_TIMEOUT,
        health: None,
        pod: None,
        tracing: config.tracing.clone(),
    }
}

fn folder(path: &Path) -> Result<PathBuf, Failure> {
    let fault = |error: std::io::Error| Failure::usage(format!("bad data folder `{}`: {error}", path.display()));
    std::fs::create_dir_all(path).map_err(fault)?;
    path.canonicalize().map_err(fault)
}

/// Two servers on one append-only file would ruin it.
fn lock(folder: &Path) -> Result<Flock<std::fs::File>, Failure> {
    let path = folder.join("lock");
    let file = std::fs::File::create(&path)
        .map_err(|error| Failure::usage(format!("cannot write `{}`: {error}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        Failure::new(Exit::Conflict, format!("another `stepfleet dev` uses the data folder `{}`", folder.display()))
            .hint("stop that one, or choose another with --data-dir and another --port")
    })
}

fn tell(config: &Config, server: &Server, folder: &Path, url: &str, out: &Out) {
    let name = server.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let api = if config.port == 7070 { String::new() } else { format!(" --api http://127.0.0.1:{}", config.port) };
    let workers = format!("{} x {} jobs at once (handlers exec, http, sleep)", config.workers, config.concurrency);
    let lines = [
        ("server", format!("{name} at {url}, data in {}", folder.display())),
        ("coordinator", format!("API at http://127.0.0.1:{}", config.port)),
        ("workers", workers),
    ];
    for (what, text) in lines {
        out.say(&format!("{} {text}", out.talk_ink(&format!("{what:<12}"), Ink::Bold)));
    }
    out.say("");
    out.hint(&format!("in another terminal: `stepfleet{api} runs start -f FILE --wait`; Ctrl-C stops everything"));
}
