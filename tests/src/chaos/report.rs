//! What a test says in the end: one row for each kind of fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::chaos::clients::Outcome;
use crate::chaos::faults::{Fault, Kind};
use crate::chaos::programs::Life;
use crate::chaos::queue::Verdict;
use crate::chaos::servers::Topology;
use crate::chaos::settle::Settled;

/// The heads of the table.
const COLUMNS: [&str; 11] = [
    "fault",
    "times",
    "accepted",
    "completed",
    "lost",
    "doubled",
    "illegal",
    "executed again",
    "false deaths",
    "recovery p50 / max, s",
    "aim, s",
];
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
    /// What chose the faults.
    pub seed: u64,
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
    /// What else was found.
    pub findings: Vec<String>,
}

impl Report {
    /// Adds everything up.
    #[must_use]
    pub fn of(evidence: Evidence<'_>) -> Self {
        let Evidence { topology, seed, seconds, faults, settled, queue, lives, skipped, findings } = evidence;
        let mut report = Self {
            topology: topology.as_str().into(),
            is_durable: topology == Topology::Single,
            seed,
            seconds,
            rows: BTreeMap::new(),
            durable: BTreeMap::new(),
            recovered: queue.recovered.len(),
            ghosts: settled.ghosts.len(),
            faults,
            skipped,
            findings,
        };
        report.count_faults();
        report.count_submits(settled, queue);
        report.count_runs(settled, &lives);
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
    /// fail-over cannot excuse on others; a worker that was called dead and lived, work that did not go on.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        let sum = |count: fn(&Row) -> usize| self.rows.values().map(count).sum::<usize>();
        let promised = self.durable.get("replica").is_some_and(|(_, gone)| *gone > 0);
        sum(|row| row.illegal + row.false_deaths + row.stuck) > 0
            || promised
            || (self.is_durable && sum(|row| row.lost + row.doubled) > 0)
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
        for submission in settled.submissions.values() {
            let Outcome::Taken { run, durability } = &submission.outcome else { continue };
            let is_lost = lost.contains(submission.key.as_str());
            let row = self.row_of(settled, &submission.key);
            row.accepted += 1;
            row.lost += usize::from(is_lost);
            if let Some(word) = durability {
                let (all, gone) = self.durable.entry(word.clone()).or_default();
                (*all, *gone) = (*all + 1, *gone + usize::from(is_lost));
            }
            if is_lost {
                self.find(format!("{}: run {run} was acknowledged and is not there or did not end", submission.key));
            }
        }
    }

    fn count_runs(&mut self, settled: &Settled, lives: &[Life]) {
        let is_durable = self.is_durable;
        for ended in &settled.runs {
            let account = &ended.account;
            let asked = settled.submissions.get(&ended.key).is_some_and(|submission| submission.cancelled);
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
            row.executed_again += account.again;
            row.false_deaths += false_deaths.len();
            let sentences = account.doubled.iter().chain(unaccounted).chain(&account.illegal).cloned();
            let deaths = false_deaths.iter().map(|worker| format!("{worker} was called dead and was not"));
            let unasked = unasked.then(|| "it is cancelled, and nobody asked for that".to_owned());
            for sentence in sentences.chain(deaths).chain(unasked) {
                self.find(format!("run {} ({}): {sentence}", ended.run, ended.key));
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

    /// The report as a section of a document; its table reads well on a terminal, too.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}, seed {}, {} s\n\n", self.topology, self.seed, self.seconds);
        let mut line = |words: String| writeln!(text, "{words}").expect("a String takes everything");
        line(format!("| {} |", COLUMNS.join(" | ")));
        line(format!("|{}", "--|".repeat(COLUMNS.len())));
        let mut sum = Row::default();
        for (kind, row) in &self.rows {
            line(row_text(kind.words(), row));
            sum.times += row.times;
            sum.accepted += row.accepted;
            sum.completed += row.completed;
            sum.lost += row.lost;
            sum.doubled += row.doubled;
            sum.illegal += row.illegal;
            sum.executed_again += row.executed_again;
            sum.false_deaths += row.false_deaths;
        }
        line(row_text("all", &sum));
        line(String::new());
        let durable: Vec<String> =
            self.durable.iter().map(|(word, (all, lost))| format!("`{word}` {all}, lost {lost}")).collect();
        if !durable.is_empty() {
            line(format!("Durable submits by what they were told: {}.", durable.join("; ")));
        }
        line(format!(
            "{} submits whose answer was lost for good had begun a run all the same. {} runs had effects and do not exist in \
             the end.",
            self.recovered, self.ghosts
        ));
        for (kind, why) in &self.skipped {
            line(format!("Not done here: {kind}, as {why}."));
        }
        for finding in &self.findings {
            line(format!("* {finding}"));
        }
        text
    }
}

fn row_text(name: &str, row: &Row) -> String {
    let seconds = |ms: u64| format!("{:.1}", ms as f64 / 1_000.0);
    let recovery = match (row.percentile(50), row.percentile(100)) {
        (Some(half), Some(most)) => format!("{} / {}", seconds(half), seconds(most)),
        _ => "-".into(),
    };
    let stuck = if row.stuck > 0 { format!(", {} stuck", row.stuck) } else { String::new() };
    let met = match row.is_met() {
        Some(true) => ": met",
        Some(false) => ": missed",
        None => "",
    };
    let aim = row.aim_ms.map_or("-".into(), |aim| format!("{}{met}", seconds(aim)));
    let Row { times, accepted, completed, lost, doubled, illegal, executed_again, false_deaths, .. } = row;
    let counts = [times, accepted, completed, lost, doubled, illegal, executed_again, false_deaths];
    let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
    format!("| {name} | {} | {recovery}{stuck} | {aim} |", counts.join(" | "))
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

    #[test]
    fn what_is_lost_is_bad_on_a_durable_server_and_an_illegal_move_on_every_one() {
        let report = |is_durable, row: Row| Report {
            topology: "single".into(),
            is_durable,
            seed: 1,
            seconds: 1,
            rows: BTreeMap::from([(Kind::Calm, row)]),
            durable: BTreeMap::new(),
            recovered: 0,
            ghosts: 0,
            faults: Vec::new(),
            skipped: Vec::new(),
            findings: Vec::new(),
        };
        assert!(!report(true, Row { executed_again: 1, ..Row::default() }).is_bad());
        assert!(report(true, Row { lost: 1, ..Row::default() }).is_bad());
        assert!(report(true, Row { doubled: 1, ..Row::default() }).is_bad());
        assert!(!report(false, Row { lost: 1, doubled: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { illegal: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { false_deaths: 1, ..Row::default() }).is_bad());
        assert!(report(false, Row { stuck: 1, ..Row::default() }).is_bad());
        let mut broken = report(false, Row::default());
        broken.durable.insert("replica".into(), (9, 1));
        assert!(broken.is_bad(), "a replica had it, and it is gone");
    }
}
