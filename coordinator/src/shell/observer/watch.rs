//! What is known of the workers, and who of them is dead. No I/O: times and answers are told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use stepfleet_protocol::{
    beat::{Beat, Held, Phase, Sight},
    id::{PartitionId, StreamId},
    limits::{DEAD_AFTER_MS, GONE_AFTER_MS},
    name::Name,
    pod::PodEnd,
};
use tokio::time::Instant;

use super::{
    super::fleet::Slots,
    BEATS, CHANNEL, POD,
    channel::{CALM, Channel, Look},
    pods::{Ended, MISSED_FOR, MISSED_FOR_IN_UNREST, NEWS_KEPT},
};
use crate::mutants::mutant;

/// Looks further apart than this say nothing about the time between them: counts start again.
pub(super) const GAP_MAX: Duration = Duration::from_secs(6);
/// A worker whose beat did not move for this long is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_millis(DEAD_AFTER_MS);
/// A dead worker's registry entry stays so long, for other coordinators to see it.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(120);
/// A worker that gives no sign of life of any kind for this long is gone.
const GONE_AFTER: Duration = Duration::from_millis(GONE_AFTER_MS);
/// When more than one of so many workers has lost its channel lately and lives, servers or wires do that, not deaths.
const STORM: usize = 20;
/// A fleet of fewer living workers never counts as dying all at once.
const FLEET_MIN: usize = 3;

