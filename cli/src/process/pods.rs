//! The pods of workers, for `coordinator`: the settings of the watch.

#[cfg(feature = "kubernetes")]
mod ends;
#[cfg(feature = "kubernetes")]
mod watch;

use clap::Args;
use stepfleet_coordinator::shell::{metrics::Metrics, observer::Pods};
use tokio_util::sync::CancellationToken;

use super::Checks;
use crate::failure::Failure;

/// Longest selector, in bytes.
const SELECTOR_MAX: usize = 1_000;
/// Longest name of a namespace or a container, in bytes: a label of DNS.
const LABEL_MAX: usize = 63;

/// As they were written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct PodsArgs {
    /// Watch the pods of workers: when one ends (out of memory, crash, eviction, deletion), its jobs are given to others at once,
    /// and their errors say why. The service account must be allowed to list and watch pods; workers must tell --pod-uid.
    #[arg(long, env = "STEPFLEET_WATCH_PODS", value_parser = clap::builder::FalseyValueParser::new())]
    watch_pods: bool,
    /// Watch only pods with these labels, as `kubectl get pods --selector` takes them [default: all].
    #[arg(long, value_name = "LABELS", env = "STEPFLEET_WATCH_PODS_SELECTOR")]
    watch_pods_selector: Option<String>,
    /// Where the pods are [default: the coordinator's own namespace].
    #[arg(long, value_name = "NAMESPACE", env = "STEPFLEET_WATCH_PODS_NAMESPACE")]
    watch_pods_namespace: Option<String>,
    /// The worker's container in pods that have more than one.
    #[arg(long, value_name = "NAME", env = "STEPFLEET_WATCH_PODS_CONTAINER", default_value = "worker")]
    watch_pods_container: String,
}

/// As they are meant.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "nobody reads them without a client"))]
pub(crate) struct PodWatch {
    selector: Option<String>,
    namespace: Option<String>,
    container: String,
}

impl PodsArgs {
    /// Checks everything; the outer `None` after a problem, the inner one if no pods are to be watched.
    pub(super) fn check(&self, checks: &mut Checks) -> Option<Option<PodWatch>> {
        let selector = checks.maybe("watch_pods_selector", self.watch_pods_selector.as_deref(), selector);
        let namespace = checks.maybe("watch_pods_namespace", self.watch_pods_namespace.as_deref(), label);
        let container = checks.read("watch_pods_container", &self.watch_pods_container, label);
        let watch = PodWatch { selector: selector?, namespace: namespace?, container: container? };
        if self.watch_pods && !cfg!(feature = "kubernetes") {
            checks.problem("watch_pods", "this program was built without the feature `kubernetes`");
            return None;
        }
        Some(self.watch_pods.then_some(watch))
    }
}

impl PodWatch {
    /// Watches until `stop`, and tells what it returns.
    ///
    /// # Errors
    /// The API server is not known, or its authority cannot be read.
    #[cfg(feature = "kubernetes")]
    pub(super) async fn begin(&self, metrics: &Metrics, stop: &CancellationToken) -> Result<Pods, Failure> {
        let pods = Pods::default();
        let watch = watch::Watch::new(self, pods.clone(), metrics).await?;
        tokio::spawn(stop.clone().run_until_cancelled_owned(watch.run()));
        Ok(pods)
    }

    /// Nobody gets here: the settings were refused.
    ///
    /// # Errors
    /// Never.
    #[cfg(not(feature = "kubernetes"))]
    pub(super) async fn begin(&self, _: &Metrics, _: &CancellationToken) -> Result<Pods, Failure> {
        Ok(Pods::default())
    }
}

/// The server knows best what it takes; this finds texts that were put here by mistake.
fn selector(text: &str) -> Result<String, String> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "._-/=!,() ".contains(c);
    if !text.is_empty() && text.len() <= SELECTOR_MAX && text.chars().all(is_legal) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no label selector: allowed are 1 to {SELECTOR_MAX} letters, digits, spaces and `._-/=!,()`, as in \
         `app.kubernetes.io/component=worker,tier in (a,b)`"
    ))
}

fn label(text: &str) -> Result<String, String> {
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = |edge: char| text.starts_with(edge) || text.ends_with(edge);
    if !text.is_empty() && text.len() <= LABEL_MAX && text.bytes().all(is_legal) && !ends('-') {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}`: allowed are 1 to {LABEL_MAX} small letters, digits and `-`, which neither begins nor ends it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_and_labels_are_checked() {
        assert!(selector("app.kubernetes.io/component=worker,pool in (a,b),!old").is_ok());
        assert!(selector("").is_err() && selector("a;b").is_err());
        assert!(label("pay-roll1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(label(bad).is_err_and(|why| why.contains("allowed are")), "{bad}");
        }
    }
}
