//! What is measured, against what is written about it.

use std::collections::BTreeSet;

use stepfleet_metric::{Family, Kind};

const HEAD: &str = "\
# Metrics

Every family that a Stepfleet program exports, in the text format of Prometheus. This page is written by a test
(`UPDATE=1 cargo test --workspace --test metrics`), so it is complete. [Dashboards and alerts](../deploy/grafana) are made
from these names; [operations.md](operations.md) says what to watch.

Coordinators serve `/metrics` at `--metrics-listen` (and with the API), workers at `--health-listen`. Counters begin at 0
with their process: use `rate()` and `increase()`. Times are seconds, sizes bytes, shares 0 to 1.

Labels are bounded: `queue` has at most 100 values and `workflow` 50 in each process, the rest share `other`
(but the gauges of queues, of which there are as many as queues); `category`,
`cause`, `outcome`, `kind`, `state`, `stand`, `way`, `what`, `name`, `route` and `subscriber` are fixed lists; `handler` is what the
worker has, `node` the servers. Ids of runs, jobs and workers are in logs and traces, never in a label.
";

fn table(text: &mut String, title: &str, about: &str, families: &[Family]) {
    text.push_str(&format!("\n## {title}\n\n{about}\n\n| name | kind | labels | means |\n|---|---|---|---|\n"));
    for Family { name, kind, labels, help } in families {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        text.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
}

fn page() -> String {
    let (own, fleet) = stepfleet_coordinator::http::families();
    let mut text = HEAD.to_owned();
    let about = "Of each process, about the partitions that it owns: add them up over coordinators.";
    table(&mut text, "Coordinators", about, &own);
    let about = "Of the whole fleet, read from Redis at each scrape (at most once a second). Only the coordinator that owns partition 0 exports\n\
        them; at the moment of a handover two may, so take `max`, not `sum`.";
    table(&mut text, "The fleet", about, &fleet);
    table(&mut text, "Workers", "Of each worker process.", &stepfleet_worker::metric_families());
    text
}

#[test]
fn the_published_list_of_metrics_is_what_the_programs_export() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let text = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).expect("docs can be written");
    }
    let published = std::fs::read_to_string(path).expect("the list is published");
    assert_eq!(published, text, "run the test again with UPDATE=1");
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let (own, fleet) = stepfleet_coordinator::http::families();
    let mut seen = BTreeSet::new();
    for Family { name, kind, labels, help } in own.iter().chain(&fleet) {
        assert!(seen.insert(*name), "{name} twice");
        assert_eq!(
            *kind == Kind::Counter,
            name.ends_with("_total"),
            "{name}: `_total` is for counters, and for all of them"
        );
        assert!(!name.ends_with("_ms") && !name.ends_with("_milliseconds"), "{name}: seconds");
        assert!(!help.is_empty() && !help.ends_with('.'), "{name}: `{help}`");
        for label in *labels {
            assert!(!["run", "job", "step", "worker", "error", "le"].contains(label), "{name}: `{label}` is unbounded");
        }
    }
}
