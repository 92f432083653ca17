//! What reaches a worker at once: cancels, the doorbell of Cluster, and the wish that it drains.
//!
//! A message may be lost; each has a slower way that does not lose: cancels are asked for with every beat, and readers look
//! by themselves every second.

use std::sync::Arc;

use futures::StreamExt;
use stepfleet_connect::{Event, Events, Subscriber};
use stepfleet_protocol::{beat::Control, codec, id::PartitionId, keys};

use crate::{
    beat,
    kit::{Hearing, Kit},
    limits::SUBSCRIBES_AT_ONCE,
};

/// Listens until the worker has left.
pub(crate) async fn run(kit: Arc<Kit>) {
    let (subscriber, events) = kit.redis.subscribe();
    tokio::join!(follow_channels(&kit, subscriber), hear(&kit, events));
}

/// Subscribes to the worker's own channel and to those of all partitions, as they come.
async fn follow_channels(kit: &Kit, subscriber: Subscriber) {
    let own = kit.keys.worker_control(&kit.worker);
    subscribe(&subscriber, keys::slot_of(own.as_bytes()), &own).await;
    let mut partitions = kit.partitions.subscribe();
    let mut known = 0;
    loop {
        let count = *partitions.borrow_and_update();
        futures::stream::iter((known..count).map(PartitionId))
            .for_each_concurrent(SUBSCRIBES_AT_ONCE, |partition| {
                let channel = kit.keys.partition(partition).control();
                let subscriber = &subscriber;
                async move { subscribe(subscriber, keys::slot(partition), &channel).await }
            })
            .await;
        known = known.max(count);
        tokio::select! {
            changed = partitions.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = kit.flush.cancelled() => return,
        }
    }
}

async fn subscribe(subscriber: &Subscriber, slot: u16, channel: &str) {
    if let Err(error) = subscriber.ssubscribe(slot, channel.as_bytes()).await {
        tracing::debug!(channel, %error, "not listening yet");
    }
}

async fn hear(kit: &Kit, mut events: Events) {
    let own = kit.keys.worker_control(&kit.worker).into_bytes();
    while let Some(event) = events.recv().await {
        match event {
            Event::Message { channel, payload } => match codec::unpack(&payload) {
                Ok(message) => obey(kit, message),
                Err(error) => {
                    let channel = String::from_utf8_lossy(&channel);
                    tracing::debug!(%channel, %error, "a message on a control channel cannot be read");
                }
            },
            // What was said meanwhile was missed: ask for it.
            Event::Live { channel } => {
                if channel == own {
                    kit.hearing.send_modify(Hearing::regain);
                }
                kit.beat_now.notify_one();
                ring(kit);
            }
            Event::Overflow => {
                kit.beat_now.notify_one();
                ring(kit);
            }
            Event::Lost { channel } => {
                if channel == own {
                    kit.hearing.send_modify(Hearing::lose);
                    kit.beat_now.notify_one();
                }
                tracing::debug!(channel = %String::from_utf8_lossy(&channel), "a control channel is lost");
            }
        }
    }
}

/// Does what a message asks.
fn obey(kit: &Kit, message: Control) {
    match message {
        Control::Cancel(jobs) => beat::cancel(kit, &jobs),
        Control::Gates(blocking) => kit.gates.set(blocking),
        Control::Drain => kit.drain.cancel(),
        Control::Jobs(queue) => {
            if kit.queues.contains(&queue) {
                ring(kit);
            }
        }
    }
}

/// Wakes the readers of Cluster.
fn ring(kit: &Kit) {
    kit.doorbell.send_modify(|rings| *rings = rings.wrapping_add(1));
}
