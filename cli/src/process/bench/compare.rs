//! Two runs side by side: what became worse.
//!
//! Machines differ, and the same one from hour to hour. So a rate is compared as a share of the floor of its own run, and CPU
//! time as a multiple of the floor's. The floor itself is never a regression, nor is a rate that has a ratio of its own.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

/// Worse by more than this factor is a regression.
const WORSE: f64 = 1.1;

/// The figures of a run by their dotted names.
pub(super) type Figures = BTreeMap<String, f64>;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
    /// It says how much was measured, or where; or another figure says it better.
    Neither,
}

/// What a figure is measured by, to be the same on a slow and on a fast machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// By itself.
    Plain,
    /// By the floor's jobs a second.
    FloorRate,
    /// By the floor's CPU time a job.
    FloorCpu,
}

/// One figure of both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    name: String,
    base: Option<f64>,
    now: Option<f64>,
    /// By which factor it is worse, below 1 if it is better; none if it is not judged.
    worse: Option<f64>,
}

/// Reads the report of a run, or a line of the history.
///
/// # Errors
/// It is neither, or has no figures.
pub(super) fn read(text: &str) -> anyhow::Result<Figures> {
    let report: Value = serde_json::from_str(text).context("not the JSON of one run")?;
    let mut figures = Figures::new();
    flatten("", report.get("figures").unwrap_or(&report), &mut figures);
    if figures.is_empty() {
        bail!("no figures: it must be what `bench` wrote with --to, or one line of its history");
    }
    Ok(figures)
}

fn flatten(name: &str, value: &Value, into: &mut Figures) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&if name.is_empty() { field.clone() } else { format!("{name}.{field}") }, value, into);
            }
        }
        Value::Number(number) => into.extend(number.as_f64().map(|number| (name.to_owned(), number))),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

fn nature(name: &str, figures: &Figures) -> (Better, Scale) {
    let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
    if section == "floor" || name.contains(".commands.") || last.starts_with("open_") {
        return (Better::Neither, Scale::Plain);
    }
    if last == "steps_per_s" && figures.contains_key(&format!("{section}.floor_ratio")) {
        return (Better::Neither, Scale::Plain);
    }
    match last {
        _ if last.ends_with("ratio") || last.starts_with("left") => (Better::More, Scale::Plain),
        _ if last.ends_with("per_s") => (Better::More, Scale::FloorRate),
        _ if last.contains("us_per") => (Better::Less, Scale::FloorCpu),
        _ if name.contains("_ms") || last.contains("bytes") || last.contains("commands") => {
            (Better::Less, Scale::Plain)
        }
        _ if last.ends_with("growth") || last.ends_with("percent") || last.ends_with("share_left") => {
            (Better::Less, Scale::Plain)
        }
        _ => (Better::Neither, Scale::Plain),
    }
}

/// Every figure of either run, in the order of their names.
pub(super) fn compare(base: &Figures, now: &Figures) -> Vec<Row> {
    let names: std::collections::BTreeSet<&String> = base.keys().chain(now.keys()).collect();
    let floor = |scale: Scale, of: &Figures| match scale {
        Scale::Plain => Some(1.0),
        Scale::FloorRate => of.get("floor.jobs_per_s").copied(),
        Scale::FloorCpu => of.get("floor.redis_us_per_job").copied(),
    };
    let row = |name: &String| {
        let (old, new) = (base.get(name).copied(), now.get(name).copied());
        // Judged by the floor only where both runs have measured it.
        let (better, scale) = nature(name, now);
        let floors = floor(scale, base).zip(floor(scale, now)).filter(|(a, b)| *a > 0.0 && *b > 0.0);
        let (floor_old, floor_new) = floors.unwrap_or((1.0, 1.0));
        let worse = old.zip(new).filter(|(old, new)| *old > 0.0 && *new > 0.0).and_then(|(old, new)| {
            let grown = (new / floor_new) / (old / floor_old);
            match better {
                Better::More => Some(1.0 / grown),
                Better::Less => Some(grown),
                Better::Neither => None,
            }
        });
        Row { name: name.clone(), base: old, now: new, worse }
    };
    names.into_iter().map(row).collect()
}

impl Row {
    /// Whether it is worse by more than a tenth.
    pub(super) fn is_regression(&self) -> bool {
        self.worse.is_some_and(|worse| worse > WORSE)
    }
}

