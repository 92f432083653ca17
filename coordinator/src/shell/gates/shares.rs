//! What one owner has of the fleet's limits, and which of its jobs count against them.
//!
//! Redis keeps what each partition has of a limit ([`Tell`]); the owner may have so many jobs under way without asking again, so
//! that a job takes the place of the one that ended at no cost. What it has is lowered here before it is told, and raised only
//! by an answer, so that the sum over all partitions never exceeds the limit, however calls are lost. Which jobs count is
//! written by the commits that dispatch and end them: the next owner knows.

use std::collections::{BTreeMap, HashMap};

use stepfleet_protocol::{
    gate::Gate,
    id::{JobId, PartitionId, RunId},
};

use crate::{
    machine::{limits::Limit, rules::Rules},
    mutants::mutant,
    shell::upkeep::is_due,
    store::limits::{Granted, Held, Tell},
};

/// Time between two tellings while the partition has something, in milliseconds.
const TELL_EVERY_MS: u64 = 500;
/// Time after which an answer does not come any more, in milliseconds.
const ANSWER_MS: u64 = 2_000;
/// Time between wishes that are not granted, in milliseconds. What was given back waits so long for the next, at most.
const WISH_AGAIN_MS: [u64; 3] = [10, 20, 40];
/// The longest wait for a rate, in milliseconds: the policy may have changed meanwhile.
const RATE_WAIT_MS: u64 = 1_000;
/// Time between two looks whether jobs that count are still there, in milliseconds, and how old they are by then.
const CHECK_EVERY_MS: u64 = 30_000;
/// Jobs of one such look.
const CHECK_MAX: usize = 100;

/// Whether a limit lets a job pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// There is no limit.
    NotNeeded,
    /// It does.
    Taken,
    /// It does not, for now.
    Full,
}

/// What this partition has of one limit.
#[derive(Debug, Default)]
struct Share {
    /// Jobs that count.
    jobs: u64,
    /// Jobs that there may be, as Redis has it, or fewer.
    has: u64,
    /// Permits of the rate at hand.
    tickets: u64,
    /// Jobs whose places may be taken by others when they end.
    keep: u64,
    /// The call that is not answered, and since when.
    asked: Option<(u64, u64)>,
    /// No wish before.
    wish_ms: u64,
    /// No other telling before.
    tell_ms: u64,
    /// Wishes in a row that were not granted.
    refused: usize,
    /// What Redis may have of this partition.
    recorded: u64,
    /// Redis has heard of this reign.
    heard: bool,
}

/// A job that counts.
#[derive(Debug)]
struct Counted {
    held: Held,
    /// When that was last known for sure.
    known_ms: u64,
    /// Nobody waits for it any more, and its worker is told to stop: it counts until it did.
    stopping: bool,
}

/// Steps that are parked at a gate.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// All of them.
    pub(super) parked: u64,
    /// Those that its circuit breaker lets pass.
    pub(super) able: u64,
}

/// What one owner has of the fleet's limits.
#[derive(Debug, Default)]
pub(super) struct Shares {
    limits: BTreeMap<Gate, Limit>,
    shares: BTreeMap<Gate, Share>,
    /// Jobs that count.
    held: HashMap<JobId, Counted>,
    /// Jobs that count no more, for the next commit.
    released: Vec<JobId>,
    rules: Option<u64>,
    calls: u64,
    check_ms: u64,
}

impl Share {
    /// Jobs that may begin now.
    fn room(&self, limit: &Limit) -> u64 {
        let places = if limit.concurrency.is_some() && !mutant("limit_not_kept") {
            self.has.saturating_sub(self.jobs)
        } else {
            u64::MAX
        };
        if limit.is_rated() { places.min(self.tickets) } else { places }
    }

    /// What is in use or about to be, and what is wanted on top, with so many steps that could begin. Permits that nobody
    /// can use are nobody's: the rate is kept all the same, and places are free for others.
    fn needs(&mut self, limit: &Limit, able: u64) -> (u64, u64) {
        self.tickets = if limit.is_rated() { self.tickets.min(able) } else { 0 };
        let most = limit.concurrency.unwrap_or(limit.burst);
        let ready =
            if limit.is_rated() { self.tickets } else { self.has.min(most).saturating_sub(self.jobs).min(able) };
        (self.jobs + ready, (able - ready).min(most))
    }
}

