//! What a test says in the end: one row for each kind of fault. [`table`](crate::chaos::table) writes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::chaos::clients::{Outcome, Submission};
use crate::chaos::faults::{Fault, Kind};
use crate::chaos::programs::Life;
use crate::chaos::queue::Verdict;
use crate::chaos::servers::Topology;
use crate::chaos::settle::Settled;

/// Sentences that are kept of one kind of finding.
const FINDINGS: usize = 20;

/// What belongs to one kind of fault: runs that were submitted during it or in the quiet time after it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// How often it happened.
    pub times: usize,
    /// Submits that were acknowledged.
    pub accepted: usize,
    /// Of all their runs, those that completed.
    pub completed: usize,
    /// Acknowledged, and not there or not ended in the end.
    pub lost: usize,
    /// Of these, runs that are there and have not ended, which no fail-over excuses.
    pub hung: usize,
    /// Cancels, retries and replays that were acknowledged, and whose run is there and knows nothing of it.
    pub wishes_lost: usize,
    /// Two runs of one key, steps committed twice, effects that nobody dispatched.
    pub doubled: usize,
    /// Moves that are not in the table, ends that nobody asked for.
    pub illegal: usize,
    /// Executions of a step beyond the first and beyond retries: at-least-once delivery.
    pub executed_again: usize,
    /// Workers that were called dead and were not.
    pub false_deaths: usize,
    /// Times until work went on, in milliseconds, sorted.
    pub recovery_ms: Vec<u64>,
    /// How often work did not go on while it was waited for.
    pub stuck: usize,
    /// What every time shall stay below.
    pub aim_ms: Option<u64>,
}

impl Row {
    /// The time below which so many of a hundred stay; none if there is no time.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<u64> {
        let last = self.recovery_ms.len().checked_sub(1)?;
        self.recovery_ms.get((last * percent).div_ceil(100)).copied()
    }

    /// Adds another row of the same kind.
    pub fn add(&mut self, other: Self) {
        self.times += other.times;
        self.accepted += other.accepted;
        self.completed += other.completed;
        self.lost += other.lost;
        self.hung += other.hung;
        self.wishes_lost += other.wishes_lost;
        self.doubled += other.doubled;
        self.illegal += other.illegal;
        self.executed_again += other.executed_again;
        self.false_deaths += other.false_deaths;
        self.recovery_ms.extend(other.recovery_ms);
        self.recovery_ms.sort_unstable();
        self.stuck += other.stuck;
        self.aim_ms = self.aim_ms.or(other.aim_ms);
    }

    /// Whether the aim was met; none if there is no aim, or nothing was measured.
    #[must_use]
    pub fn is_met(&self) -> Option<bool> {
        Some(*self.recovery_ms.last()? <= self.aim_ms? && self.stuck == 0)
    }
}

/// What a test found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it ran on.
    pub topology: String,
    /// Whatever was acknowledged is durable: nothing may be lost at all.
    pub is_durable: bool,
    /// What chose the faults: one for each test that is added up here.
    pub seeds: Vec<u64>,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// By kind of fault.
    pub rows: BTreeMap<Kind, Row>,
    /// Durable submits by what they were told, and how many of each are lost.
    pub durable: BTreeMap<String, (usize, usize)>,
    /// Submits whose run was there though their answer was lost for good.
    pub recovered: usize,
    /// Runs with effects that do not exist in the end: what a fail-over took back.
    pub ghosts: usize,
    /// How many of these the quarantine names.
    pub named: usize,
    /// How many runs have failed, by the rule that says why.
    pub failed: BTreeMap<String, usize>,
    /// Programs that ended by themselves.
    pub ended: Vec<String>,
    /// Answers of the API that are not documented.
    pub odd: Vec<String>,
    /// Every fault in its order.
    pub faults: Vec<Fault>,
    /// What is not possible here.
    pub skipped: Vec<(Kind, String)>,
    /// What was found, in sentences; the first of each kind.
    pub findings: Vec<String>,
}

/// What a report is made of.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// What it ran on.
    pub topology: Topology,
    /// What chose the faults.
    pub seed: u64,
    /// How long it took.
    pub seconds: u64,
    /// Every fault in its order; submits name them by place, from 1.
    pub faults: Vec<Fault>,
    /// Every run and submit.
    pub settled: &'a Settled,
    /// What the checker of the history says.
    pub queue: &'a Verdict,
    /// Every process of every worker.
    pub lives: Vec<Life>,
    /// What is not possible here.
    pub skipped: Vec<(Kind, String)>,
    /// Programs that ended by themselves.
    pub ended: Vec<String>,
    /// Answers of the API that are not documented.
    pub odd: Vec<String>,
    /// What else was found.
    pub findings: Vec<String>,
}

