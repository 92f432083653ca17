//! Ends of pods, from whoever watches them to the observer. The word of Kubernetes alone kills nobody: a worker must be gone
//! from its control channel too, as the kernel closes the connections of a process that has ended. So it says at once what the
//! channel alone says after seconds, and why.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use stepfleet_protocol::pod::PodEnd;
use tokio::{sync::Notify, time::Instant};

/// A worker is not missed before two looks so far apart found it gone: one that lives and has just lost its channel beats at once.
pub(super) const MISSED_FOR: Duration = Duration::from_millis(250);
/// The same while workers lose their channels and live: those beat every second.
pub(super) const MISSED_FOR_IN_UNREST: Duration = Duration::from_millis(2_500);
/// An end whose worker is still on its channel is kept for this long: the server may not have noticed yet.
pub(super) const NEWS_KEPT: Duration = Duration::from_secs(10);

/// Takes what is known of pods. Without anybody who tells, nothing changes.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    ends: Mutex<Vec<Ended>>,
    news: Notify,
}

/// The end of a pod, and when it was told.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) uid: String,
    pub(super) end: PodEnd,
    pub(super) at: Instant,
}

impl Pods {
    /// The worker's container in the pod of this uid has ended, or the pod is gone.
    pub fn ended(&self, uid: &str, end: PodEnd) {
        let ended = Ended { uid: uid.to_owned(), end, at: Instant::now() };
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
        self.0.news.notify_one();
    }

    /// What was told since the last time.
    pub(super) fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.0.ends.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something is told of one of these pods.
    pub(super) async fn news_of(&self, is_known: impl Fn(&str) -> bool) {
        loop {
            self.0.news.notified().await;
            let ends = self.0.ends.lock().unwrap_or_else(PoisonError::into_inner);
            if ends.iter().any(|ended| is_known(&ended.uid)) {
                return;
            }
        }
    }
}
