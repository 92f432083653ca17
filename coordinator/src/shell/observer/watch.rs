//! What is known of the workers, and who of them is dead. No I/O: times and answers are told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use stepfleet_protocol::{
    beat::{Beat, Held, Phase, Sight},
    id::{PartitionId, StreamId},
    limits::DEAD_AFTER_MS,
    name::Name,
};
use tokio::time::Instant;

use super::super::fleet::Slots;
use crate::mutants::mutant;

/// Looks further apart than this say nothing about the time between them: counts start again.
pub(super) const GAP_MAX: Duration = Duration::from_secs(6);
/// A worker whose beat did not move for this long is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_millis(DEAD_AFTER_MS);
/// A dead worker's registry entry stays so long, for other coordinators to see it.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(120);
/// A fleet of fewer workers never counts as dying all at once.
const FLEET_MIN: usize = 3;

/// What is known of one worker.
#[derive(Debug)]
pub(super) struct Watched {
    count: Option<i64>,
    /// When the beat was seen to have moved, or the count was started again.
    moved: Instant,
    /// When the last good look at its record began.
    looked: Instant,
    /// How long that look took.
    trip: Duration,
    beat: Option<Beat>,
    /// Jobs were pending at it at the last look.
    holds: bool,
    /// Entries that were pending and not held, and the beat when that was first seen.
    unheard: HashMap<(PartitionId, Name, StreamId), i64>,
}

impl Watched {
    fn new(now: Instant) -> Self {
        Self {
            count: None,
            moved: now,
            looked: now,
            trip: Duration::ZERO,
            beat: None,
            holds: false,
            unheard: HashMap::new(),
        }
    }

    /// How long its beat surely did not move although it could have.
    fn silent(&self) -> Duration {
        self.looked.saturating_duration_since(self.moved)
    }
}

/// Who is dead, and whether that has been doubted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Workers that are dead.
    pub(super) dead: BTreeSet<String>,
    /// Workers that would be, but are too many at once.
    pub(super) held_back: usize,
}

/// All workers that one coordinator knows of.
#[derive(Debug, Default)]
pub(super) struct Workers {
    by_id: BTreeMap<String, Watched>,
}

