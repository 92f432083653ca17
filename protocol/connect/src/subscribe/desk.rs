//! The desk: which channels are wanted, where each of them is, and when to try again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::ear::{self, Ear, Order, Report};
use super::{Ask, Event, Outlet};
use crate::client::Redis;
use crate::limits::{RECONNECT_BACKOFF_MAX, RECONNECT_BACKOFF_MIN, SUBSCRIBER_ASKS_MAX};
use crate::topology::NodeId;

/// Where a wanted channel is.
#[derive(PartialEq, Eq)]
enum Place {
    /// On no connection; the next retry places it.
    Nowhere,
    /// Its ear was told, and has not confirmed yet.
    Asked(u64),
    /// The server confirmed it.
    Live(u64),
}

struct Wish {
    slot: u16,
    place: Place,
    waiting: Vec<oneshot::Sender<()>>,
}

pub(super) struct Desk {
    redis: Redis,
    outlet: Outlet,
    wishes: HashMap<Vec<u8>, Wish>,
    ears: HashMap<NodeId, Ear>,
    /// Ears are numbered, so that the report of an ear that was replaced changes nothing.
    next_ear: u64,
    retry_at: Option<Instant>,
    backoff: Duration,
}

impl Desk {
    pub(super) fn new(redis: Redis, outlet: Outlet) -> Self {
        Self {
            redis,
            outlet,
            wishes: HashMap::new(),
            ears: HashMap::new(),
            next_ear: 0,
            retry_at: None,
            backoff: RECONNECT_BACKOFF_MIN,
        }
    }

    /// Works until all subscribers, or the reader of the events, are gone. Dropping the ears ends them.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let (report, mut reports) = mpsc::channel(SUBSCRIBER_ASKS_MAX);
        let events = self.outlet.queue.clone();
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.asked(ask, &report),
                    None => return,
                },
                Some(report) = reports.recv() => self.reported(report),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.retry_at = None;
                    if let Err(error) = self.redis.refresh().await {
                        tracing::debug!(%error, "the topology could not be read for a subscription");
                    }
                    self.place_all(&report);
                }
                () = events.closed() => return,
            }
        }
    }

    fn asked(&mut self, ask: Ask, report: &mpsc::Sender<Report>) {
        match ask {
            Ask::Subscribe { slot, channel, done } => {
                let wish = self.wishes.entry(channel.clone()).or_insert_with(|| Wish {
                    slot,
                    place: Place::Nowhere,
                    waiting: Vec::new(),
                });
                if matches!(wish.place, Place::Live(_)) {
                    // The asker may have given up waiting; the wish stands all the same.
                    let _given_up = done.send(());
                    return;
                }
                wish.waiting.retain(|waiting| !waiting.is_closed());
                wish.waiting.push(done);
                // While a retry is due the node is known to be away.
                if self.retry_at.is_none() && wish.place == Place::Nowhere {
                    self.place(&channel, report);
                }
            }
            Ask::Unsubscribe { channel } => {
                let Some(wish) = self.wishes.remove(&channel) else { return };
                let (Place::Asked(number) | Place::Live(number)) = wish.place else { return };
                if let Some(ear) = self.ears.values().find(|ear| ear.number == number) {
                    // An ear that is full or gone ends soon and takes the subscription with it.
                    let _ends = ear.orders.try_send(Order::Leave(channel));
                }
            }
        }
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Live { number, channel } => {
                let Some(wish) = self.wishes.get_mut(&channel).filter(|wish| wish.place == Place::Asked(number)) else {
                    return;
                };
                wish.place = Place::Live(number);
                self.backoff = RECONNECT_BACKOFF_MIN;
                for waiting in wish.waiting.drain(..) {
                    let _given_up = waiting.send(());
                }
                self.outlet.put(Event::Live { channel });
            }
            Report::Ended { number, why } => {
                tracing::debug!(why, "a subscription connection ended");
                self.ears.retain(|_, ear| ear.number != number);
                for (channel, wish) in &mut self.wishes {
                    if wish.place == Place::Live(number) {
                        self.outlet.put(Event::Lost { channel: channel.clone() });
                    }
                    if matches!(wish.place, Place::Live(at) | Place::Asked(at) if at == number) {
                        wish.place = Place::Nowhere;
                    }
                }
                self.retry_later();
            }
        }
    }

    fn place_all(&mut self, report: &mpsc::Sender<Report>) {
        let homeless: Vec<_> = self
            .wishes
            .iter()
            .filter(|(_, wish)| wish.place == Place::Nowhere)
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in homeless {
            self.place(&channel, report);
        }
    }

    /// Tells the ear of the channel's node, started if need be, to join it; if that cannot be, it is tried later.
    fn place(&mut self, channel: &[u8], report: &mpsc::Sender<Report>) {
        let Some(wish) = self.wishes.get_mut(channel) else { return };
        let Ok(node) = self.redis.node_of(wish.slot) else { return self.retry_later() };
        let ear = self.ears.entry(node.clone()).or_insert_with(|| {
            self.next_ear += 1;
            ear::start(self.next_ear, self.redis.clone(), node, self.outlet.clone(), report.clone())
        });
        match ear.orders.try_send(Order::Join(channel.to_vec())) {
            Ok(()) => wish.place = Place::Asked(ear.number),
            Err(_) => self.retry_later(),
        }
    }

    /// The waits double up to the longest, with up to half of each left to chance.
    fn retry_later(&mut self) {
        if self.retry_at.is_none() {
            let chance = 0.5 + rand::random::<f64>() / 2.0;
            self.retry_at = Some(Instant::now() + self.backoff.mul_f64(chance));
            self.backoff = (self.backoff * 2).min(RECONNECT_BACKOFF_MAX);
        }
    }
}