impl Report {
    /// Adds everything up.
    #[must_use]
    pub fn of(evidence: Evidence<'_>) -> Self {
        let Evidence { topology, seed, seconds, faults, settled, queue, lives, skipped, ended, odd, findings } =
            evidence;
        let mut report = Self {
            topology: topology.as_str().into(),
            is_durable: topology == Topology::Single,
            seeds: vec![seed],
            seconds,
            rows: BTreeMap::new(),
            durable: BTreeMap::new(),
            recovered: queue.recovered.len(),
            ghosts: settled.ghosts.len(),
            named: settled.named,
            failed: BTreeMap::new(),
            ended,
            odd,
            faults,
            skipped,
            findings,
        };
        report.count_faults();
        report.count_submits(settled, queue);
        report.count_runs(settled, &lives);
        for why in &settled.quarantined {
            report.row(Kind::Calm).illegal += 1;
            report.find(format!("in quarantine, and nobody put it there: {why}"));
        }
        for run in &settled.unlisted {
            report.row(Kind::Calm).illegal += 1;
            report.find(format!("run {run} is there, and no listing has it"));
        }
        for key in queue.duplicated.iter().chain(&queue.unexpected) {
            report.row_of(settled, key).doubled += 1;
            report.find(format!("the key {key} has more runs than submits"));
        }
        if report.is_durable {
            for run in &settled.ghosts {
                report.row(Kind::Calm).doubled += 1;
                report.find(format!("run {run} had effects and does not exist"));
            }
        }
        report
    }