/// What a worker's record said.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Beats so far.
    pub(super) count: Option<i64>,
    /// Its account of itself.
    pub(super) beat: Option<Beat>,
    /// How many times it lost its channel; none if it does not beat at once when it does.
    pub(super) losses: Option<i64>,
}

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
    channel: Channel,
    losses: Option<i64>,
    /// When it was seen to have lost its channel and to live.
    fell: Option<Instant>,
    /// Since when it has been missed after the end of its pod, and its beat then.
    missed: Option<(Instant, Option<i64>)>,
    /// How its pod ended, and it with it.
    pod_end: Option<PodEnd>,
    /// Its death was counted.
    is_buried: bool,
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
            channel: Channel::default(),
            losses: None,
            fell: None,
            missed: None,
            pod_end: None,
            is_buried: false,
        }
    }

    /// How long nobody was on its channel and its beat did not move, though such a worker beats every second.
    fn gone(&self) -> Option<Duration> {
        self.losses?;
        Some(self.looked.saturating_duration_since(self.channel.absent()?.max(self.moved)))
    }

    fn is_in_pod(&self, uid: &str) -> bool {
        self.beat.as_ref().is_some_and(|beat| beat.pod.as_deref() == Some(uid))
    }

    /// Whether two looks that were so far apart have found it gone, without a beat between them.
    fn is_missed(&mut self, now: Instant, wait: Duration) -> bool {
        if self.losses.is_none() || !self.channel.is_empty() {
            return false;
        }
        let is_deaf = self.fell.is_some_and(|at| now.saturating_duration_since(at) < CALM);
        let wait = if is_deaf { MISSED_FOR_IN_UNREST } else { wait };
        match self.missed {
            Some((since, count)) if count == self.count => self.looked.saturating_duration_since(since) >= wait,
            _ => {
                self.missed = Some((now, self.count));
                false
            }
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
    /// When the looks paused, or so many were gone at once that it was no death.
    unrest: Option<Instant>,
    /// Ends of pods whose workers are not missed yet.
    pod_ends: Vec<Ended>,
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
            watched.channel.unheard();
        }
        self.unrest = Some(now);
    }

    /// A look at a worker's record, sent and answered then, in the same trip as a write that was accepted.
    pub(super) fn seen(&mut self, id: &str, (sent, got): (Instant, Instant), record: Record) {
        let Record { count, beat, losses } = record;
        let watched = self.by_id.entry(id.to_string()).or_insert_with(|| Watched::new(got));
        (watched.looked, watched.trip) = (sent, got - sent);
        // A trip that took so long is a gap of its own: this process or the server stood still.
        if got - sent > GAP_MAX || (count.is_some() && count != watched.count) {
            watched.moved = got;
            // Whoever was taken for dead is back, whatever Kubernetes said.
            (watched.is_buried, watched.pod_end) = (false, None);
        }
        if losses > watched.losses && watched.losses.is_some() {
            watched.fell = Some(got);
        }
        watched.losses = losses;
        watched.count = count.or(watched.count);
        watched.beat = beat.or(watched.beat.take());
    }

    /// A look at a worker's record failed, or the server took no write there: it may not have been able to beat.
    pub(super) fn unseen(&mut self, id: &str, now: Instant) {
        if let Some(watched) = self.by_id.get_mut(id).filter(|_| !mutant("outage_counts_as_silence")) {
            (watched.moved, watched.looked) = (now, now);
        }
    }

    /// Workers that beat at once when they lose their channel.
    pub(super) fn quick(&self) -> Vec<String> {
        self.by_id.iter().filter(|(_, w)| w.losses.is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// A look at a worker's channel.
    pub(super) fn heard(&mut self, id: &str, look: Look, subscribers: i64) {
        if let Some(watched) = self.by_id.get_mut(id) {
            watched.channel.heard(look, subscribers);
        }
    }

    /// A look at a worker's channel failed.
    pub(super) fn unheard_channel(&mut self, id: &str) {
        if let Some(watched) = self.by_id.get_mut(id) {
            watched.channel.unheard();
        }
    }

    /// A worker that seemed to be gone did something.
    pub(super) fn lives(&mut self, id: &str, now: Instant) {
        if let Some(watched) = self.by_id.get_mut(id) {
            watched.channel.start_again(now);
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

    /// Who is dead. When more than a third of the living fleet would die at once, something else is the matter: they get one
    /// more period. Who was dead before, by its beats or by its channel, stays so, and is no part of that.
    pub(super) fn verdict(&self) -> Verdict {
        let silent: Vec<(&String, &Watched)> = self.by_id.iter().filter(|(_, w)| w.silent() >= DEAD_AFTER).collect();
        let surely = |w: &Watched| w.is_buried || w.silent() >= 2 * DEAD_AFTER;
        let new = silent.iter().filter(|(_, w)| !surely(w)).count();
        let living = self.by_id.values().filter(|w| !w.is_buried).count();
        let hold = living >= FLEET_MIN && new * 3 > living;
        let dead = silent.into_iter().filter(|(_, w)| !hold || surely(w)).map(|(id, _)| id.clone());
        Verdict { dead: dead.collect(), held_back: if hold { new } else { 0 } }
    }

    /// Who is gone: nobody is on the channel that the worker was on, and it does not beat, for 4 s. Nobody is while other workers
    /// lose their channels and live, and in the half minute after a pause, or after more than a third of the living fleet was
    /// gone from its channels at once: then beats alone tell.
    pub(super) fn gone(&mut self, now: Instant) -> BTreeSet<String> {
        let living = self.by_id.values().filter(|w| !w.is_buried);
        let absent = living.clone().filter(|w| w.channel.absent().is_some()).count();
        let living = living.count();
        if living >= FLEET_MIN && absent * 3 > living {
            self.unrest = Some(now);
        }
        if !self.is_calm(now) {
            return BTreeSet::new();
        }
        let gone = |w: &Watched| w.gone().is_some_and(|time| time >= GONE_AFTER);
        self.by_id.iter().filter(|(_, w)| gone(w)).map(|(id, _)| id.clone()).collect()
    }

    /// Whether a worker has told this uid.
    pub(super) fn is_in_pod(&self, uid: &str) -> bool {
        self.by_id.values().any(|watched| watched.is_in_pod(uid))
    }

    /// Who ended with a pod: it told its uid, and since the end was told two looks have found nobody on its channel, where
    /// somebody was, and no beat between them. `news` came before the looks. A worker that the next container of the same pod has
    /// started is on its own channel, or has not said yet that it was.
    pub(super) fn ended_with_pods(&mut self, news: Vec<Ended>, now: Instant) -> BTreeSet<String> {
        let wait = if self.is_calm(now) { MISSED_FOR } else { MISSED_FOR_IN_UNREST };
        self.pod_ends.extend(news);
        self.pod_ends.retain(|ended| now.saturating_duration_since(ended.at) < NEWS_KEPT);
        let (by_id, ends) = (&mut self.by_id, &self.pod_ends);
        // Whoever is there, or is asked after no more, is not missed.
        let is_asked_after = |w: &Watched| w.channel.is_empty() && ends.iter().any(|ended| w.is_in_pod(&ended.uid));
        by_id.values_mut().filter(|w| !is_asked_after(w)).for_each(|w| w.missed = None);
        self.pod_ends.retain(|ended| {
            let mut is_done = false;
            for watched in by_id.values_mut().filter(|w| w.is_in_pod(&ended.uid) && w.pod_end.is_none()) {
                if watched.is_missed(now, wait) {
                    watched.pod_end = Some(ended.end.clone());
                    is_done = true;
                }
            }
            !is_done
        });
        self.by_id.iter().filter(|(_, w)| w.pod_end.is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// Whether a second look is wanted soon, at a worker that the first one missed.
    pub(super) fn wants_a_second_look(&self) -> bool {
        self.by_id.values().any(|w| w.missed.is_some() && w.pod_end.is_none())
    }

    fn is_calm(&self, now: Instant) -> bool {
        let lately = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < CALM);
        let fallen = self.by_id.values().filter(|w| lately(w.fell)).count();
        !lately(self.unrest) && fallen * STORM <= self.len()
    }

    /// How many workers would be missed within seconds, were they gone now.
    pub(super) fn watched(&self, now: Instant) -> usize {
        if self.is_calm(now) { self.by_id.values().filter(|w| w.channel.is_watched(now)).count() } else { 0 }
    }

    /// Notes deaths. Returns those that are new, with what told of them.
    pub(super) fn bury(&mut self, dead: &BTreeSet<String>) -> Vec<(String, &'static str)> {
        let mut new = Vec::new();
        for id in dead {
            let Some(watched) = self.by_id.get_mut(id).filter(|watched| !watched.is_buried) else { continue };
            watched.is_buried = true;
            let way = match watched.pod_end {
                Some(_) => POD,
                None if watched.silent() < DEAD_AFTER => CHANNEL,
                None => BEATS,
            };
            new.push((id.clone(), way));
        }
        new
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
            gone_ms: watched.channel.absent().map(|since| ms(watched.looked.saturating_duration_since(since))),
            pod: watched.pod_end.clone(),
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
mod tests;
