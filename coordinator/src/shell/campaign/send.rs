//! The commands of a campaign. Each has the id that its letter gives it, so that it may be sent as often as it has to be.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use stepfleet_protocol::{
    codec,
    id::CommandId,
    message::{Body, Command, LogEntry, Verb, command_value},
    value::{Input, Payload},
};
use tokio::time::Instant;

use super::{ASKS_PER_TRIP, Campaigns, running::Running};
use crate::{
    shell::links::Ask,
    store::{
        campaigns::{Item, Kind, Outcome, Taken},
        client::{COMMAND_VALUE_MS, take_large},
        letters,
        link::{Dial, LinkError},
        patch,
        read::PlacedId,
        reply,
    },
};

/// A command without an answer is sent again after this long. It is in the log already, unless a server that failed over has
/// lost it.
const SEND_AGAIN: Duration = Duration::from_secs(30);
/// Letters whose inputs are patched together: an input may have 1 MiB.
const PATCHED_AT_ONCE: usize = 8;

/// The input that a letter is replayed with, or why it cannot be made; none if the letter is closed, so that its command is
/// answered and not done.
type Patched = Option<Result<Payload, String>>;

impl<D: Dial> Campaigns<D> {
    /// Sends the commands of the letters that have none under way.
    pub(super) async fn send(&mut self, running: &mut Running) -> Result<(), LinkError> {
        let due = |(_, (taken, sent)): &(&PlacedId, &(Taken, Option<Instant>))| {
            !taken.answered && sent.is_none_or(|at| at.elapsed() >= SEND_AGAIN)
        };
        let due: Vec<(PlacedId, Taken)> =
            running.open.iter().filter(due).map(|(id, (taken, _))| (*id, taken.clone())).collect();
        let per_part = if running.campaign.patch.is_some() { PATCHED_AT_ONCE } else { ASKS_PER_TRIP };
        for part in due.chunks(per_part) {
            let inputs = self.patched(running, part).await?;
            let mut asks = Vec::new();
            for ((id, taken), input) in part.iter().zip(inputs) {
                running.open.entry(*id).and_modify(|open| open.1 = Some(Instant::now()));
                let input = match input.transpose() {
                    Ok(input) => input,
                    Err(why) => {
                        running.unsendable.push(skipped(*id, taken, why));
                        continue;
                    }
                };
                asks.push(self.append(running, *id, taken, input));
            }
            for answer in self.links.gather(asks, ASKS_PER_TRIP).await {
                refused(&answer?.replies)?;
            }
        }
        Ok(())
    }

    /// The inputs that the campaign's patch makes of those of these letters; none for each where it has no patch.
    async fn patched(&mut self, running: &Running, part: &[(PlacedId, Taken)]) -> Result<Vec<Patched>, LinkError> {
        let Some(changes) = &running.campaign.patch else { return Ok(part.iter().map(|_| None).collect()) };
        let read = |(id, _): &(PlacedId, Taken)| {
            let key = self.keys.partition(id.partition).dead();
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(id.entry.to_string()).arg(id.entry.to_string());
            Ask::new(&key, vec![range])
        };
        let found = self.links.gather(part.iter().map(read).collect(), ASKS_PER_TRIP).await;
        let mut out = Vec::with_capacity(part.len());
        for ((id, _), answer) in part.iter().zip(found) {
            let found = answer?.replies.pop().unwrap_or(Value::Nil);
            if let Some(text) = reply::error(&found) {
                // Without its patch it must not be sent.
                return Err(LinkError::Lost(text));
            }
            let entries = reply::entries(found);
            let Some(letter) = entries.first().and_then(|(_, fields)| letters::decode(fields)) else {
                out.push(None);
                continue;
            };
            let old = match letter.input {
                None => {
                    out.push(Some(Err(patch::UNKNOWN.into())));
                    continue;
                }
                Some(Input::None) => None,
                Some(Input::Whole(Payload::Inline(bytes))) => Some(bytes),
                Some(Input::Whole(Payload::Ref(value))) => {
                    let key = self.keys.partition(id.partition).value(&value.id);
                    let read = self.links.one(&key, redis::cmd("GET").arg(&key).clone()).await?;
                    let Value::BulkString(bytes) = read else {
                        out.push(Some(Err("the input that its step was given is gone".into())));
                        continue;
                    };
                    Some(bytes.into())
                }
            };
            out.push(Some(patch::apply(old.as_deref(), changes).map(|bytes| Payload::Inline(Bytes::from(bytes)))));
        }
        Ok(out)
    }

    fn append(&self, running: &Running, letter: PlacedId, taken: &Taken, input: Option<Payload>) -> Ask {
        let campaign = &running.campaign;
        let mut verb = match campaign.kind {
            Kind::Replay => Verb::Replay { index: taken.index, letter: letter.entry, input },
            Kind::Discard => Verb::Discard { index: taken.index, letter: letter.entry },
        };
        let id: CommandId = campaign.command(letter);
        let value = take_large(&mut verb, id);
        let why = campaign.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let command = Command {
            id,
            actor: campaign.actor.clone(),
            run: taken.run,
            reason: Some(format!("campaign {}{why}", campaign.id)),
            verb,
            // Whoever ran the campaign before may have sent it.
            again: true,
            campaign: Some(campaign.id),
        };
        let keys = self.keys.partition(letter.partition);
        let log = keys.log();
        let wire = codec::encode(&LogEntry::new(Body::Command(command)));
        let add = redis::cmd("XADD").arg(&log).arg("*").arg(wire.field).arg(&wire.bytes[..]).clone();
        let Some(value) = value else { return Ask::new(&log, vec![add]) };
        let key = keys.value(command_value(id));
        let set = redis::cmd("SET").arg(key).arg(&value[..]).arg("PX").arg(COMMAND_VALUE_MS).clone();
        Ask::new(&log, vec![redis::cmd("MULTI"), set, add, redis::cmd("EXEC")])
    }
}

fn skipped(letter: PlacedId, taken: &Taken, why: String) -> Item {
    Item { letter, run: taken.run, step: taken.step.clone(), outcome: Outcome::Skipped, note: Some(why) }
}

/// A refusal among replies, also in those of a transaction.
fn refused(replies: &[Value]) -> Result<(), LinkError> {
    let inside = replies.last().and_then(reply::array).unwrap_or_default();
    match replies.iter().chain(inside).find_map(reply::error) {
        Some(text) => Err(LinkError::Lost(text)),
        None => Ok(()),
    }
}