    /// Whether something happened that may not: anything lost, doubled or illegal on a durable server, and what a
    /// fail-over cannot excuse on others; a worker that was called dead and lived, work that did not go on, a run that
    /// did not end; a program that ended by itself, an answer that is not documented.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        let sum = |count: fn(&Row) -> usize| self.rows.values().map(count).sum::<usize>();
        let promised = self.durable.get("replica").is_some_and(|(_, gone)| *gone > 0);
        sum(|row| row.illegal + row.false_deaths + row.stuck + row.hung) > 0
            || promised
            || !self.ended.is_empty()
            || !self.odd.is_empty()
            || (self.is_durable && sum(|row| row.lost + row.wishes_lost + row.doubled) > 0)
    }

    /// Adds another test of the same topology to this one.
    pub fn add(&mut self, other: Self) {
        self.seeds.extend(other.seeds);
        self.seconds += other.seconds;
        for (kind, row) in other.rows {
            self.row(kind).add(row);
        }
        for (word, (all, lost)) in other.durable {
            let sum = self.durable.entry(word).or_default();
            *sum = (sum.0 + all, sum.1 + lost);
        }
        for (cause, count) in other.failed {
            *self.failed.entry(cause).or_default() += count;
        }
        self.recovered += other.recovered;
        self.ghosts += other.ghosts;
        self.named += other.named;
        self.ended.extend(other.ended);
        self.odd.extend(other.odd);
        self.faults.extend(other.faults);
        self.findings.extend(other.findings);
        for skipped in other.skipped {
            if !self.skipped.contains(&skipped) {
                self.skipped.push(skipped);
            }
        }
    }

    fn count_faults(&mut self) {
        for fault in self.faults.clone() {
            let row = self.row(fault.kind);
            row.times += 1;
            row.stuck += usize::from(fault.stuck);
            row.recovery_ms.extend(fault.recovery_ms);
            row.recovery_ms.sort_unstable();
            if fault.stuck {
                self.find(format!("work did not go on after: {}, {}", fault.kind, fault.what));
            }
        }
    }

    fn count_submits(&mut self, settled: &Settled, queue: &Verdict) {
        let lost: BTreeSet<&str> = queue.lost.iter().map(String::as_str).collect();
        let there: BTreeSet<&str> = settled.runs.iter().map(|ended| ended.run.as_str()).collect();
        for submission in settled.submissions.values() {
            let Outcome::Taken { run, durability } = &submission.outcome else { continue };
            let is_lost = lost.contains(submission.key.as_str());
            let row = self.row_of(settled, &submission.key);
            row.accepted += 1;
            let is_there = there.contains(run.as_str());
            row.lost += usize::from(is_lost);
            row.hung += usize::from(is_lost && is_there);
            if let Some(word) = durability {
                let (all, gone) = self.durable.entry(word.clone()).or_default();
                (*all, *gone) = (*all + 1, *gone + usize::from(is_lost));
            }
            if is_lost {
                let what = if is_there { "did not end" } else { "is not there" };
                let durability = durability.as_deref().map_or(String::new(), |word| format!(" as `{word}`"));
                self.find(format!("{}: run {run} was acknowledged{durability} and {what}", submission.key));
            }
        }
    }

    fn count_runs(&mut self, settled: &Settled, lives: &[Life]) {
        let is_durable = self.is_durable;
        for ended in &settled.runs {
            let account = &ended.account;
            let asked = settled.submissions.get(&ended.key).is_some_and(Submission::is_cancel_asked);
            let unasked = account.state == "cancelled" && !asked;
            let is_dead = |(worker, at_ms): &&(String, u64)| {
                let life = lives.iter().find(|life| life.name == *worker);
                life.is_none_or(|life| !life.may_be_called_dead(at_ms * 1_000_000))
            };
            let false_deaths: BTreeSet<&str> =
                ended.deaths.iter().filter(is_dead).map(|(worker, _)| worker.as_str()).collect();
            // What a fail-over took back was dispatched in a time line that is gone.
            let unaccounted = if is_durable { account.unaccounted.as_slice() } else { &[] };
            let row = self.row_of(settled, &ended.key);
            row.completed += usize::from(account.state == "completed");
            row.doubled += account.doubled.len() + unaccounted.len();
            row.illegal += account.illegal.len() + usize::from(unasked);
            row.wishes_lost += ended.broken.len();
            row.executed_again += account.again;
            row.false_deaths += false_deaths.len();
            let sentences =
                account.doubled.iter().chain(unaccounted).chain(&account.illegal).chain(&ended.broken).cloned();
            let deaths = false_deaths.iter().map(|worker| format!("{worker} was called dead and was not"));
            let unasked = unasked.then(|| "it is cancelled, and nobody asked for that".to_owned());
            for sentence in sentences.chain(deaths).chain(unasked) {
                self.find(format!("run {} ({}): {sentence}", ended.run, ended.key));
            }
            for cause in &ended.failed_by {
                *self.failed.entry(cause.words().into()).or_default() += 1;
            }
        }
    }

    fn row(&mut self, kind: Kind) -> &mut Row {
        let row = self.rows.entry(kind).or_default();
        row.aim_ms = kind.aim().map(|aim| aim.as_millis() as u64);
        row
    }

    /// The row of the fault during which the key was submitted.
    fn row_of(&mut self, settled: &Settled, key: &str) -> &mut Row {
        let place = settled.submissions.get(key).and_then(|submission| submission.fault.checked_sub(1));
        let kind = place.and_then(|place| self.faults.get(place)).map_or(Kind::Calm, |fault| fault.kind);
        self.row(kind)
    }

    fn find(&mut self, sentence: String) {
        if self.findings.len() < FINDINGS {
            self.findings.push(sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let row = |times: &[u64]| Row { recovery_ms: times.to_vec(), aim_ms: Some(100), ..Row::default() };
        assert_eq!(row(&[]).percentile(50), None);
        assert_eq!((row(&[7]).percentile(50), row(&[7]).percentile(100)), (Some(7), Some(7)));
        assert_eq!((row(&[1, 2, 300]).percentile(50), row(&[1, 2, 300]).percentile(100)), (Some(2), Some(300)));
        assert_eq!(
            (row(&[1, 2]).is_met(), row(&[1, 200]).is_met(), row(&[]).is_met()),
            (Some(true), Some(false), None)
        );
    }

    fn report(is_durable: bool, row: Row) -> Report {
        Report {
            topology: "single".into(),
            is_durable,
            seeds: vec![1],
            seconds: 1,
            rows: BTreeMap::from([(Kind::Calm, row)]),
            durable: BTreeMap::new(),
            recovered: 0,
            ghosts: 0,
            named: 0,
            failed: BTreeMap::new(),
            ended: Vec::new(),
            odd: Vec::new(),
            faults: Vec::new(),
            skipped: Vec::new(),
            findings: Vec::new(),
        }
    }

    #[test]
    fn what_is_lost_is_bad_on_a_durable_server_and_an_illegal_move_on_every_one() {
        assert!(!report(true, Row { executed_again: 1, ..Row::default() }).is_bad());
        assert!(report(true, Row { lost: 1, ..Row::default() }).is_bad());
        assert!(report(true, Row { doubled: 1, ..Row::default() }).is_bad());
        assert!(report(true, Row { wishes_lost: 1, ..Row::default() }).is_bad());
        assert!(!report(false, Row { lost: 1, wishes_lost: 1, doubled: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { lost: 1, hung: 1, ..Row::default() }).is_bad(), "no fail-over excuses that");
        assert!(report(false, Row { illegal: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { false_deaths: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { stuck: 1, ..Row::default() }).is_bad());
        let mut broken = report(false, Row::default());
        broken.durable.insert("replica".into(), (9, 1));
        assert!(broken.is_bad(), "a replica had it, and it is gone");
    }

    #[test]
    fn a_program_that_ended_by_itself_and_an_answer_that_is_not_documented_are_bad() {
        let mut report = report(false, Row::default());
        report.ended.push("w1-1 has ended by itself".into());
        assert!(report.is_bad());
        report.ended.clear();
        assert!(!report.is_bad());
        report.odd.push("submit: 500 {}".into());
        assert!(report.is_bad());
    }

    #[test]
    fn tests_of_one_topology_are_added_up_with_all_their_times() {
        let mut sum = report(false, Row { times: 1, lost: 1, recovery_ms: vec![5, 9], ..Row::default() });
        let mut other = report(false, Row { times: 2, hung: 1, recovery_ms: vec![7], ..Row::default() });
        other.durable.insert("fsync".into(), (3, 1));
        other.seeds = vec![2];
        sum.add(other);
        let row = &sum.rows[&Kind::Calm];
        assert_eq!((row.times, row.lost, row.hung, row.recovery_ms.as_slice()), (3, 1, 1, &[5, 7, 9][..]));
        assert_eq!((sum.seeds.as_slice(), sum.seconds, sum.durable["fsync"]), (&[1, 2][..], 2, (3, 1)));
        assert!(sum.is_bad(), "what is bad in one is bad in the sum");
    }
}
