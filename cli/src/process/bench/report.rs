//! The figures, as one table and as nested JSON.

use serde_json::{Map, Value, json};

/// The figures by dotted name, in the order in which they were measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<(String, f64)>,
    /// On which server they were measured: without that they say nothing.
    server: String,
}

/// What the project aims at, by figure: at least, or at most.
const AIMS: [(&str, char, f64); 8] = [
    ("one_step.floor_ratio", '>', 0.3),
    ("one_step.redis_us_per_step", '<', 40.0),
    ("chain10.floor_ratio", '>', 0.5),
    ("chain10.redis_us_per_step", '<', 20.0),
    ("limited.unlimited_ratio", '>', 0.95),
    ("latency.step_to_step_ms.p50", '<', 0.4),
    ("memory.redis_bytes_per_queued_step", '<', 600.0),
    ("memory.redis_bytes_per_finished_chain10", '<', 1_500.0),
];

impl Report {
    /// Of figures that are measured on this server.
    pub(super) fn on(server: String) -> Self {
        Self { figures: Vec::new(), server }
    }

    /// Adds a figure.
    pub(super) fn put(&mut self, name: &str, value: f64) {
        self.figures.push((name.to_string(), value));
    }

    /// A figure measured before.
    pub(super) fn get(&self, name: &str) -> f64 {
        self.figures.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, v)| *v)
    }

    /// One line a figure.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![format!("on {}", self.server)];
        for (name, value) in &self.figures {
            let digits = if *value >= 1_000.0 { 0 } else { 2 };
            let aim = AIMS.iter().find(|(n, ..)| n == name).map(|(_, how, aim)| {
                let met = if *how == '>' { value >= aim } else { value <= aim };
                let word = if met { "met" } else { "MISSED" };
                let how = if *how == '>' { "at least" } else { "at most" };
                format!("   aim {how} {aim}: {word}")
            });
            lines.push(format!("{name:<42} {value:>12.digits$}{}", aim.unwrap_or_default()));
        }
        lines.join("\n")
    }

    /// Nested by the dots of the names.
    pub(super) fn json(&self) -> Value {
        let mut root = Map::from_iter([("server".to_string(), json!(self.server))]);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_nest_by_their_dots_and_aims_are_judged() {
        let mut report = Report::on("redis 7.0.15".into());
        report.put("latency.step_to_step_ms.p50", 0.5);
        report.put("latency.step_to_step_ms.p99", 0.9);
        report.put("chain10.floor_ratio", 0.6);
        let expected = json!({
            "server": "redis 7.0.15", "latency": { "step_to_step_ms": { "p50": 0.5, "p99": 0.9 } }, "chain10": { "floor_ratio": 0.6 }
        });
        assert_eq!(report.json(), expected);
        assert!(report.table().contains("aim at most 0.4: MISSED") && report.table().contains("aim at least 0.5: met"));
    }
}
