//! How a worker is put together and started.

use std::{collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use stepfleet_connect::Settings;
use stepfleet_protocol::{
    failure::Origin,
    keys::{Keys, PREFIX_DEFAULT},
    name::Name,
    pod::pod_uid,
};

use crate::{
    attempt::Attempt,
    classify::{Classifier, StandardClassifier},
    failure::Failure,
    handler::{Call, Typed},
    limits::{CONCURRENCY_DEFAULT, CONCURRENCY_MAX, DRAIN_TIMEOUT},
    session, source, stock,
    trace::Tracing,
};

/// The queue of a worker that names none.
const QUEUE_DEFAULT: &str = "default";
const REDIS_DEFAULT: &str = "redis://127.0.0.1:6379";

/// What was built wrong, all of it.
#[derive(Debug, thiserror::Error)]
#[error("{} problems in the worker:\n  {}", .problems.len(), .problems.join("\n  "))]
pub struct BuildError {
    /// Each with what was found and what is allowed.
    pub problems: Vec<String>,
}

/// Why a worker could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Redis refused, or the settings do not fit it. A server that is not there yet is waited for.
    #[error(transparent)]
    Redis(stepfleet_connect::Error),
    /// A server is too old, or may throw keys away.
    #[error("redis cannot be used:\n  {}", .0.join("\n  "))]
    Unfit(Vec<String>),
    /// The health port could not be opened.
    #[error("the health address `{address}` cannot be opened: {error}")]
    Health {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The signals that stop a program cannot be watched.
    #[error("signals cannot be watched: {0}")]
    Signals(std::io::Error),
}

/// Why [`Builder::run`] did not run a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It was built wrong.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It could not run.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Everything that a run needs.
pub(crate) struct Plan {
    pub(crate) redis: Settings,
    pub(crate) keys: Keys,
    pub(crate) name: Name,
    pub(crate) queues: Vec<Name>,
    pub(crate) concurrency: usize,
    pub(crate) handlers: HashMap<Name, Arc<dyn Call>>,
    pub(crate) classifier: Arc<dyn Classifier>,
    pub(crate) drain_timeout: Duration,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) tracing: Tracing,
    pub(crate) pod: Option<String>,
}

/// Puts a [`Worker`] together, and runs it. Problems are told by [`Builder::run`] and [`Builder::build`], all at once.
#[must_use]
pub struct Builder {
    redis: Result<Settings, String>,
    prefix: String,
    name: Option<String>,
    queues: Vec<String>,
    concurrency: usize,
    handlers: Vec<(String, Arc<dyn Call>)>,
    classifier: Arc<dyn Classifier>,
    drain_timeout: Duration,
    health: Option<SocketAddr>,
    tracing: Tracing,
    pod: Option<String>,
}

impl Builder {
    fn new() -> Self {
        Self {
            redis: Settings::parse(REDIS_DEFAULT).map_err(|error| error.to_string()),
            prefix: PREFIX_DEFAULT.to_owned(),
            name: None,
            queues: Vec::new(),
            concurrency: CONCURRENCY_DEFAULT,
            handlers: Vec::new(),
            classifier: Arc::new(StandardClassifier),
            drain_timeout: DRAIN_TIMEOUT,
            health: None,
            tracing: Tracing::default(),
            pod: None,
        }
    }

    /// Where Redis is; `redis://127.0.0.1:6379` unless set.
    pub fn redis(mut self, url: &str) -> Self {
        self.redis = Settings::parse(url).map_err(|error| error.to_string());
        self
    }

    /// Where Redis is, with everything that a URL cannot say.
    pub fn redis_settings(mut self, settings: Settings) -> Self {
        self.redis = Ok(settings);
        self
    }

    /// The prefix of every key; `sf:` unless set. It must be the coordinator's.
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// The worker's name; the host's unless set. Two workers may share it.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Adds a queue, less urgent than those before it; `default` if there is none.
    pub fn queue(mut self, queue: &str) -> Self {
        self.queues.push(queue.to_owned());
        self
    }

