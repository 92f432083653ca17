//! Whether an open dead letter is in the stream, and in the group of its fingerprint. A letter of an older program has no
//! fingerprint, and is in the stream only.

use std::collections::HashMap;

use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
};

use super::{Auditor, Place, Subject, walk::Wanted};
use crate::{
    shell::links::Ask,
    store::{commit::letter_member, link::Dial, record::DeadLetter, reply},
};

/// Letters of one trip: most are some 10 KiB at most.
const LETTERS_PER_TRIP: usize = 20;
/// Letters that are in memory at once.
const LETTERS_AT_ONCE: usize = 200;

impl<D: Dial> Auditor<D> {
    /// Those of these steps whose letter is not where it has to be.
    pub(super) async fn without_letter(&mut self, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let letter = |one: &Wanted| {
            if let Place::Letter(letter) = one.place { Some((one.subject.run, letter)) } else { None }
        };
        let found = self.letters(wanted.iter().filter_map(letter).collect()).await;
        wanted.into_iter().filter(|one| letter(one).and_then(|l| found.get(&l)) == Some(&false)).collect()
    }

    /// The same in the second look.
    pub(super) async fn missing_letters(&mut self, due: &[Subject]) -> Vec<Subject> {
        let letter = |subject: &Subject| {
            let Place::Letter(letter) = self.suspects.get(subject)?.place else { return None };
            Some((*subject, letter))
        };
        let wanted: Vec<(Subject, StreamId)> = due.iter().filter_map(letter).collect();
        let found = self.letters(wanted.iter().map(|(subject, letter)| (subject.run, *letter)).collect()).await;
        let gone = |one: &&(Subject, StreamId)| found.get(&(one.0.run, one.1)) == Some(&false);
        wanted.iter().filter(gone).map(|(subject, _)| *subject).collect()
    }

    /// Of each letter whether it is in the stream and in its group; those that cannot be asked about are left out.
    async fn letters(&mut self, wanted: Vec<(RunId, StreamId)>) -> HashMap<(RunId, StreamId), bool> {
        let mut out = HashMap::new();
        for part in wanted.chunks(LETTERS_AT_ONCE) {
            out.extend(self.some_letters(part.to_vec()).await);
        }
        out
    }

    async fn some_letters(&mut self, wanted: Vec<(RunId, StreamId)>) -> HashMap<(RunId, StreamId), bool> {
        let look = |(run, letter): &(RunId, StreamId)| {
            let (key, id) = (self.keys.partition(run.partition()).dead(), letter.to_string());
            Ask::new(&key, vec![redis::cmd("XRANGE").arg(&key).arg(&id).arg(&id).clone()])
        };
        let asks = wanted.iter().map(look).collect();
        let answers = self.links.gather(asks, LETTERS_PER_TRIP).await;
        let (mut out, mut grouped, mut asks) = (HashMap::new(), Vec::new(), Vec::new());
        for (one, answer) in wanted.into_iter().zip(answers) {
            let Some(found) = answer.ok().and_then(|answer| answer.replies.into_iter().next()) else { continue };
            // A refusal is no answer.
            if reply::array(&found).is_none() {
                continue;
            }
            let entries = reply::entries(found);
            let Some((_, fields)) = entries.first() else {
                out.insert(one, false);
                continue;
            };
            let letter = fields.first().and_then(|(field, bytes)| codec::decode::<DeadLetter>(field, bytes).ok());
            match letter.and_then(|letter| letter.fingerprint) {
                None => drop(out.insert(one, true)),
                Some(group) => {
                    let key = self.keys.partition(one.0.partition()).letters(group);
                    let member = letter_member(one.1);
                    asks.push(Ask::new(&key, vec![redis::cmd("ZSCORE").arg(&key).arg(&member[..]).clone()]));
                    grouped.push(one);
                }
            }
        }
        let answers = self.links.gather(asks, super::ASKS_PER_TRIP).await;
        for (one, answer) in grouped.into_iter().zip(answers) {
            let Some(found) = answer.ok().and_then(|answer| answer.replies.into_iter().next()) else { continue };
            out.insert(one, found != redis::Value::Nil);
        }
        out
    }
}
