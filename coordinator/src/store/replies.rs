//! Answers of owners on their way to those who wait for them.
//!
//! An answer is kept under its command's id and announced on the partition's channel. The announcement is the fast way; the
//! key is read again and again, less and less often, because an announcement may be lost.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use stepfleet_connect::{Event, Redis};
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId},
    keys::{PartitionKeys, slot},
    message::Reply,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    ask::{self, AskError},
    client::{Client, lock},
    reply,
};

/// How long a caller waits for an answer.
const WAIT: Duration = Duration::from_secs(5);
/// Callers that may wait at once.
const WAITING_MAX: usize = 50_000;
/// Time between two looks for new partitions, and between tries to find the first.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(1);
/// When the key of an answer is read, after the command was sent.
const LOOKS_MS: [u64; 5] = [100, 300, 1_000, 2_500, 4_500];

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Replies {
    waiting: Mutex<HashMap<CommandId, oneshot::Sender<Reply>>>,
}

/// One who waits; dropping it ends the waiting.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    replies: &'a Replies,
    id: CommandId,
    comes: oneshot::Receiver<Reply>,
    until: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        lock(&self.replies.waiting).remove(&self.id);
    }
}

impl Replies {
    /// Announces that somebody waits for the answer to `id`; none if too many wait already.
    pub(super) fn expect(&self, id: CommandId) -> Option<Wait<'_>> {
        let (tell, comes) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= WAITING_MAX {
            return None;
        }
        // Two callers with one id: the earlier one finds the key.
        waiting.insert(id, tell);
        Some(Wait { replies: self, id, comes, until: Instant::now() + WAIT })
    }

    /// Hands announced answers to those who wait for them.
    fn announce(&self, message: &[u8]) {
        let Ok(replies) = codec::unpack::<Vec<Reply>>(message) else { return };
        let mut waiting = lock(&self.waiting);
        for reply in replies {
            if let Some(tell) = waiting.remove(&reply.id) {
                // Whoever waited may have left.
                let _ = tell.send(reply);
            }
        }
    }
}

impl Client {
    /// Listens to the announcements of all partitions, for ever; one subscription connection a node. Without it answers
    /// are still found, but later.
    pub async fn hear(&self) {
        let (subscriber, mut events) = self.redis.subscribe();
        let subscribing = async {
            let mut wanted = 0;
            loop {
                let count = self.partitions().await.unwrap_or(wanted);
                for partition in (wanted..count).map(PartitionId) {
                    let channel = self.keys.partition(partition).replies();
                    // Without a confirmation the wish stands.
                    let _ = subscriber.ssubscribe(slot(partition), channel.as_bytes()).await;
                }
                wanted = count;
                tokio::time::sleep(LOOK_FOR_PARTITIONS).await;
            }
        };
        let hearing = async {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Message { payload, .. } => self.shared.replies.announce(&payload),
                    // Whoever waits looks at the keys in any case.
                    Event::Live { .. } | Event::Lost { .. } | Event::Overflow => {}
                }
            }
        };
        tokio::select! {
            () = subscribing => {}
            () = hearing => {}
        }
    }
}

impl Wait<'_> {
    /// The answer; none if it does not come in time.
    pub(super) async fn answer(mut self, redis: &Redis, keys: &PartitionKeys) -> Result<Option<Reply>, AskError> {
        let begun = Instant::now();
        for look in LOOKS_MS {
            let next = (begun + Duration::from_millis(look)).min(self.until);
            match timeout_at(next, &mut self.comes).await {
                Ok(Ok(reply)) => return Ok(Some(reply)),
                // Another caller with the same id has taken the place.
                Ok(Err(_)) => sleep_until(next).await,
                Err(_) => {}
            }
            let mut pipe = redis::pipe();
            pipe.cmd("GET").arg(keys.reply(&self.id));
            let found = ask::all_good(ask::ask_twice(redis, slot(keys.partition), &pipe).await?)?;
            if let Some(reply) = found.first().and_then(reply::bytes).and_then(|b| codec::unpack(b).ok()) {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }
}