impl Shares {
    /// Takes the limits of these rules. Each is told of once: what Redis has of this partition may be of an older reign.
    pub(super) fn follow(&mut self, rules: &Rules) {
        if self.rules == Some(rules.version) {
            return;
        }
        self.rules = Some(rules.version);
        self.limits = rules.limits();
        self.shares.retain(|gate, _| self.limits.contains_key(gate));
        for gate in self.limits.keys() {
            let share = self.shares.entry(gate.clone()).or_default();
            (share.tell_ms, share.heard) = (0, false);
        }
        self.count_jobs();
    }

    /// Takes the jobs that count, as the last owner left them.
    pub(super) fn load(&mut self, held: impl IntoIterator<Item = (JobId, Held)>, now_ms: u64) {
        let counted = |held| Counted { held, known_ms: now_ms, stopping: false };
        self.held = held.into_iter().map(|(job, held)| (job, counted(held))).collect();
        self.count_jobs();
    }

    fn count_jobs(&mut self) {
        self.shares.values_mut().for_each(|share| share.jobs = 0);
        for counted in self.held.values() {
            if let Some(share) = self.shares.get_mut(&counted.held.gate) {
                share.jobs += 1;
            }
        }
    }

    /// Whether there is no limit.
    pub(super) fn is_idle(&self) -> bool {
        self.limits.is_empty()
    }

    /// Whether a step would have to wait now.
    pub(super) fn is_full(&mut self, gate: &Gate) -> bool {
        let Some(limit) = self.limits.get(gate) else { return false };
        // From now on it is told what is wanted.
        self.shares.entry(gate.clone()).or_default().room(limit) == 0
    }

    /// Jobs that may begin now; none if there is no limit.
    pub(super) fn room(&self, gate: &Gate) -> Option<u64> {
        let limit = self.limits.get(gate)?;
        Some(self.shares.get(gate).map_or(0, |share| share.room(limit)))
    }

    /// A job wants to begin.
    pub(super) fn take(&mut self, gate: &Gate) -> Permit {
        let Some(limit) = self.limits.get(gate) else { return Permit::NotNeeded };
        let share = self.shares.entry(gate.clone()).or_default();
        if share.room(limit) == 0 {
            return Permit::Full;
        }
        share.tickets = share.tickets.saturating_sub(1);
        share.jobs += u64::from(limit.concurrency.is_some());
        Permit::Taken
    }

    /// It does not begin after all.
    pub(super) fn give_back(&mut self, gate: &Gate) {
        let (Some(limit), Some(share)) = (self.limits.get(gate), self.shares.get_mut(gate)) else { return };
        share.tickets += u64::from(limit.is_rated());
        share.jobs = share.jobs.saturating_sub(u64::from(limit.concurrency.is_some()));
    }

    /// It begins. Returns what has to be written down, if it counts until it ends.
    pub(super) fn begins(&mut self, job: JobId, gate: Gate, (run, index): (RunId, u32), now_ms: u64) -> Option<Held> {
        self.limits.get(&gate)?.concurrency?;
        let held = Held { gate, run, index };
        self.held.insert(job, Counted { held: held.clone(), known_ms: now_ms, stopping: false });
        Some(held)
    }

    /// A job has ended. Returns what it counted against.
    pub(super) fn ended(&mut self, job: JobId) -> Option<Gate> {
        if self.held.is_empty() {
            return None;
        }
        let Counted { held, .. } = self.held.remove(&job)?;
        self.released.push(job);
        if let Some(share) = self.shares.get_mut(&held.gate) {
            share.jobs = share.jobs.saturating_sub(1);
            if share.has > share.keep {
                // Others wait, or the limit was lowered: the place goes back.
                share.has -= 1;
                share.tell_ms = 0;
            }
        }
        Some(held.gate)
    }