    /// Adds queues, most urgent first.
    pub fn queues<Q: AsRef<str>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues.extend(queues.into_iter().map(|queue| queue.as_ref().to_owned()));
        self
    }

    /// How many jobs run at once, 1 to 65,536; 64 unless set. The worker never holds more.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// Adds a handler: the code that does the steps which name it. A later one of the same name replaces it.
    ///
    /// The input is read from, and the output written to, the JSON data model. An input that does not fit is a failure of
    /// category `data`. A panic is a failure with the code `panic`. The handler must not block its thread.
    pub fn handler<F, Fut, I, O>(mut self, name: &str, function: F) -> Self
    where
        F: Fn(Attempt, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, Failure>> + Send + 'static,
        I: DeserializeOwned + 'static,
        O: Serialize + 'static,
    {
        self.handlers.push((name.to_owned(), Arc::new(Typed::new(function))));
        self
    }

    /// Who finds the category of a failure that has none of its handler; [`StandardClassifier`] unless set.
    pub fn classifier(mut self, classifier: impl Classifier) -> Self {
        self.classifier = Arc::new(classifier);
        self
    }

    /// Adds the stock handlers: `exec`, `http`, `sleep`, `noop` and `fail`.
    pub fn stock_handlers(self) -> Self {
        stock::register(self)
    }

    /// How long running jobs may take to finish once the worker drains; 25 s unless set. Then they are stopped and
    /// handed back, and do not count as tries.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Serves `/livez`, `/readyz` and `/metrics` at this address; nowhere unless set.
    pub fn health(mut self, address: SocketAddr) -> Self {
        self.health = Some(address);
        self
    }

    /// What spans of attempts say; see [`Tracing`].
    pub fn tracing(mut self, tracing: Tracing) -> Self {
        self.tracing = tracing;
        self
    }

    /// Uid of the Kubernetes pod that the worker runs in (`metadata.uid` of the downward API): coordinators that watch pods then
    /// give its jobs to others as soon as the pod ends.
    pub fn pod_uid(mut self, uid: &str) -> Self {
        self.pod = Some(uid.to_owned());
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// All problems at once.
    pub fn build(self) -> Result<Worker, BuildError> {
        let mut problems = Vec::new();
        let mut named =
            |what: &str, text: &str| Name::new(text).map_err(|error| problems.push(format!("{what}: {error}"))).ok();
        let name = match &self.name {
            Some(name) => named("name", name),
            None => named("name of the host", &host()),
        };
        let mut queues: Vec<Name> = Vec::new();
        for queue in self.queues.iter().filter_map(|queue| named("queue", queue)).collect::<Vec<_>>() {
            if !queues.contains(&queue) {
                queues.push(queue);
            }
        }
        if self.queues.is_empty() {
            queues.extend(named("queue", QUEUE_DEFAULT));
        }
        let mut handlers = HashMap::new();
        for (name, handler) in self.handlers {
            if let Some(name) = named("handler", &name) {
                handlers.insert(name, handler);
            }
        }
        if handlers.is_empty() {
            problems.push("handlers: none; at least one is needed".to_owned());
        }
        if handlers.contains_key(source::NO_HANDLER) {
            problems.push(format!("handler: `{}` is reserved", source::NO_HANDLER));
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.concurrency) {
            problems.push(format!("concurrency is {}; allowed: 1 to {CONCURRENCY_MAX}", self.concurrency));
        }
        if self.prefix.contains(['{', '}']) {
            problems.push(format!("prefix is `{}`; allowed: a text without braces", self.prefix));
        }
        let pod = self.pod.and_then(|uid| pod_uid(&uid).map_err(|why| problems.push(format!("pod_uid: {why}"))).ok());
        let redis = self.redis.map_err(|error| problems.push(error)).ok();
        match (name, redis) {
            (Some(name), Some(redis)) if problems.is_empty() => Ok(Worker {
                plan: Plan {
                    redis,
                    keys: Keys::new(&self.prefix),
                    name,
                    queues,
                    concurrency: self.concurrency,
                    handlers,
                    classifier: self.classifier,
                    drain_timeout: self.drain_timeout,
                    health: self.health,
                    tracing: self.tracing,
                    pod,
                },
            }),
            _ => Err(BuildError { problems }),
        }
    }
}

impl Builder {
    /// Builds the worker and runs it; see [`Worker::run`].
    ///
    /// # Errors
    /// Those of [`Builder::build`], before anything is done, and those of [`Worker::run`].
    pub async fn run(self) -> Result<(), Error> {
        Ok(self.build()?.run().await?)
    }

    /// Builds the worker and runs it until `shutdown` ends; see [`Worker::run_until`].
    ///
    /// # Errors
    /// As [`Builder::run`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        Ok(self.build()?.run_until(shutdown).await?)
    }
}

/// A worker: takes jobs of its queues, runs their handlers, reports what became of them.
#[must_use]
pub struct Worker {
    plan: Plan,
}

impl Worker {
    /// Begins a worker.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Runs until SIGTERM or SIGINT, or until a coordinator asks it to drain; then drains and leaves.
    ///
    /// # Errors
    /// [`RunError`] when it cannot begin. Once it runs, no fault of Redis ends it.
    pub async fn run(self) -> Result<(), RunError> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
        let mut int = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
        self.run_until(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        })
        .await
    }

    /// Runs until `shutdown` ends, or until a coordinator asks it to drain; then drains and leaves.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        session::run(self.plan, shutdown).await
    }
}

/// The host's name, as far as it makes a legal name.
/// What failed attempts say of this program.
pub(crate) fn origin() -> Origin {
    Origin { version: env!("CARGO_PKG_VERSION").to_owned(), host: host() }
}

pub(crate) fn host() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    let text = text.unwrap_or_default();
    let legal = text.trim().trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let legal: String =
        legal.chars().map(|c| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '-' }).take(63).collect();
    if legal.is_empty() { "worker".to_owned() } else { legal }
}
