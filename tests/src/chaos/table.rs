//! A report as a table that reads well in a document and on a terminal.

use std::fmt::Write as _;

use crate::chaos::report::{Report, Row};

/// The heads of the table.
const COLUMNS: [&str; 12] = [
    "fault",
    "times",
    "accepted",
    "completed",
    "lost",
    "wishes lost",
    "doubled",
    "illegal",
    "executed again",
    "false deaths",
    "recovery p50 / max, s",
    "aim, s",
];

impl Report {
    /// The report as a section of a document; its table reads well on a terminal, too.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}, {}, {} s\n\n", self.topology, seeds(&self.seeds), self.seconds);
        let mut line = |words: String| writeln!(text, "{words}").expect("a String takes everything");
        line(format!("| {} |", COLUMNS.join(" | ")));
        line(format!("|{}", "--|".repeat(COLUMNS.len())));
        let mut sum = Row::default();
        for (kind, row) in &self.rows {
            line(row_text(kind.words(), row));
            sum.add(row.clone());
        }
        // Times of different faults have no common middle.
        (sum.recovery_ms, sum.aim_ms, sum.stuck) = (Vec::new(), None, 0);
        line(row_text("all", &sum));
        line(String::new());
        let durable: Vec<String> =
            self.durable.iter().map(|(word, (all, lost))| format!("`{word}` {all}, lost {lost}")).collect();
        if !durable.is_empty() {
            line(format!("Durable submits by what they were told: {}.", durable.join("; ")));
        }
        line(format!(
            "{} submits whose answer was lost for good had begun a run all the same. {} runs had effects and do not exist in \
             the end; the quarantine names {} of them.",
            self.recovered, self.ghosts, self.named
        ));
        let failed: Vec<String> = self.failed.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        if !failed.is_empty() {
            line(format!("Runs that failed: {}.", failed.join(", ")));
        }
        for (kind, why) in &self.skipped {
            line(format!("Not done here: {kind}, as {why}."));
        }
        for finding in self.ended.iter().chain(&self.odd).chain(&self.findings) {
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
    let Row { times, accepted, completed, lost, wishes_lost, doubled, illegal, executed_again, false_deaths, .. } = row;
    let counts = [times, accepted, completed, lost, wishes_lost, doubled, illegal, executed_again, false_deaths];
    let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
    format!("| {name} | {} | {recovery}{stuck} | {aim} |", counts.join(" | "))
}

fn seeds(seeds: &[u64]) -> String {
    let words: Vec<String> = seeds.iter().map(ToString::to_string).collect();
    format!("seed{} {}", if words.len() == 1 { "" } else { "s" }, words.join(" and "))
}
