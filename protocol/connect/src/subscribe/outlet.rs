//! From those who hear to the one who reads, without ever waiting. Messages may be dropped when the reader is slow; that a
//! channel is lost, or live again, never is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::Event;
use crate::limits::SUBSCRIBER_EVENTS_MAX;

/// What a reader that is slow has not been told of a channel: that it was lost, and then that it is live.
#[derive(Debug, Default)]
struct Turn {
    lost: bool,
    live: bool,
}

/// Turns of channels for which the queue had no room. While there are some, later ones of any channel join them, so that
/// what the queue holds is older.
type Turns = Mutex<BTreeMap<Vec<u8>, Turn>>;

/// Where events are put.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) queue: mpsc::Sender<Event>,
    overflow: Arc<AtomicBool>,
    turns: Arc<Turns>,
}

/// The events of one [`super::Subscriber`], in the order of arrival; at most [`SUBSCRIBER_EVENTS_MAX`] wait, and one turn of
/// each channel.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    overflow: Arc<AtomicBool>,
    turns: Arc<Turns>,
}

/// Both ends.
pub(super) fn outlet() -> (Outlet, Events) {
    let (put, queue) = mpsc::channel(SUBSCRIBER_EVENTS_MAX);
    let (overflow, turns) = (Arc::<AtomicBool>::default(), Arc::<Turns>::default());
    let outlet = Outlet { queue: put, overflow: Arc::clone(&overflow), turns: Arc::clone(&turns) };
    (outlet, Events { queue, overflow, turns })
}

impl Outlet {
    /// Puts a message, which is dropped if there is no room, or a turn of a channel, which is kept.
    pub(super) fn put(&self, event: Event) {
        match event {
            Event::Live { channel } => self.turn(channel, true),
            Event::Lost { channel } => self.turn(channel, false),
            Event::Message { .. } | Event::Overflow => {
                if self.queue.try_send(event).is_err() {
                    self.overflow.store(true, Ordering::Release);
                }
            }
        }
    }

    fn turn(&self, channel: Vec<u8>, live: bool) {
        let mut turns = lock(&self.turns);
        if turns.is_empty() && self.queue.try_send(event(channel.clone(), live)).is_ok() {
            return;
        }
        let turn = turns.entry(channel).or_default();
        *turn = Turn { lost: turn.lost || !live, live };
    }
}

impl Events {
    /// The next event; `None` when every [`super::Subscriber`] is gone. Safe to drop half-way.
    pub async fn recv(&mut self) -> Option<Event> {
        // A set flag means that the queue was full, so a reader that waits below is always woken for it.
        if self.overflow.swap(false, Ordering::AcqRel) {
            return Some(Event::Overflow);
        }
        match self.queue.try_recv() {
            Ok(event) => return Some(event),
            // Turns are newer than all that was in the queue. RACE: one that comes after this look found the queue full again,
            // so that the reader below does not wait, and finds it with its next look.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                if let Some(event) = self.next_turn() {
                    return Some(event);
                }
            }
        }
        self.queue.recv().await
    }

    fn next_turn(&self) -> Option<Event> {
        let mut turns = lock(&self.turns);
        let mut first = turns.first_entry()?;
        if first.get().lost && first.get().live {
            first.get_mut().lost = false;
            return Some(event(first.key().clone(), false));
        }
        let (channel, turn) = first.remove_entry();
        Some(event(channel, turn.live))
    }
}

fn event(channel: Vec<u8>, live: bool) -> Event {
    if live { Event::Live { channel } } else { Event::Lost { channel } }
}

fn lock(turns: &Turns) -> MutexGuard<'_, BTreeMap<Vec<u8>, Turn>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(channel: &str) -> Event {
        event(channel.into(), true)
    }

    fn lost(channel: &str) -> Event {
        event(channel.into(), false)
    }

    async fn rest(events: &mut Events) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            if !matches!(event, Event::Message { .. }) {
                all.push(event);
            }
        }
        all
    }

    #[tokio::test]
    async fn a_slow_reader_misses_messages_and_no_turn_of_a_channel() {
        let (outlet, mut events) = outlet();
        outlet.put(live("a"));
        for _ in 0..SUBSCRIBER_EVENTS_MAX {
            outlet.put(Event::Message { channel: b"a".to_vec(), payload: Vec::new() });
        }
        for turn in [lost("a"), live("b"), live("a"), lost("c"), lost("b")] {
            outlet.put(turn);
        }
        assert_eq!(events.recv().await, Some(Event::Overflow));
        assert_eq!(events.recv().await, Some(live("a")));
        // There is room again, and what comes now is not told before what came first.
        outlet.put(live("c"));
        drop(outlet);
        assert_eq!(rest(&mut events).await, [lost("a"), live("a"), lost("b"), lost("c"), live("c")]);
    }
}
