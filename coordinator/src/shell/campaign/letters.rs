//! The letters of a campaign: which of them are taken up, and what became of those that were.

use std::collections::BTreeSet;

use redis::Value;
use stepfleet_protocol::{
    codec,
    id::{PartitionId, StreamId},
    limits::CHUNK_STEPS,
    message::{Answer, Reply},
    state::State,
};

use super::{
    ASKS_PER_TRIP, Campaigns,
    running::{News, Running},
};
use crate::{
    shell::links::Ask,
    store::{
        campaigns::{Item, Kind, Outcome, Taken},
        letters,
        link::{Dial, LinkError},
        read::PlacedId,
        record, reply,
    },
};

/// Letters of one partition that one look reads.
const LETTERS_PER_READ: usize = 100;
/// Open letters that one look asks about.
const POLLS: usize = 1_000;

/// What is known of an open letter.
#[derive(Debug, PartialEq)]
enum Fate {
    /// Its command has no answer yet.
    Unanswered,
    /// Its command was done, and its step is at work.
    UnderWay,
    /// It has its outcome.
    Over(Outcome, Option<String>),
}

impl<D: Dial> Campaigns<D> {
    /// Reads letters, at most `room`, and decides about each. One that has to wait for a worker holds up its partition.
    pub(super) async fn take_up(
        &mut self,
        running: &mut Running,
        room: usize,
        news: &mut News,
    ) -> Result<(), LinkError> {
        if running.campaign.when_version.is_some() {
            self.versions.look(&mut self.links, &self.keys).await?;
        }
        running.waits = None;
        let campaign = &running.campaign;
        for (partition, end) in (0u16..).zip(&campaign.ends) {
            let left = room - news.taken.len();
            let at = running.at.get(&partition).copied().unwrap_or(StreamId::ZERO);
            if left == 0 || at >= *end {
                continue;
            }
            let key = self.keys.partition(PartitionId(partition)).dead();
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(format!("({at}")).arg(end.to_string()).arg("COUNT").arg(left.min(LETTERS_PER_READ));
            // A node that is away holds up its own letters only.
            let Ok(found) = self.links.read(&key, range).await else { continue };
            let found = reply::entries(found);
            let mut is_last = found.len() < left.min(LETTERS_PER_READ);
            for (entry, fields) in found {
                let id = PlacedId { entry, partition: PartitionId(partition) };
                let letter = letters::decode(&fields).filter(|l| campaign.filter.takes(campaign.at_ms, id, l));
                if let Some(letter) = letter {
                    let (run, step) = (letter.run, letter.step.to_string());
                    if letter.returns >= campaign.returns_max && campaign.kind == Kind::Replay {
                        let note = Some(format!("its step came back {} times", letter.returns));
                        news.items.push(Item { letter: id, run, step, outcome: Outcome::Skipped, note });
                    } else if let Some(why) =
                        campaign.when_version.as_deref().and_then(|v| self.versions.miss(v, &letter))
                    {
                        running.waits = Some(why);
                        is_last = false;
                        break;
                    } else {
                        news.taken.push((id, Taken { run, index: letter.index, step, answered: false }));
                    }
                }
                news.at.insert(partition, entry);
            }
            if is_last {
                news.at.insert(partition, *end);
            }
        }
        Ok(())
    }

