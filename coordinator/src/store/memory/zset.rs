//! A sorted set: members by score, then by their bytes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A score with the order of a server: never NaN, and both zeros are equal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Score(pub(super) f64);

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.partial_cmp(&other.0).expect("a score is never NaN")
    }
}

/// The members of one sorted set, by name and by score.
#[derive(Debug, Clone, Default)]
pub(super) struct ZSet {
    scores: BTreeMap<Vec<u8>, Score>,
    order: BTreeSet<(Score, Vec<u8>)>,
}

impl ZSet {
    pub(super) fn len(&self) -> usize {
        self.scores.len()
    }

    pub(super) fn score(&self, member: &[u8]) -> Option<f64> {
        self.scores.get(member).map(|score| score.0)
    }

    pub(super) fn insert(&mut self, member: &[u8], score: f64) {
        if let Some(old) = self.scores.insert(member.to_vec(), Score(score)) {
            self.order.remove(&(old, member.to_vec()));
        }
        self.order.insert((Score(score), member.to_vec()));
    }

    pub(super) fn remove(&mut self, member: &[u8]) -> bool {
        let Some(old) = self.scores.remove(member) else { return false };
        self.order.remove(&(old, member.to_vec()))
    }

    /// Every member with its score, lowest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Vec<u8>, f64)> {
        self.order.iter().map(|(score, member)| (member, score.0))
    }

    /// Every member from `score` on, lowest first.
    pub(super) fn iter_from(&self, score: f64) -> impl Iterator<Item = (&Vec<u8>, f64)> {
        self.order.range((Score(score), Vec::new())..).map(|(score, member)| (member, score.0))
    }
}
