//! Counts who listens on the control channels of workers.

use std::collections::BTreeMap;

use stepfleet_protocol::keys::slot_of;

use super::{Observer, channel::Look};
use crate::{
    shell::links::{Answer, Ask},
    store::{link::Dial, reply},
};

/// Channels in one question: a third of a microsecond each.
const CHANNELS_PER_ASK: usize = 128;
/// Questions in one trip.
const ASKS_PER_TRIP: usize = 8;

/// A worker and its channel.
type Place = (String, String);

impl<D: Dial> Observer<D> {
    /// Looks at the channel of every worker that beats at once when it loses it.
    pub(super) async fn listen(&mut self) {
        let mut by_node: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for id in self.workers.quick() {
            let channel = self.keys.worker_control(&id);
            by_node.entry(self.links.node(slot_of(channel.as_bytes()))).or_default().push((id, channel));
        }
        let parts: Vec<&[Place]> = by_node.values().flat_map(|places| places.chunks(CHANNELS_PER_ASK)).collect();
        let ask = |part: &&[Place]| {
            let mut count = redis::cmd("PUBSUB");
            count.arg("SHARDNUMSUB");
            part.iter().for_each(|(_, channel)| _ = count.arg(channel));
            Ask::new(&part[0].1, vec![count])
        };
        let answers = self.links.gather(parts.iter().map(ask).collect(), ASKS_PER_TRIP).await;
        let mut empty = Vec::new();
        for (part, answer) in parts.into_iter().zip(answers) {
            let counted = answer.and_then(Answer::accepted);
            if let Err(error) = &counted {
                tracing::debug!(%error, "the channels of workers could not be looked at");
            }
            let counts = counted.as_ref().ok().and_then(|answer| reply::array(answer.replies.first()?));
            for (at, place) in part.iter().enumerate() {
                let count = counts.and_then(|counts| reply::number(counts.get(2 * at + 1)?));
                match (&counted, count) {
                    (Ok(answer), Some(0)) => empty.push((place, look(answer))),
                    (Ok(answer), Some(count)) => self.workers.heard(&place.0, look(answer), count),
                    _ => self.workers.unheard_channel(&place.0),
                }
            }
        }
        self.confirm(empty).await;
    }

    /// The count names no slot, so that a node which has lost the slot counts 0 without a word. Any key of the slot makes it say
    /// so, and then the topology is read again, also for a worker that was never seen there. RACE: a slot that leaves between the two questions had its subscribers at the first.
    async fn confirm(&mut self, empty: Vec<(&Place, Look)>) {
        let ask = |(place, _): &(&Place, Look)| Ask::new(&place.1, vec![redis::cmd("EXISTS").arg(&place.1).clone()]);
        let answers = self.links.gather(empty.iter().map(ask).collect(), CHANNELS_PER_ASK).await;
        for ((place, look), answer) in empty.into_iter().zip(answers) {
            match answer.and_then(Answer::accepted) {
                Ok(answer) if answer.steady == look.steady => self.workers.heard(&place.0, look, 0),
                _ => self.workers.unheard_channel(&place.0),
            }
        }
    }
}

fn look(answer: &Answer) -> Look {
    Look { steady: answer.steady, sent: answer.sent, got: answer.got }
}