    /// Asks what became of some of the open letters.
    pub(super) async fn poll(&mut self, running: &mut Running, news: &mut News) -> Result<(), LinkError> {
        let from = running.next.take();
        let some: Vec<(PlacedId, Taken)> = running
            .open
            .iter()
            .filter(|(id, _)| from.is_none_or(|from| **id > from))
            .take(POLLS)
            .map(|(id, (taken, _))| (*id, taken.clone()))
            .collect();
        running.next = if some.len() == POLLS { some.last().map(|(id, _)| *id) } else { None };
        let ask = |(id, taken): &(PlacedId, Taken)| {
            let keys = self.keys.partition(id.partition);
            let chunk = taken.index / CHUNK_STEPS;
            let run = if chunk == 0 { keys.run(&taken.run) } else { keys.chunk(&taken.run, chunk) };
            let get = redis::cmd("GET").arg(keys.reply(&running.campaign.command(*id))).clone();
            // The answer first: the step is then read as it is after it.
            Ask::new(&run, vec![get, redis::cmd("HGET").arg(&run).arg(taken.index).clone()])
        };
        let asks = some.iter().map(ask).collect();
        let answers = self.links.gather(asks, ASKS_PER_TRIP).await;
        let gives_up = running.gives_up(news.now_ms);
        let unsendable: BTreeSet<PlacedId> = news.items.iter().map(|item| item.letter).collect();
        for ((id, taken), answer) in some.into_iter().zip(answers) {
            if unsendable.contains(&id) {
                continue;
            }
            // Who cannot say it now is asked again.
            let Some(answer) = answer.ok().filter(|answer| answer.replies.iter().all(|r| reply::error(r).is_none()))
            else {
                continue;
            };
            let fate = match fate(running.campaign.kind, id, taken.answered, &answer.replies) {
                Fate::Unanswered | Fate::UnderWay if gives_up => {
                    Fate::Over(Outcome::Unknown, Some("the campaign ended before it was known".into()))
                }
                other => other,
            };
            match fate {
                Fate::Over(outcome, note) => {
                    news.items.push(Item { letter: id, run: taken.run, step: taken.step, outcome, note });
                }
                Fate::UnderWay if !taken.answered => news.answered.push((id, Taken { answered: true, ..taken })),
                Fate::UnderWay | Fate::Unanswered => {}
            }
        }
        Ok(())
    }
}

/// What became of a letter, by the answer to its command and the state of its step.
fn fate(kind: Kind, id: PlacedId, answered: bool, replies: &[Value]) -> Fate {
    let reply: Option<Reply> = replies.first().and_then(reply::bytes).and_then(|bytes| codec::unpack(bytes).ok());
    let answer = reply.and_then(|reply| reply.answers.into_iter().next());
    let (outcome, note) = match answer {
        None if !answered => return Fate::Unanswered,
        None | Some(Answer::Done { .. } | Answer::Known { .. }) => {
            if kind == Kind::Discard {
                return Fate::Over(Outcome::Discarded, None);
            }
            let step = replies.get(1).and_then(reply::bytes).and_then(|bytes| record::unpack_step(bytes).ok());
            match step.map(|step| (step.state, step.letter)) {
                None => (Outcome::Unknown, Some("its run is gone".into())),
                Some((State::Completed, _)) => (Outcome::Completed, None),
                Some((State::Failed, letter)) => {
                    (Outcome::FailedAgain, letter.map(|entry| PlacedId { entry, ..id }.to_string()))
                }
                Some((State::Cancelled | State::Skipped, _)) => (Outcome::Cancelled, None),
                Some(_) => return Fate::UnderWay,
            }
        }
        Some(Answer::Conflict { message, .. } | Answer::Refused { message, .. }) => (Outcome::Skipped, Some(message)),
        Some(Answer::NotFound | Answer::NoPlan) => (Outcome::Skipped, Some("its run is gone".into())),
    };
    Fate::Over(outcome, note)
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::id::CommandId;
    use uuid::Uuid;

    use super::*;
    use crate::machine::run::Step;

    #[test]
    fn an_answer_that_is_kept_no_more_does_not_make_a_letter_a_skipped_one() {
        let id = PlacedId { entry: StreamId { ms: 1, seq: 0 }, partition: PartitionId(0) };
        let step = |state| Value::BulkString(record::pack_step(&Step { state, ..Step::fresh(0) }));
        let done = Reply { v: 1, id: CommandId(Uuid::nil()), answers: vec![Answer::Done { state: State::Queued }] };
        let done = || Value::BulkString(codec::pack(&done));
        let of = |answered, replies: &[Value]| fate(Kind::Replay, id, answered, replies);
        assert_eq!(of(false, &[Value::Nil, step(State::Completed)]), Fate::Unanswered, "it is not ours that did it");
        assert_eq!(of(false, &[done(), step(State::Processing)]), Fate::UnderWay);
        assert_eq!(of(true, &[Value::Nil, step(State::Processing)]), Fate::UnderWay);
        assert_eq!(of(true, &[Value::Nil, step(State::Completed)]), Fate::Over(Outcome::Completed, None));
        assert_eq!(of(true, &[Value::Nil, step(State::Failed)]), Fate::Over(Outcome::FailedAgain, None));
    }
}