impl Workers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All that were heard of, registered or not.
    pub(super) fn ids(&self) -> BTreeSet<String> {
        self.by_id.keys().cloned().collect()
    }

    /// There was a gap: every count starts again.
    pub(super) fn start_again(&mut self, now: Instant) {
        for watched in self.by_id.values_mut() {
            (watched.moved, watched.looked) = (now, now);
        }
    }

    /// A look at a worker's record, sent and answered then, in the same trip as a write that was accepted.
    pub(super) fn seen(&mut self, id: &str, (sent, got): (Instant, Instant), count: Option<i64>, beat: Option<Beat>) {
        let watched = self.by_id.entry(id.to_string()).or_insert_with(|| Watched::new(got));
        (watched.looked, watched.trip) = (sent, got - sent);
        // A trip that took so long is a gap of its own: this process or the server stood still.
        if got - sent > GAP_MAX || (count.is_some() && count != watched.count) {
            watched.moved = got;
        }
        watched.count = count.or(watched.count);
        watched.beat = beat.or(watched.beat.take());
    }

    /// A look at a worker's record failed, or the server took no write there: it may not have been able to beat.
    pub(super) fn unseen(&mut self, id: &str, now: Instant) {
        if let Some(watched) = self.by_id.get_mut(id).filter(|_| !mutant("outage_counts_as_silence")) {
            (watched.moved, watched.looked) = (now, now);
        }
    }

    /// Forgets who left in order, which is nobody's loss. One that holds jobs is, registered or not.
    pub(super) fn keep(&mut self, registered: &BTreeSet<String>) {
        self.by_id.retain(|id, w| registered.contains(id) || (w.holds && w.silent() < FORGET_AFTER));
    }

    /// Who holds jobs now. Whoever is not known yet is watched from now on, like one whose beat does not move. Without a
    /// `complete` look nobody is known to hold none.
    pub(super) fn hold(&mut self, holders: &BTreeSet<String>, complete: bool, now: Instant) {
        for (id, watched) in &mut self.by_id {
            watched.holds = holders.contains(id) || (watched.holds && !complete);
        }
        for id in holders {
            self.by_id.entry(id.clone()).or_insert_with(|| Watched { holds: true, ..Watched::new(now) });
        }
    }

    /// Who is dead. When more than a third of a fleet would die at once, something else is the matter: they get one more
    /// period.
    pub(super) fn verdict(&self) -> Verdict {
        let silent = |for_at_least| self.by_id.iter().filter(move |(_, w)| w.silent() >= for_at_least);
        let (dead, surely) = (silent(DEAD_AFTER).count(), silent(2 * DEAD_AFTER).count());
        let hold = self.len() >= FLEET_MIN && (dead - surely) * 3 > self.len();
        let (after, held_back) = if hold { (2 * DEAD_AFTER, dead - surely) } else { (DEAD_AFTER, 0) };
        Verdict { dead: silent(after).map(|(id, _)| id.clone()).collect(), held_back }
    }

    /// Whether a worker has been dead for so long that every coordinator has seen it.
    pub(super) fn is_forgotten(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|watched| watched.silent() >= FORGET_AFTER)
    }

    /// Slots of the running workers by queue.
    pub(super) fn slots(&self) -> Slots {
        let mut slots = Slots::new();
        let beats = self.by_id.values().filter_map(|w| w.beat.as_ref()).filter(|b| b.phase == Phase::Running);
        for beat in beats {
            for queue in &beat.queues {
                *slots.entry(queue.clone()).or_default() += u64::from(beat.slots);
            }
        }
        slots
    }

    /// What is known of the holder of a pending entry: why it is held to be lost.
    pub(super) fn sight(&self, worker: &str, partition: PartitionId, queue: &Name, entry: StreamId) -> Sight {
        let Some(watched) = self.by_id.get(worker) else { return Sight::default() };
        let ms = |time: Duration| time.as_millis() as u64;
        let named = |h: &&Held| h.partition == partition && h.queue == *queue && h.entry == entry;
        let held = watched.beat.as_ref().and_then(|beat| beat.held.iter().find(named));
        Sight {
            silent_ms: ms(watched.silent()),
            trip_ms: ms(watched.trip),
            read_age_ms: watched.beat.as_ref().map(|beat| beat.read_age_ms),
            held: held.is_some(),
            running_ms: held.and_then(|held| held.running_ms),
        }
    }

    /// Of entries pending at a live worker, those that two of its beats did not name.
    pub(super) fn unheard(
        &mut self,
        worker: &str,
        partition: PartitionId,
        queue: &Name,
        mut entries: Vec<StreamId>,
    ) -> Vec<StreamId> {
        let Some(watched) = self.by_id.get_mut(worker) else { return Vec::new() };
        let (Some(count), Some(beat)) = (watched.count, &watched.beat) else { return Vec::new() };
        let held = |entry: &StreamId| {
            beat.held.iter().any(|h| h.partition == partition && h.queue == *queue && h.entry == *entry)
        };
        let mut still = HashMap::new();
        entries.retain(|entry| {
            if held(entry) {
                return false;
            }
            let place = (partition, queue.clone(), *entry);
            let since = watched.unheard.get(&place).copied().unwrap_or(count);
            still.insert(place, since);
            count > since
        });
        watched.unheard.retain(|(p, q, _), _| *p != partition || q != queue);
        watched.unheard.extend(still);
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, secs: u64) -> Instant {
        base + Duration::from_secs(secs)
    }

    /// Workers that were seen at second 0 and have been silent until the second `until`, each in a good look every 2 s.
    fn silent(base: Instant, ids: &[&str], until: u64) -> Workers {
        let mut workers = Workers::default();
        for secs in (0..=until).step_by(2) {
            ids.iter().for_each(|id| workers.seen(id, (at(base, secs), at(base, secs)), Some(1), None));
        }
        workers
    }

    #[test]
    fn silence_counts_from_the_answer_that_showed_a_beat_to_the_question_that_did_not() {
        let base = Instant::now();
        let mut workers = Workers::default();
        workers.seen("a", (base, at(base, 2)), Some(1), None);
        workers.seen("a", (at(base, 31), at(base, 33)), Some(1), None);
        assert!(workers.verdict().dead.is_empty(), "29 s");
        workers.seen("a", (at(base, 32), at(base, 34)), Some(1), None);
        assert_eq!(workers.verdict().dead.len(), 1, "30 s");
    }

    #[test]
    fn an_answer_that_took_longer_than_a_gap_proves_nothing() {
        let base = Instant::now();
        let mut workers = silent(base, &["a"], 28);
        workers.seen("a", (at(base, 40), at(base, 47)), Some(1), None);
        assert!(workers.verdict().dead.is_empty());
    }

    #[test]
    fn who_would_die_with_more_than_a_third_of_the_fleet_gets_one_more_period() {
        let base = Instant::now();
        let mut workers = silent(base, &["a", "b", "c"], 30);
        assert_eq!(workers.verdict(), Verdict { dead: BTreeSet::new(), held_back: 3 });
        workers.seen("a", (at(base, 32), at(base, 32)), Some(2), None);
        assert_eq!(workers.verdict(), Verdict { dead: BTreeSet::new(), held_back: 2 });
        workers.seen("b", (at(base, 34), at(base, 34)), Some(2), None);
        assert_eq!(workers.verdict(), Verdict { dead: ["c".into()].into(), held_back: 0 }, "one of three is a death");
        let workers = silent(base, &["a", "b", "c"], 60);
        assert_eq!((workers.verdict().dead.len(), workers.verdict().held_back), (3, 0));
        assert_eq!(silent(base, &["a", "b"], 30).verdict().dead.len(), 2, "two are no fleet");
    }

    #[test]
    fn who_was_dead_before_stays_dead_while_others_are_held_back() {
        let base = Instant::now();
        let mut workers = silent(base, &["a", "b", "c", "d"], 60);
        for id in ["b", "c", "d"] {
            workers.seen(id, (at(base, 61), at(base, 61)), Some(2), None);
            workers.seen(id, (at(base, 92), at(base, 92)), Some(2), None);
        }
        assert_eq!(workers.verdict(), Verdict { dead: ["a".into()].into(), held_back: 3 });
    }
}
