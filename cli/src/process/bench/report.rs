//! The figures, as one table and as nested JSON.

use serde_json::{Map, Value, json};

use super::origin::Origin;

/// The figures by dotted name, in the order in which they were measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<(String, f64)>,
    /// What was measured, on what, when.
    pub(super) origin: Origin,
}

/// What the project aims at: the start and the end of a figure's name, at least or at most, how much.
const AIMS: [(&str, &str, char, f64); 23] = [
    ("one_step.floor_ratio", "", '>', 0.4),
    ("one_step.redis_us_per_step", "", '<', 32.0),
    ("chain10.floor_ratio", "", '>', 0.7),
    ("chain10.redis_us_per_step", "", '<', 16.0),
    ("chain10.redis_commands_per_step", "", '<', 5.0),
    ("limited.unlimited_ratio", "", '>', 0.95),
    ("latency.step_to_step_ms.p50", "", '<', 0.2),
    ("latency.one_step_ms.p50", "", '<', 0.4),
    ("latency.one_step_ms.p99", "", '<', 1.0),
    ("memory.redis_bytes_per_queued_step", "", '<', 600.0),
    ("memory.redis_bytes_per_finished_chain10", "", '<', 1_500.0),
    ("scale.", ".growth", '<', 1.15),
    ("scale.", ".redis_growth", '<', 1.15),
    ("scale.", ".coordinator_growth", '<', 1.15),
    ("scale.", ".worker_growth", '<', 1.15),
    ("latency1ms.left", "", '>', 0.5),
    ("large.list_ms.p99", "", '<', 50.0),
    ("large.explain_ms.p99", "", '<', 50.0),
    ("large.heartbeats.redis_cpu_percent", "", '<', 2.0),
    // Large payloads may not take much from small runs beside them, and must come through at nearly their pace of 200.
    ("large.payloads.small_p50_growth", "", '<', 1.5),
    ("large.payloads.per_s", "", '>', 190.0),
    // What passed the long job is taken off the stream every now and then: what is left is a few seconds' worth.
    ("large.long_job.stream_share_left", "", '<', 0.1),
    ("large.run_growth", "", '<', 1.15),
];

fn aim(name: &str) -> Option<(char, f64)> {
    let is_it = |start: &str, end: &str| {
        if end.is_empty() { name == start } else { name.starts_with(start) && name.ends_with(end) }
    };
    AIMS.iter().find(|(start, end, ..)| is_it(start, end)).map(|(_, _, how, much)| (*how, *much))
}

impl Report {
    /// Of figures that are measured here and now.
    pub(super) fn new(origin: Origin) -> Self {
        Self { figures: Vec::new(), origin }
    }

    /// Adds a figure; one that is no number, as the growth of nothing, is left out.
    pub(super) fn put(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.figures.push((name.to_string(), value));
        }
    }

    /// Adds median and 99th percentile of times in milliseconds.
    pub(super) fn put_times(&mut self, name: &str, mut ms: Vec<f64>) {
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| ms.get(((ms.len() as f64 * share) as usize).min(ms.len().saturating_sub(1))).copied();
        self.put(&format!("{name}.p50"), at(0.5).unwrap_or(f64::NAN));
        self.put(&format!("{name}.p99"), at(0.99).unwrap_or(f64::NAN));
    }

    /// A figure measured before; not a number if there is none.
    pub(super) fn get(&self, name: &str) -> f64 {
        self.figures.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, v)| *v)
    }

    /// One line a figure.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![format!("on {}", self.origin.server)];
        for (name, value) in &self.figures {
            let digits = if *value >= 1_000.0 { 0 } else { 2 };
            let aim = aim(name).map(|(how, aim)| {
                let met = if how == '>' { *value >= aim } else { *value <= aim };
                let word = if met { "met" } else { "MISSED" };
                let how = if how == '>' { "at least" } else { "at most" };
                format!("   aim {how} {aim}: {word}")
            });
            lines.push(format!("{name:<48} {value:>12.digits$}{}", aim.unwrap_or_default()));
        }
        lines.join("\n")
    }

    /// The figures, nested by the dots of their names.
    pub(super) fn figures(&self) -> Value {
        let mut root = Map::new();
        for (name, value) in &self.figures {
            let mut parts = name.split('.').peekable();
            let mut at = &mut root;
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    at.insert(part.into(), json!(value));
                    break;
                }
                let next = at.entry(part).or_insert_with(|| json!({}));
                let Value::Object(map) = next else { break };
                at = map;
            }
        }
        Value::Object(root)
    }

    /// Where the figures come from, and the figures beside it.
    pub(super) fn json(&self) -> Value {
        let mut all = json!(self.origin);
        if let (Value::Object(all), Value::Object(figures)) = (&mut all, self.figures()) {
            all.extend(figures);
        }
        all
    }

    /// A line of the history: where the figures come from, and the figures in one field.
    pub(super) fn line(&self) -> Value {
        let mut all = json!(self.origin);
        all["figures"] = self.figures();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(Origin::default());
        report.origin.server = "redis 7.0.15".into();
        report.put_times("latency.step_to_step_ms", vec![0.9, 0.1, 0.5]);
        report.put("chain10.floor_ratio", 0.7);
        report.put("scale.partitions_8.growth", 1.2);
        report
    }

    #[test]
    fn figures_nest_by_their_dots_and_aims_are_judged() {
        let figures = json!({
            "latency": { "step_to_step_ms": { "p50": 0.5, "p99": 0.9 } },
            "chain10": { "floor_ratio": 0.7 },
            "scale": { "partitions_8": { "growth": 1.2 } }
        });
        assert_eq!(report().figures(), figures);
        let table = report().table();
        for part in ["aim at most 0.2: MISSED", "aim at least 0.7: met", "aim at most 1.15: MISSED"] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }

    #[test]
    fn figures_stand_beside_where_they_come_from_and_in_one_field_of_the_history() {
        let (json, line) = (report().json(), report().line());
        assert_eq!(
            (json["server"].as_str(), json["chain10"]["floor_ratio"].as_f64()),
            (Some("redis 7.0.15"), Some(0.7))
        );
        assert_eq!(line["figures"]["chain10"]["floor_ratio"].as_f64(), Some(0.7));
        for field in ["version", "commit", "machine", "server", "append_only", "date"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let mut report = report();
        report.put_times("none", Vec::new());
        assert!(report.figures()["none"].is_null());
        assert!(report.get("none.p50").is_nan() && report.get("never measured").is_nan());
    }
}
