//! The watch itself: lists the pods, and then follows their changes. Whatever goes wrong, it begins anew, and nobody is dead for
//! it: beats and channels go on to tell of deaths.

use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kube::{
    Api, Client, Config,
    api::{ApiResource, ListParams, ObjectList, Request, WatchEvent, WatchParams},
};
use stepfleet_coordinator::shell::{metrics::Metrics, observer::Pods};
use tokio::time::{Instant, sleep, timeout};

use super::{
    PodWatch,
    ends::{End, Known, Pod},
};
use crate::failure::Failure;

/// How long a page of a list may take, and a watch to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What it is when one takes longer.
const SILENT: &str = "the API server does not answer";
/// Pods of a page.
const PAGE: u32 = 500;
/// A watch that brought nothing and lasted no longer was none.
const SHORT: Duration = Duration::from_secs(1);
/// How long the server keeps one watch, in seconds.
const WATCH_SECONDS: u32 = 60;
/// A watch that has not ended by then has lost its server.
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// The longest time between two tries, and how long one has to last to have gone well.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Half of the longest pause before the second try; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// A watch of pods.
pub(super) struct Watch {
    client: Client,
    api: Api<Pod>,
    selector: Option<String>,
    known: Known,
    pods: Pods,
    metrics: Metrics,
}

impl Watch {
    /// Finds the API server: by `KUBECONFIG`, or as pods find it.
    pub(super) async fn new(settings: &PodWatch, pods: Pods, metrics: &Metrics) -> Result<Self, Failure> {
        let unknown = |error: &dyn std::fmt::Display| {
            Failure::usage(format!("--watch-pods: the API server of Kubernetes is not known: {error}"))
                .hint("a pod needs the token of its service account: `automountServiceAccountToken`")
        };
        let config = Config::infer().await.map_err(|error| unknown(&error))?;
        let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.trim().to_owned());
        let client = Client::try_from(config).map_err(|error| unknown(&error))?;
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        tracing::info!(namespace, selector = settings.selector, "watching the pods of workers");
        Ok(Self {
            api: Api::namespaced_with(client.clone(), &namespace, &resource),
            client,
            selector: settings.selector.clone(),
            known: Known::new(&settings.container),
            pods,
            metrics: metrics.clone(),
        })
    }

    /// Watches without an end.
    pub(super) async fn run(mut self) {
        let mut tries = 0u32;
        loop {
            let begun = Instant::now();
            let ended = self.watch().await;
            if begun.elapsed() > PAUSE_MAX {
                tries = 0;
            }
            tries = tries.saturating_add(1);
            if let Err(error) = ended {
                self.metrics.pod_watch_errors.inc();
                tracing::warn!(error, tries, "pods cannot be watched; beats and channels tell of deaths");
            }
            let longest = PAUSE.saturating_mul(1 << tries.min(10)).min(PAUSE_MAX);
            sleep(longest.mul_f64(rand_share())).await;
        }
    }

    /// Lists the pods and follows them, until that fails or they are to be listed again.
    async fn watch(&mut self) -> Result<(), String> {
        let version = self.list().await?;
        self.follow(version).await
    }

    /// Looks at all pods, page by page. Returns the version to follow from.
    async fn list(&mut self) -> Result<String, String> {
        let mut params =
            ListParams { label_selector: self.selector.clone(), limit: Some(PAGE), ..ListParams::default() };
        let mut pods = Vec::new();
        loop {
            let request = Request::new(self.api.resource_url()).list(&params).map_err(|error| error.to_string())?;
            // `Api::list` logs the whole answer where it cannot be read, with everything that is in the pods.
            let answer = timeout(ANSWER_TIMEOUT, self.client.request_text(request)).await;
            let text = answer.map_err(|_| SILENT.to_owned())?.map_err(|error| error.to_string())?;
            let page: ObjectList<Pod> = serde_json::from_str(&text).map_err(|error| format!("a list: {error}"))?;
            pods.extend(page.items);
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let ends = self.known.listed(pods);
                self.tell(ends);
                return page.metadata.resource_version.ok_or_else(|| "a list has no version".to_owned());
            }
        }
    }

    /// Follows changes, over one watch after the other, until the server has forgotten the version (410): then they are to be
    /// listed again.
    async fn follow(&mut self, mut version: String) -> Result<(), String> {
        loop {
            let (begun, before) = (Instant::now(), version.clone());
            let params = WatchParams { label_selector: self.selector.clone(), ..WatchParams::default() };
            let params = params.timeout(WATCH_SECONDS);
            let events = match timeout(ANSWER_TIMEOUT, self.api.watch(&params, &version)).await {
                Ok(Ok(events)) => events,
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => return Ok(()),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(SILENT.to_owned()),
            };
            pin_mut!(events);
            let silent = |_| "the watch was silent beyond its end".to_owned();
            while let Some(event) = timeout(WATCH_TIMEOUT, events.next()).await.map_err(silent)? {
                match event.map_err(|error| error.to_string())? {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                        let ends = self.known.saw(&pod);
                        self.tell(ends);
                        version = pod.metadata.resource_version.unwrap_or(version);
                    }
                    WatchEvent::Deleted(pod) => {
                        let ends = self.known.deleted(&pod);
                        self.tell(ends);
                        version = pod.metadata.resource_version.unwrap_or(version);
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                    WatchEvent::Error(status) => return Err(format!("{}: {}", status.reason, status.message)),
                }
            }
            if version == before && begun.elapsed() < SHORT {
                return Err("the server ends watches at once".to_owned());
            }
        }
    }

    fn tell(&self, ends: impl IntoIterator<Item = End>) {
        for (uid, end) in ends {
            tracing::info!(pod = end.pod, reason = end.reason, exit_code = end.exit_code, "a pod has ended");
            self.pods.ended(&uid, end);
        }
        self.metrics.pods_watched.set(self.known.len() as i64);
    }
}

/// A share of a pause, half to all of it, so that coordinators do not ask in step.
fn rand_share() -> f64 {
    0.5 + f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 512.0
}
