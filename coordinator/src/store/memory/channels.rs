//! Pub/sub in process: who listens to which channel.
//!
//! PUBLISH and SPUBLISH share one set of channels here. A subscriber that does not keep up is dropped, as a server drops a
//! client whose output buffer is full.

use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// Messages that may wait at one subscriber.
const WAITING_MAX: usize = 1024;

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Channels(BTreeMap<Vec<u8>, Vec<mpsc::Sender<Vec<u8>>>>);

impl Channels {
    pub(super) fn subscribe(&mut self, channel: &[u8]) -> mpsc::Receiver<Vec<u8>> {
        let (to, from) = mpsc::channel(WAITING_MAX);
        self.0.entry(channel.to_vec()).or_default().push(to);
        from
    }

    /// Delivers to everyone who listens and answers how many that were.
    pub(super) fn publish(&mut self, channel: &[u8], message: &[u8]) -> usize {
        let Some(subscribers) = self.0.get_mut(channel) else { return 0 };
        subscribers.retain(|subscriber| subscriber.try_send(message.to_vec()).is_ok());
        subscribers.len()
    }

    /// How many listen to a channel.
    pub(super) fn count(&self, channel: &[u8]) -> usize {
        self.0.get(channel).map_or(0, |all| all.iter().filter(|subscriber| !subscriber.is_closed()).count())
    }

    /// Ends every subscription, as a lost connection does.
    pub(super) fn cut(&mut self) {
        self.0.clear();
    }
}