    /// Jobs that count no more since the last commit.
    pub(super) fn take_released(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.released)
    }

    /// Jobs that have counted for long: whether they are still under way has to be looked up.
    pub(super) fn due_checks(&mut self, now_ms: u64) -> Vec<(JobId, RunId, u32)> {
        if self.held.is_empty() || !is_due(self.check_ms, CHECK_EVERY_MS, now_ms) {
            return Vec::new();
        }
        self.check_ms = now_ms + CHECK_EVERY_MS;
        let mut old: Vec<(&JobId, &mut Counted)> = self.held.iter_mut().collect();
        old.retain(|(_, c)| !c.stopping && now_ms.saturating_sub(c.known_ms) >= CHECK_EVERY_MS);
        // Those that were looked at before come last.
        old.sort_unstable_by_key(|(job, c)| (c.known_ms, **job));
        let look = |(job, counted): (&JobId, &mut Counted)| {
            counted.known_ms = now_ms;
            (*job, counted.held.run, counted.held.index)
        };
        old.into_iter().take(CHECK_MAX).map(look).collect()
    }

    /// Nobody waits for a job any more, and its worker is told to stop.
    pub(super) fn stops(&mut self, job: JobId) {
        if !self.held.is_empty()
            && let Some(counted) = self.held.get_mut(&job)
        {
            counted.stopping = true;
        }
    }

    /// Something waits at this gate: it is told what is wanted.
    pub(super) fn wants(&mut self, gate: &Gate) {
        if self.limits.contains_key(gate) && !self.shares.contains_key(gate) {
            self.shares.insert(gate.clone(), Share::default());
        }
    }

    /// Whether an answer is awaited, or a wish is to be repeated soon.
    pub(super) fn waits(&self, waiting: impl Fn(&Gate) -> Waiting) -> bool {
        self.shares.iter().any(|(gate, share)| share.asked.is_some() || waiting(gate).able > 0)
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_quiet(&self) -> bool {
        self.shares.is_empty()
    }

    /// Takes the answers to what was told.
    pub(super) fn answered(&mut self, answers: Vec<(Gate, u64, Option<Granted>)>, now_ms: u64) {
        for (gate, call, granted) in answers {
            let (Some(limit), Some(share)) = (self.limits.get(&gate), self.shares.get_mut(&gate)) else { continue };
            if share.asked.is_none_or(|(asked, _)| asked != call) {
                // A later call says how it is.
                continue;
            }
            (share.asked, share.heard) = (None, true);
            let granted = granted.unwrap_or_default();
            share.has += granted.granted;
            share.recorded = granted.used + granted.granted;
            share.keep = granted.keep;
            share.tickets += if limit.is_rated() { granted.granted } else { 0 };
            share.refused = if granted.granted > 0 { 0 } else { share.refused + 1 };
            let wait = WISH_AGAIN_MS[share.refused.min(WISH_AGAIN_MS.len() - 1)];
            share.wish_ms = now_ms + wait.max(granted.due_ms.min(RATE_WAIT_MS));
        }
    }

    /// What has to be told now.
    pub(super) fn words(
        &mut self,
        (partition, reign): (PartitionId, u64),
        now_ms: u64,
        waiting: impl Fn(&Gate) -> Waiting,
    ) -> Vec<(Gate, Tell)> {
        let (mut out, mut idle) = (Vec::new(), Vec::new());
        for (gate, share) in &mut self.shares {
            let limit = &self.limits[gate];
            if share.asked.is_some_and(|(_, at)| !is_due(at + ANSWER_MS, ANSWER_MS, now_ms)) {
                continue;
            }
            let Waiting { parked, able } = waiting(gate);
            let (used, want) = share.needs(limit, able);
            let wishes = want > 0 && is_due(share.wish_ms, RATE_WAIT_MS, now_ms);
            let tells = share.recorded + share.has + used > 0 || !share.heard;
            if wishes || (tells && is_due(share.tell_ms, TELL_EVERY_MS, now_ms)) {
                self.calls += 1;
                (share.has, share.recorded) = (used, share.recorded.max(used + want));
                (share.asked, share.tell_ms) = (Some((self.calls, now_ms)), now_ms + TELL_EVERY_MS);
                out.push((gate.clone(), Tell { partition, reign, call: self.calls, used, want }));
            } else if !tells && parked == 0 {
                idle.push(gate.clone());
            }
        }
        for gate in idle {
            self.shares.remove(&gate);
        }
        out
    }

    /// Jobs that count.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }
}
