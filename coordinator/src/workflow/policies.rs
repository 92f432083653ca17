//! Reading what workflows and the fleet say about failures: retries, circuit breakers, limits.

mod limits;

use std::collections::BTreeMap;

use stepfleet_protocol::{
    failure::Category,
    limits::ATTEMPTS_MAX,
    policy::{BreakerPolicy, Classification, HandlerPolicy, Policies, Preset},
    workflow::{Backoff, CategoryRetry, Jitter, Retry},
};

use super::{
    fields::{Fields, Path, Reader},
    report::{Complaint, Report, shown},
    tree::Node,
};

const JITTER: [(&str, Jitter); 3] = [("full", Jitter::Full), ("equal", Jitter::Equal), ("none", Jitter::None)];
const YES_NO: &str = "`true` or `false`";
/// Handlers and targets that one file may name.
const ENTRIES_MAX: usize = 10_000;

/// What a map says about retries.
pub(super) fn retry(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<Retry> {
    const KNOWN: [&str; 5] = ["max_attempts", "backoff", "escalate_after", "notify", "categories"];
    let fields = r.fields(node, here, &KNOWN)?;
    let categories = fields.get("categories").map(|n| categories(r, n, &here.key("categories")));
    Some(Retry {
        max_attempts: attempts(r, &fields, here, "max_attempts"),
        backoff: fields.set("backoff").and_then(|n| backoff(r, n, &here.key("backoff"))),
        escalate_after: attempts(r, &fields, here, "escalate_after"),
        notify: fields.set("notify").and_then(|n| yes_no(r, n, &here.key("notify"))),
        categories: categories.unwrap_or_default(),
    })
}

fn categories(r: &mut Reader, node: &Node, here: &Path<'_>) -> BTreeMap<Category, CategoryRetry> {
    const KNOWN: [&str; 5] = ["retry", "max_attempts", "backoff", "escalate_after", "notify"];
    let known = Category::ALL.map(Category::as_str);
    let Some(fields) = r.fields(node, here, &known) else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    for category in Category::ALL {
        let path = here.key(category.as_str());
        let Some(node) = fields.set(category.as_str()) else { continue };
        let Some(own) = r.fields(node, &path, &KNOWN) else { continue };
        let retry = CategoryRetry {
            retry: own.set("retry").and_then(|n| yes_no(r, n, &path.key("retry"))),
            max_attempts: attempts(r, &own, &path, "max_attempts"),
            backoff: own.set("backoff").and_then(|n| backoff(r, n, &path.key("backoff"))),
            escalate_after: attempts(r, &own, &path, "escalate_after"),
            notify: own.set("notify").and_then(|n| yes_no(r, n, &path.key("notify"))),
        };
        out.insert(category, retry);
    }
    out
}

fn attempts(r: &mut Reader, fields: &Fields<'_>, here: &Path<'_>, name: &'static str) -> Option<u32> {
    let number = r.whole_number(fields.set(name)?, &here.key(name), 1..=u64::from(ATTEMPTS_MAX))?;
    u32::try_from(number).ok()
}

fn yes_no(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<bool> {
    match node.kind {
        super::tree::Kind::Bool(yes) => Some(yes),
        _ => {
            r.wrong_type(node, here, YES_NO);
            None
        }
    }
}

fn backoff(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<Backoff> {
    let fields = r.fields(node, here, &["base", "factor", "cap", "jitter"])?;
    Some(Backoff {
        base: fields.set("base").and_then(|n| r.duration(n, &here.key("base"))),
        factor: fields.set("factor").and_then(|n| r.number(n, &here.key("factor"), 1.0..=100.0)),
        cap: fields.set("cap").and_then(|n| r.duration(n, &here.key("cap"))),
        jitter: fields.set("jitter").and_then(|n| r.one_of(n, &here.key("jitter"), &JITTER)),
    })
}

/// The policies that the tree describes.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read(root: &Node) -> Result<Policies, Report> {
    let mut reader = Reader::default();
    let policies = policies(&mut reader, root);
    let report = reader.report.sorted();
    match policies {
        Some(policies) if report.problems.is_empty() => Ok(policies),
        _ => Err(report),
    }
}

fn policies(r: &mut Reader, root: &Node) -> Option<Policies> {
    const KNOWN: [&str; 7] = ["preset", "classification", "retry", "breaker", "handlers", "targets", "limits"];
    const PRESETS: [(&str, Preset); 2] = [("default", Preset::Default), ("production", Preset::Production)];
    const CLASSIFICATIONS: [(&str, Classification); 2] =
        [("category", Classification::Category), ("handler", Classification::Handler)];
    let here = Path::ROOT;
    let fields = r.fields(root, &here, &KNOWN)?;
    let mut out = Policies {
        preset: fields.set("preset").and_then(|n| r.one_of(n, &here.key("preset"), &PRESETS)),
        classification: fields
            .set("classification")
            .and_then(|n| r.one_of(n, &here.key("classification"), &CLASSIFICATIONS)),
        retry: fields.set("retry").and_then(|n| retry(r, n, &here.key("retry"))),
        breaker: fields.set("breaker").and_then(|n| breaker(r, n, &here.key("breaker"))),
        ..Policies::default()
    };
    if let Some(node) = fields.get("handlers") {
        let here = here.key("handlers");
        for entry in entries(r, node, &here, ENTRIES_MAX) {
            let path = here.key(&entry.key);
            let Some(name) = r.checked_name(&entry.key, entry.at, &path) else { continue };
            let Some(own) = r.fields(&entry.value, &path, &["retry", "breaker"]) else { continue };
            let policy = HandlerPolicy {
                retry: own.set("retry").and_then(|n| retry(r, n, &path.key("retry"))),
                breaker: own.set("breaker").and_then(|n| breaker(r, n, &path.key("breaker"))),
            };
            out.handlers.insert(name, policy);
        }
    }
    if let Some(node) = fields.get("targets") {
        let here = here.key("targets");
        for entry in entries(r, node, &here, ENTRIES_MAX) {
            if let Some(policy) = breaker(r, &entry.value, &here.key(&entry.key)) {
                out.targets.insert(entry.key.clone(), policy);
            }
        }
    }
    if let Some(node) = fields.get("limits") {
        out.limits.extend(limits::read(r, node, &here.key("limits")));
    }
    Some(out)
}

/// The entries of a map, at most `most`.
fn entries<'n>(r: &mut Reader, node: &'n Node, here: &Path<'_>, most: usize) -> Vec<&'n super::tree::Entry> {
    let entries = r.entries(node, here, "a map").unwrap_or_default();
    if entries.len() > most {
        let found = Complaint::new(format!("too many entries in `{}`: {}", shown(&here.to_string()), entries.len()));
        r.complain(node.at, here, found.allowed(format!("at most {most}")));
        return Vec::new();
    }
    entries
}

fn breaker(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<BreakerPolicy> {
    const KNOWN: [&str; 8] =
        ["enabled", "failures", "ratio", "minimum_calls", "window", "break_for", "break_cap", "canaries"];
    let fields = r.fields(node, here, &KNOWN)?;
    let mut number = |name: &'static str, to: u64| {
        let number = fields.set(name).and_then(|n| r.whole_number(n, &here.key(name), 1..=to));
        number.and_then(|n| u32::try_from(n).ok())
    };
    let (failures, minimum_calls) = (number("failures", 10_000), number("minimum_calls", 100_000));
    let canaries = number("canaries", 100);
    let mut span = |name: &'static str, from: u64, to: u64| {
        let node = fields.set(name)?;
        let span = r.duration(node, &here.key(name))?;
        if !(from..=to).contains(&span.0) {
            let [from, to] = [from, to].map(stepfleet_protocol::duration::Millis);
            let found = Complaint::new(format!("duration `{span}` out of range"));
            r.complain(node.at, &here.key(name), found.allowed(format!("{from} to {to}")));
            return None;
        }
        Some(span)
    };
    const DAY: u64 = 86_400_000;
    let window = span("window", 1_000, 3_600_000);
    let (break_for, break_cap) = (span("break_for", 100, DAY), span("break_cap", 100, 7 * DAY));
    Some(BreakerPolicy {
        enabled: fields.set("enabled").and_then(|n| yes_no(r, n, &here.key("enabled"))),
        failures,
        ratio: fields.set("ratio").and_then(|n| r.number(n, &here.key("ratio"), 0.01..=1.0)),
        minimum_calls,
        window,
        break_for,
        break_cap,
        canaries,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{check_policies, check_policies_value, policies_schema};

    #[test]
    fn the_published_schema_of_policies_is_the_one_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.schema.json");
        let text = serde_json::to_string_pretty(&policies_schema()).expect("serializable") + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &text).expect("docs can be written");
        }
        let published = std::fs::read_to_string(path).expect("the schema is published");
        assert_eq!(published, text, "run the test again with UPDATE=1");
    }

    /// Every YAML block of the page about policies.
    fn examples() -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let blocks = page.split("```yaml\n").skip(1);
        blocks.map(|block| block.split("```").next().expect("it ends").to_owned()).collect()
    }

    #[test]
    fn the_examples_of_the_page_are_good_and_the_schema_says_so_too() {
        let validator = jsonschema::validator_for(&policies_schema()).expect("a schema");
        let examples = examples();
        assert!(examples.len() >= 5, "{} examples", examples.len());
        for text in examples {
            let policies = check_policies(&text).unwrap_or_else(|report| panic!("{report}\n{text}"));
            let value = serde_json::to_value(&policies).expect("serializable");
            assert!(validator.is_valid(&value), "{value}");
            assert_eq!(check_policies_value(&value), Ok(policies), "its own JSON is the same document");
        }
    }

    #[test]
    fn every_problem_of_policies_is_told_with_its_place() {
        let text = "preset: big\nretry:\n  max_attempts: 0\n  categories: { netwrok: {} }\nbreaker: { window: 2h, ratio: 2 }\n\
                    handlers:\n  pay: { retires: {} }\nlimits:\n  'queue:mail': { concurrency: 1 }\n  'handler:pay': {}\n  \
                    'target:bank': { concurrency: 0, rate: 5/d }\n  'target:shop': { concurrency: 1, burst: 2 }\n";
        let report = check_policies(text).expect_err("problems");
        let told: Vec<String> =
            report.problems.iter().map(|p| format!("{}: {}", p.line.unwrap_or(0), p.path)).collect();
        assert_eq!(
            told,
            [
                "1: preset",
                "3: retry.max_attempts",
                "4: retry.categories.netwrok",
                "5: breaker.window",
                "5: breaker.ratio",
                "7: handlers.pay.retires",
                "9: limits[\"queue:mail\"]",
                "10: limits[\"handler:pay\"]",
                "11: limits[\"target:bank\"].concurrency",
                "11: limits[\"target:bank\"].rate",
                "12: limits[\"target:shop\"].burst",
            ],
            "{report}"
        );
        assert!(report.problems[0].allowed.contains("production"), "{report}");
        assert!(check_policies("{}").is_ok(), "nothing is written: what is built in holds");
    }
}
