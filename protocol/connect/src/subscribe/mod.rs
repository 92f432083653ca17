//! Sharded pub/sub that is never silently deaf.
//!
//! One task (`desk`) knows which channels are wanted and places each on the node that serves its slot; one task and one
//! connection per node (`ear`) listens. Whatever ends an ear (reset, failed ping, MOVED, a `sunsubscribe` that nobody
//! asked for because a slot moved) takes the same path: [`Event::Lost`], back-off, new topology, place again,
//! [`Event::Live`].
//!
//! RACE: a message that is published while a channel is not live is gone; publisher and subscriber cannot both win. So
//! whoever listens for a bell acts on every `Live` and `Overflow` as if the bell had rung.

mod desk;
mod ear;
mod outlet;

use tokio::sync::{mpsc, oneshot};

pub use self::outlet::Events;
use self::outlet::{Outlet, outlet};
use crate::client::Redis;
use crate::error::Error;
use crate::limits::{ASK_TIMEOUT, SUBSCRIBER_ASKS_MAX};

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something was published.
    Message {
        /// The channel.
        channel: Vec<u8>,
        /// The bytes.
        payload: Vec<u8>,
    },
    /// The channel is subscribed from now on, for the first time or again. What was published before may be missed.
    Live {
        /// The channel.
        channel: Vec<u8>,
    },
    /// The channel is deaf until its next `Live`.
    Lost {
        /// The channel.
        channel: Vec<u8>,
    },
    /// Messages were dropped because the reader was slow: treat every channel as if it had rung.
    Overflow,
}

/// The handle to subscribe with. Clones share the connections; they close when all clones or the [`Events`] are gone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    asks: mpsc::Sender<Ask>,
}

enum Ask {
    Subscribe { slot: u16, channel: Vec<u8>, done: oneshot::Sender<()> },
    Unsubscribe { channel: Vec<u8> },
}

impl Redis {
    /// Starts a subscriber with no channel yet. It connects when the first channel needs it.
    #[must_use]
    pub fn subscribe(&self) -> (Subscriber, Events) {
        let (asks, asked) = mpsc::channel(SUBSCRIBER_ASKS_MAX);
        let (outlet, events) = outlet();
        tokio::spawn(desk::Desk::new(self.clone(), outlet).run(asked));
        (Subscriber { asks }, events)
    }
}

impl Subscriber {
    /// Wants a channel and waits until the server confirmed it: what is published after `Ok` is heard, or its loss is.
    /// `slot` is the slot of the channel's name. Wanting a channel twice is the same as once.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if there is no confirmation in [`ASK_TIMEOUT`]. The wish stands, and [`Event::Live`] will
    /// tell when it came true.
    pub async fn ssubscribe(&self, slot: u16, channel: &[u8]) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        let ask = Ask::Subscribe { slot, channel: channel.to_vec(), done };
        let unconfirmed = || Error::Unreachable {
            node: format!("slot {slot}"),
            why: "the subscription is not confirmed yet; it is tried on".to_owned(),
        };
        let wait = async {
            self.asks.send(ask).await.map_err(|_| unconfirmed())?;
            confirmed.await.map_err(|_| unconfirmed())
        };
        tokio::time::timeout(ASK_TIMEOUT, wait).await.unwrap_or_else(|_| Err(unconfirmed()))
    }

    /// No longer wants a channel. A few more messages of it may arrive.
    pub async fn sunsubscribe(&self, channel: &[u8]) {
        // If the desk is gone, so is the subscription.
        let _gone = self.asks.send(Ask::Unsubscribe { channel: channel.to_vec() }).await;
    }
}
