//! The real benchmark with tiny sizes on a real server: every section gives its figures, in the table, as JSON and in the
//! history, and two runs can be compared.

#[expect(dead_code, reason = "only a part is needed here")]
mod peer;

use peer::{Shown, run_in};
use serde_json::Value;

/// Every section in a few seconds. The figures say nothing; that they are there is what counts.
const TINY: [&str; 22] = [
    "--floor-jobs",
    "1000",
    "--runs",
    "50",
    "--chains",
    "20",
    "--fan-outs",
    "2",
    "--wide",
    "100",
    "--idle",
    "5",
    "--scale-chains",
    "5",
    "--queued",
    "200",
    "--large-run",
    "1000",
    "--workers",
    "50",
    "--payloads",
    "10",
];

/// A figure of each section.
const FIGURES: [&str; 24] = [
    "floor.jobs_per_s",
    "floor.redis_us_per_job",
    "one_step.floor_ratio",
    "one_step.redis_commands_per_step",
    "submit.runs_per_s",
    "chain10.floor_ratio",
    "limited.unlimited_ratio",
    "fan_out.steps_per_s",
    "wide.us_per_step",
    "latency.one_step_ms.p99",
    "latency.step_to_step_ms.p50",
    "latency.chain10_ms.p50",
    "memory.redis_bytes_per_queued_step",
    "memory.redis_bytes_per_finished_chain10",
    "scale.partitions_8.growth",
    "scale.workers_8.redis_growth",
    "scale.slots_1000.coordinator_us_per_step",
    "latency1ms.left",
    "large.drain_steps_per_s",
    "large.list_ms.p99",
    "large.explain_ms.p99",
    "large.heartbeats.redis_cpu_percent",
    "large.payloads.small_beside_ms.p99",
    "large.long_job.stream_entries_left",
];

fn bench(words: &[&str]) -> Shown {
    let server =
        std::env::var("STEPFLEET_TEST_SERVER").expect("STEPFLEET_TEST_SERVER: run `make setup` and read .tools/env");
    run_in(&[("STEPFLEET_TEST_SERVER", &server)], &[&["bench"], words].concat(), "")
}

fn at<'a>(report: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(report, |value, part| &value[part])
}

fn read(path: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON")
}

#[test]
fn every_section_gives_its_figures_and_a_run_is_compared_with_an_earlier_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (to, history) = (folder.path().join("a.json"), folder.path().join("history.jsonl"));
    let (to_text, history_text) = (to.to_str().expect("UTF-8"), history.to_str().expect("UTF-8"));
    let shown = bench(&[&TINY[..], &["--seconds", "1", "--to", to_text, "--history", history_text]].concat());
    assert_eq!(shown.code, 0, "{shown:?}");
    let report = read(&to);
    for figure in FIGURES {
        assert!(at(&report, figure).is_f64(), "{figure}: {report}");
        assert!(shown.out.lines().any(|line| line.starts_with(figure)), "{figure}: {}", shown.out);
    }
    assert!(shown.out.contains("aim at least 0.7:"), "{}", shown.out);
    let growth = at(&report, "scale.partitions_1.redis_growth").as_f64();
    assert_eq!(growth, Some(1.0), "the first is compared with itself");

    let line = read(&history);
    for field in ["version", "commit", "machine", "server", "append_only", "date"] {
        assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
    }
    assert_eq!(at(&line["figures"], "chain10.steps_per_s"), at(&report, "chain10.steps_per_s"));

    let same = bench(&["--compare", history_text, "--to", to_text]);
    assert_eq!(same.code, 0, "{same:?}");
    assert!(FIGURES.iter().all(|figure| same.out.contains(figure)), "{same:?}");
}

#[test]
fn a_part_can_be_measured_without_an_append_only_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().join("a.json");
    let to_text = to.to_str().expect("UTF-8");
    let sizes = ["--runs", "20", "--append-only", "no", "--no-history", "--to", to_text];
    let shown = bench(&[&["--section", "one-step"], &sizes[..]].concat());
    assert_eq!(shown.code, 0, "{shown:?}");
    let report = read(&to);
    assert_eq!(report["append_only"], "no");
    assert!(at(&report, "one_step.steps_per_s").is_f64(), "{report}");
    assert!(report["floor"].is_null() && report["latency"].is_null(), "only what was asked for: {report}");
    assert!(report["one_step"]["floor_ratio"].is_null(), "there is no floor to compare with: {report}");
}

#[test]
fn a_figure_that_is_worse_by_more_than_a_tenth_is_told_with_exit_code_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let base = file("base.json", r#"{"chain10":{"floor_ratio":0.6},"latency":{"chain10_ms":{"p50":2.0}}}"#);
    let now = file("now.json", r#"{"chain10":{"floor_ratio":0.5},"latency":{"chain10_ms":{"p50":2.0}}}"#);
    let run = |words: &[&str]| run_in(&[], &[&["bench"], words].concat(), "");
    let shown = run(&["--compare", &base, "--to", &now]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert_eq!(shown.out.matches("REGRESSION").count(), 1, "{shown:?}");
    assert!(shown.err.contains("1 of 2 figures are worse"), "{shown:?}");
    assert_eq!(run(&["--compare", &now, "--to", &base]).code, 0);
    let json: Value =
        serde_json::from_str(&run(&["--compare", &base, "--to", &now, "--output", "json"]).out).expect("JSON");
    assert!(json[0]["worse"].as_f64().is_some_and(|worse| worse > 1.1), "{json}");
    let bad = file("bad.json", "[]");
    assert_eq!(run(&["--compare", &bad, "--to", &now]).code, 2);
    assert_eq!(run(&["--compare", &base, "--section", "floor"]).code, 2);
}