/// One line a figure: both values, their plain ratio, by which factor it is worse, the verdict.
pub(super) fn table(rows: &[Row]) -> String {
    let number = |value: Option<f64>| match value {
        None => "-".to_owned(),
        Some(value) if value >= 1_000.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.3}"),
    };
    let mut lines = vec![format!("{:<48} {:>12} {:>12} {:>9} {:>9}", "figure", "base", "now", "now/base", "worse by")];
    for row in rows {
        let plain = row.base.zip(row.now).map(|(base, now)| now / base);
        let verdict = match row.worse {
            Some(_) if row.is_regression() => "   REGRESSION",
            Some(worse) if worse < 1.0 / WORSE => "   better",
            _ => "",
        };
        let (base, now, ratio, worse) = (number(row.base), number(row.now), number(plain), number(row.worse));
        lines.push(format!("{:<48} {base:>12} {now:>12} {ratio:>9} {worse:>9}{verdict}", row.name));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(pairs: &[(&str, f64)]) -> Figures {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn regressions(base: &[(&str, f64)], now: &[(&str, f64)]) -> Vec<String> {
        let rows = compare(&figures(base), &figures(now));
        rows.into_iter().filter(Row::is_regression).map(|row| row.name).collect()
    }

    #[test]
    fn more_time_or_memory_and_a_smaller_share_of_the_floor_are_regressions() {
        let base = [("latency.a_ms.p50", 1.0), ("memory.bytes_per_step", 100.0), ("chain10.floor_ratio", 0.5)];
        let worse = [("latency.a_ms.p50", 1.2), ("memory.bytes_per_step", 120.0), ("chain10.floor_ratio", 0.4)];
        assert_eq!(regressions(&base, &worse), ["chain10.floor_ratio", "latency.a_ms.p50", "memory.bytes_per_step"]);
        assert_eq!(regressions(&worse, &base), [""; 0]);
        assert_eq!(regressions(&base, &[("latency.a_ms.p50", 1.09), ("chain10.floor_ratio", 0.46)]), [""; 0]);
    }

    #[test]
    fn a_slow_machine_is_no_regression_where_there_is_a_floor() {
        let base = [
            ("floor.jobs_per_s", 50_000.0),
            ("floor.redis_us_per_job", 15.0),
            ("chain10.steps_per_s", 25_000.0),
            ("chain10.floor_ratio", 0.5),
            ("chain10.redis_us_per_step", 15.0),
            ("submit.runs_per_s", 20_000.0),
        ];
        let slower = base.map(|(name, value)| {
            let factor = if name.ends_with("per_s") { 0.5 } else { 2.0 };
            (name, if name.ends_with("ratio") { value } else { value * factor })
        });
        assert_eq!(regressions(&base, &slower), [""; 0]);
        // Without the floor there is only the plain figure.
        assert_eq!(regressions(&base[5..], &slower[5..]), ["submit.runs_per_s"]);
    }

    #[test]
    fn a_rate_is_judged_by_its_ratio_and_more_cpu_than_the_floor_needs_is_found() {
        let base =
            [("floor.redis_us_per_job", 10.0), ("chain10.floor_ratio", 0.5), ("chain10.redis_us_per_step", 10.0)];
        let now = [("floor.redis_us_per_job", 10.0), ("chain10.floor_ratio", 0.5), ("chain10.redis_us_per_step", 12.0)];
        assert_eq!(regressions(&base, &now), ["chain10.redis_us_per_step"]);
        let (base, now) =
            ([("a.steps_per_s", 2.0), ("a.floor_ratio", 0.5)], [("a.steps_per_s", 1.0), ("a.floor_ratio", 0.5)]);
        assert_eq!(regressions(&base, &now), [""; 0]);
    }

    #[test]
    fn every_figure_is_shown_and_those_of_one_run_only_are_not_judged() {
        let rows =
            compare(&figures(&[("old_ms", 2.0), ("both_ms", 1.0)]), &figures(&[("both_ms", 2.0), ("new_ms", 1.0)]));
        assert_eq!(
            rows.iter().map(|row| (row.name.as_str(), row.worse)).collect::<Vec<_>>(),
            [("both_ms", Some(2.0)), ("new_ms", None), ("old_ms", None)]
        );
        let shown = table(&rows);
        assert!(shown.lines().any(|line| line.starts_with("both_ms") && line.ends_with("REGRESSION")), "{shown}");
        assert_eq!(shown.lines().count(), 4);
    }

    #[test]
    fn a_report_and_a_line_of_the_history_are_read_and_nothing_else() {
        let report = r#"{"server":"redis","chain10":{"floor_ratio":0.5}}"#;
        let line = r#"{"server":"redis","figures":{"chain10":{"floor_ratio":0.5}}}"#;
        assert_eq!(read(report).expect("a report"), figures(&[("chain10.floor_ratio", 0.5)]));
        assert_eq!(read(line).expect("a line"), figures(&[("chain10.floor_ratio", 0.5)]));
        assert!(read("{}").is_err() && read("[").is_err());
    }
}
