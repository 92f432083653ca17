//! The door: what it says about bad definitions, word for word, and what it lets in.

use proptest::prelude::*;
use serde_json::{Value, json};
use stepfleet_protocol::{
    duration::Millis,
    failure::Category,
    limits::WORKFLOW_BYTES_MAX,
    name::Name,
    workflow::{
        Backoff, CategoryRetry, Compensate, Defaults, Fallback, Jitter, OnFailure, Retry, Step, StepOnFailure, Workflow,
    },
};

use super::*;

const ORDERS: &str = r#"
workflow: orders
description: the sample of the documentation
defaults: { queue: default, timeout: 5m, retry: { max_attempts: 3, backoff: { base: 1s, factor: 2, cap: 60s, jitter: full } } }
timeout: 1h
on_failure: fail            # fail | suspend
input: { type: object, required: [url] }
steps:
  fetch:  { handler: http, with: { method: GET, url: "${{ input.url }}" } }
  parse:  { handler: exec, needs: [fetch], queue: cpu, with: { command: [jq, .items], stdin: "${{ steps.fetch.output.body }}" } }
  store:
    handler: exec
    needs: [parse]
    priority: 9
    start_within: 10m
    with: { command: [cat], stdin: "${{ steps.fetch.output.body }} ${{ run.id }}" }
"#;

/// Each problem as the line that people see.
fn lines(text: &str) -> Vec<String> {
    match check(text) {
        Ok(_) => Vec::new(),
        Err(report) => report.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn a_good_definition_is_read_as_it_was_meant() {
    let w = check(ORDERS).expect("a good definition");
    assert_eq!(w.steps.keys().map(Name::as_str).collect::<Vec<_>>(), ["fetch", "parse", "store"]);
    let defaults = w.defaults.retry.as_ref().and_then(|r| r.backoff.as_ref()).expect("written");
    assert_eq!((defaults.base, defaults.factor), (Some(Millis(1_000)), Some(2.0)));
    let store = w.resolved(&w.steps["store"]);
    assert_eq!(
        (store.priority, store.start_within, store.timeout),
        (9, Some(Millis::from_secs(600)), Millis::from_secs(300))
    );
    assert_eq!(
        w.steps["parse"].with,
        Some(json!({ "command": ["jq", ".items"], "stdin": "${{ steps.fetch.output.body }}" }))
    );
    let stored = serde_json::to_value(&w).expect("serializable");
    assert_eq!(check_value(&stored).as_ref(), Ok(&w));
    assert_eq!(check(&stored.to_string()).as_ref(), Ok(&w));
}

#[test]
fn a_time_out_of_0_is_none() {
    let text = |off: &str| {
        format!(
            "workflow: w\ntimeout: {off}\ndefaults: {{ timeout: {off} }}\nsteps:\n  a: {{ handler: h }}\n  b: {{ handler: h, timeout: 5s }}\n  c: {{ handler: h, timeout: {off} }}\n"
        )
    };
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    for off in ["0", "'0'", "0s"] {
        let w = check(&text(off)).expect("a good definition");
        let limits: Vec<u64> = w.steps.values().map(|s| w.resolved(s).timeout.0).collect();
        assert_eq!((w.timeout, limits), (Millis(0), vec![0, 5_000, 0]), "{off}");
        let stored = serde_json::to_value(&w).expect("serializable");
        assert_eq!(check_value(&stored).as_ref(), Ok(&w), "{off}");
        assert!(validator.is_valid(&stored), "{off}");
    }
    let number = json!({ "workflow": "w", "timeout": 0, "steps": { "a": { "handler": "h", "timeout": 0 } } });
    assert!(validator.is_valid(&number) && check_value(&number).is_ok());
    let one = json!({ "workflow": "w", "timeout": 1, "steps": { "a": { "handler": "h" } } });
    assert!(!validator.is_valid(&one) && check_value(&one).is_err());
}

#[test]
fn each_problem_is_one_line_with_its_place() {
    let step = |rest: &str| format!("workflow: w\nsteps:\n  a: {{ handler: h, {rest} }}\n");
    let two = |rest: &str| format!("workflow: w\nsteps:\n  a: {{ handler: h }}\n  b: {{ handler: h, {rest} }}\n");
    let known = "`handler`, `needs`, `queue`, `timeout`, `retry`, `priority`, `start_within`, `with`, `breaker`, `fallback`, `compensate`, `on_failure`";
    let top = "`workflow`, `description`, `defaults`, `timeout`, `on_failure`, `input`, `steps`";
    let duration = "a number with a unit `ms`, `s`, `m`, `h` or `d`, such as `30s` or `1h30m`, at most 3650d";
    let name = "1 to 63 letters, digits, `_`, `-`, `.`, the first a letter or a digit";
    for (text, expected) in [
        (String::new(), "1:1 nothing found: allowed is a workflow".to_owned()),
        ("workflow: [".into(), "2:1 bad syntax: while parsing a node, did not find expected node content".into()),
        ("a: b: c".into(), "1:5 bad syntax: mapping values are not allowed in this context".into()),
        ("- 1".into(), format!("1:1 found a list: allowed is a map with {top}")),
        ("workflow: w\n---\nsteps: {}".into(), "2:1 a second document: allowed is one workflow in one document".into()),
        ("workflow: w\nsteps: {}\n".into(), "2:8 steps: no steps: allowed is at least one".into()),
        ("workflow: w\n".into(), "1:1 missing field `steps`: allowed is a map of at least one step".into()),
        ("steps: { a: { handler: h } }".into(), "1:1 missing field `workflow`: allowed is the name of the workflow".into()),
        ("workflow: 1\nsteps: { a: { handler: h } }".into(), "1:11 workflow: found number `1`: allowed is a name; hint: put it in quotes".into()),
        ("workflow: a b\nsteps: { a: { handler: h } }".into(), format!("1:11 workflow: illegal name `a b`: allowed is {name}")),
        ("workflow: w\nsteps: { -a: { handler: h } }".into(), format!("2:10 steps.-a: illegal name `-a`: allowed is {name}")),
        ("workflow: w\nsteps: { a.b: 1 }".into(), format!("2:15 steps[\"a.b\"]: found number `1`: allowed is a map with {known}")),
        ("workflow: w\nsteps: { a: {} }".into(), "2:13 steps.a: missing field `handler`: allowed is the name of a handler".into()),
        ("workflow: w\nworkflow: v\nsteps: { a: { handler: h } }".into(), "2:1 workflow: duplicate key `workflow`: allowed is each key once".into()),
        ("workflow: w\nsteps:\n  a: { handler: h }\n  a: { handler: h }".into(), "4:3 steps.a: duplicate key `a`: allowed is each key once".into()),
        ("workflow: w\nstep: 1\nsteps: { a: { handler: h } }".into(), format!("2:1 step: unknown field `step`: allowed is {top}; hint: did you mean `steps`?")),
        ("workflow: w\non_failure: ignore\nsteps: { a: { handler: h } }".into(), "2:13 on_failure: found text `ignore`: allowed is `fail`, `suspend`, `compensate`".into()),
        ("workflow: w\ntimeout: 1\nsteps: { a: { handler: h } }".into(), format!("2:10 timeout: found number `1`: allowed is {duration}; hint: for seconds write `1s`")),
        (step("start_within: 0s"), "3:34 steps.a.start_within: bad duration `0`: allowed is at least 1ms".into()),
        ("workflow: w\ndescription: 5\nsteps: { a: { handler: h } }".into(), "2:14 description: found number `5`: allowed is text".into()),
        ("workflow: w\ninput: 5\nsteps: { a: { handler: h } }".into(), "2:8 input: found number `5`: allowed is a JSON Schema".into()),
        ("workflow: w\ninput: { type: objekt }\nsteps: { a: { handler: h } }".into(), "2:8 input: bad JSON Schema: \"objekt\" is not valid under any of the schemas listed in the 'anyOf' keyword".into()),
        ("workflow: w\ndefaults: { needs: [] }\nsteps: { a: { handler: h } }".into(), "2:13 defaults.needs: unknown field `needs`: allowed is `queue`, `timeout`, `retry`, `priority`".into()),
        (step("need: [b]"), format!("3:20 steps.a.need: unknown field `need`: allowed is {known}; hint: did you mean `needs`?")),
        (step("timeout: 5x"), format!("3:29 steps.a.timeout: bad duration `5x`: allowed is {duration}")),
        (step("timeout: 5"), format!("3:29 steps.a.timeout: found number `5`: allowed is {duration}; hint: for seconds write `5s`")),
        (step("priority: 10"), "3:30 steps.a.priority: number `10` out of range: allowed is a whole number from 0 to 9".into()),
        (step("priority: high"), "3:30 steps.a.priority: found text `high`: allowed is a whole number from 0 to 9".into()),
        (step("retry: { max_attempts: 0 }"), "3:43 steps.a.retry.max_attempts: number `0` out of range: allowed is a whole number from 1 to 1000".into()),
        (step("retry: { backoff: { factor: 0.5 } }"), "3:48 steps.a.retry.backoff.factor: number `0.5` out of range: allowed is a number from 1 to 100".into()),
        (step("retry: { backoff: { jitter: ful } }"), "3:48 steps.a.retry.backoff.jitter: found text `ful`: allowed is `full`, `equal`, `none`; hint: did you mean `full`?".into()),
        (step("retry: { tries: 3 }"), "3:29 steps.a.retry.tries: unknown field `tries`: allowed is `max_attempts`, `backoff`, `escalate_after`, `notify`, `categories`".into()),
        (step("needs: b"), "3:27 steps.a.needs: found text `b`: allowed is a list of step names; hint: write `[b]`".into()),
        (step("needs: [a]"), "3:28 steps.a.needs[0]: a step that needs itself".into()),
        (two("needs: [a, a]"), "4:31 steps.b.needs[1]: duplicate need `a`: allowed is each step once".into()),
        (two("needs: [A]"), "4:28 steps.b.needs[0]: unknown step `A`: allowed is a step of this workflow; hint: did you mean `a`?".into()),
        (step("with: { x: \"${{ inptu }}\" }"), "3:31 steps.a.with.x: in `inptu`: unknown name `inptu`: allowed is `input`, `steps`, `run`, `attempt`; hint: did you mean `input`?".into()),
        (two("with: [\"${{ steps.c.output }}\"]"), "4:27 steps.b.with[0]: an expression refers to an unknown step `c`; hint: did you mean `a`?".into()),
        (two("with: \"${{ steps.a.output }}\""), "4:26 steps.b.with: an expression refers to step `a`, which `b` does not wait for; hint: add `a` to the needs of `b`".into()),
        (step("with: \"${{ steps.a.output }}\""), "3:26 steps.a.with: an expression refers to the output of its own step".into()),
        (step("with: { k: 1, k: 2 }"), "3:34 steps.a.with.k: duplicate key `k`: allowed is each key once".into()),
        (step("with: !x 1"), "3:26 tag `!x`: allowed is no tag but `!!str`".into()),
        ("{\n  \"workflow\": \"w\",\n  \"steps\": { \"a\": { \"handler\": 7 } }\n}".into(), "3:32 steps.a.handler: found number `7`: allowed is a name; hint: put it in quotes".into()),
    ] {
        assert_eq!(lines(&text), [expected], "{text}");
    }
}

#[test]
fn all_problems_come_in_one_report_in_the_order_of_the_text() {
    let text = "workflow: w\ntimeout: soon\nsteps:\n  a: { handler: h, needs: [c, zz], priority: 11 }\n  b: { needs: [a] }\n  c: { handler: h, needs: [b] }\n";
    assert_eq!(
        lines(text),
        [
            "2:10 timeout: bad duration `soon`: allowed is a number with a unit `ms`, `s`, `m`, `h` or `d`, such as `30s` or `1h30m`, at most 3650d",
            "4:3 steps.a: cycle of needs: a -> c -> b -> a",
            "4:31 steps.a.needs[1]: unknown step `zz`: allowed is a step of this workflow",
            "4:46 steps.a.priority: number `11` out of range: allowed is a whole number from 0 to 9",
            "5:6 steps.b: missing field `handler`: allowed is the name of a handler",
        ]
    );
    let value = json!({ "workflow": "w", "steps": { "a": { "handler": "h", "tiemout": "1s" } } });
    let report = check_value(&value).expect_err("an unknown field").to_string();
    assert!(report.starts_with("steps.a.tiemout: unknown field `tiemout`: allowed is `handler`"), "{report}");
    let many: String = (0..500).map(|i| format!("x{i}: 1\n")).collect();
    let report = check(&many).expect_err("unknown fields");
    assert_eq!((report.problems.len(), report.omitted), (PROBLEMS_MAX, 402));
}

#[test]
fn yaml_is_read_by_its_core_schema_and_json_with_its_escapes() {
    let text = "workflow: w\nsteps:\n  1:\n    handler: h\n    with: { a: yes, b: 0x10, c: 012, d: 1e3, e: ~, f: '1', g: .5, h: 18446744073709551615, i: 1.2.3, j: &x [1], k: *x, l: !!str 1 }\n";
    let w = check(text).expect("a good definition");
    let with = json!({ "a": "yes", "b": 16, "c": 12, "d": 1000.0, "e": null, "f": "1", "g": 0.5, "h": u64::MAX, "i": "1.2.3", "j": [1], "k": [1], "l": "1" });
    assert_eq!(w.steps["1"].with, Some(with));
    let text = r#"{"workflow": "w", "steps": {"a": {"handler": "h", "with": "\ud83d\ude00 \\ud83d \u00fc\/"}}}"#;
    assert_eq!(check(text).expect("JSON").steps["a"].with, Some(json!("😀 \\ud83d ü/")));
}

#[test]
fn bombs_are_refused_at_little_cost() {
    let laughs = (1..30).fold("a0: &a0 [x, x, x]\n".to_owned(), |text, i| {
        format!("{text}a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)
    });
    assert!(lines(&laughs)[0].contains("anchors and aliases repeat too much: allowed is at most 1048576 bytes"));
    assert!(lines("a: &a [*a]")[0].contains("alias"));
    let deep = format!("a: {}1{}", "[".repeat(100), "]".repeat(100));
    assert!(lines(&deep)[0].contains("nested too deeply: allowed is at most 64 levels"), "{:?}", lines(&deep));
    let deep: String = (0..100).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(lines(&deep)[0].contains("nested too deeply"));
    let mut value = json!(1);
    for _ in 0..100 {
        value = json!([value]);
    }
    let report = check_value(&value).expect_err("too deep").to_string();
    assert_eq!(report, "nested too deeply: allowed is at most 64 levels");
    let long = " ".repeat(WORKFLOW_BYTES_MAX + 1);
    assert_eq!(lines(&long), ["too large: 33554433 bytes: allowed is at most 33554432"]);
}

#[test]
fn inputs_are_checked_against_the_schema_of_the_workflow() {
    let schema = json!({ "type": "object", "required": ["id"], "properties": { "id": { "type": "integer" }, "s": { "pattern": "^a+$" } } });
    assert_eq!(validate_input(&schema, &json!({ "id": 1, "s": "aaa" })), Ok(()));
    let problems = validate_input(&schema, &json!({ "id": "x", "s": "b" })).expect_err("two problems");
    assert_eq!(problems, ["/id: \"x\" is not of type \"integer\"", "/s: \"b\" does not match \"^a+$\""]);
    assert_eq!(validate_input(&schema, &Value::Null).expect_err("no object"), ["null is not of type \"object\""]);
    assert!(validate_input(&json!({ "$ref": "http://127.0.0.1:1/x" }), &json!(1)).is_err());
}

#[test]
fn a_graph_of_many_steps_is_checked_in_linear_time() {
    // A tenth of the limit, because tests run without optimisation.
    let count = 10_000;
    let mut text = String::from("workflow: big\nsteps:\n");
    for i in 0..count {
        let needs: Vec<String> = (1..=10usize.min(i)).map(|d| format!("s{}", i - d)).collect();
        let source = if i > 0 { format!(", with: '${{{{ steps.s{}.output.x }}}}'", i / 2) } else { String::new() };
        text.push_str(&format!("  s{i}: {{ handler: h, needs: [{}]{source} }}\n", needs.join(", ")));
    }
    let started = std::time::Instant::now();
    assert_eq!(check(&text).map(|w| w.steps.len()), Ok(count));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// The most steps that are allowed, in two chains that meet in a step which needs all others and refers to as many as it may.
#[test]
fn the_largest_graph_is_checked_in_seconds() {
    let count = stepfleet_protocol::limits::STEPS_MAX;
    let mut text = String::from("workflow: big\nsteps:\n");
    for i in 0..count - 1 {
        let needs = if i > 1 { format!("s{}", i - 2) } else { String::new() };
        text.push_str(&format!("  s{i}: {{ handler: h, needs: [{needs}] }}\n"));
    }
    let needs: Vec<String> = (0..count - 1).map(|i| format!("s{i}")).collect();
    let with: Vec<String> =
        (0..template::EXPRESSIONS_MAX).map(|i| format!("'${{{{ steps.s{}.output }}}}'", count - 2 - i)).collect();
    text.push_str(&format!("  last: {{ handler: h, needs: [{}], with: [{}] }}\n", needs.join(", "), with.join(", ")));
    let started = std::time::Instant::now();
    assert_eq!(check(&text).map(|w| w.steps.len()), Ok(count));
    println!("{count} steps in {:?}", started.elapsed());
    // Generous: without optimisation, on a machine that may be busy.
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn the_published_schema_is_the_one_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/workflow.schema.json");
    let text = serde_json::to_string_pretty(&schema()).expect("serializable") + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).expect("docs can be written");
    }
    let published = std::fs::read_to_string(path).expect("the schema is published");
    assert_eq!(published, text, "run the test again with UPDATE=1");
}

#[test]
fn schema_and_checker_agree_on_fields() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let orders = serde_json::to_value(check(ORDERS).expect("a good definition")).expect("serializable");
    assert!(validator.is_valid(&orders));
    let bare = json!({ "workflow": "w", "steps": { "a": { "handler": "h", "queue": null, "with": null, "retry": { "backoff": {} } } } });
    assert!(check_value(&bare).is_ok() && validator.is_valid(&bare));
    for place in ["", "/defaults", "/defaults/retry", "/defaults/retry/backoff", "/steps/fetch"] {
        let mut bad = orders.clone();
        bad.pointer_mut(place).expect("it is there")["colour"] = json!("red");
        assert!(!validator.is_valid(&bad) && check_value(&bad).is_err(), "{place}");
    }
    for (place, value) in [
        ("/workflow", json!("a b")),
        ("/timeout", json!("5")),
        ("/timeout", json!(null)),
        ("/steps", json!({})),
        ("/steps", json!({ "a b": { "handler": "h" } })),
        ("/steps/fetch/priority", json!(10)),
        ("/steps/fetch/needs", json!(null)),
        ("/steps/parse/needs", json!(["fetch", "fetch"])),
        ("/on_failure", json!("x")),
        ("/input", json!(1)),
        ("/defaults/retry/max_attempts", json!(0)),
        ("/defaults/retry/backoff/factor", json!(0)),
    ] {
        let mut bad = orders.clone();
        let (above, key) = place.rsplit_once('/').expect("a pointer");
        bad.pointer_mut(above).expect("it is there")[key] = value;
        assert!(!validator.is_valid(&bad) && check_value(&bad).is_err(), "{place}");
    }
}

fn names() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,12}".prop_map(|n| Name::new(&n).expect("a legal name"))
}

fn some<T: std::fmt::Debug>(inner: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(inner)
}

fn retries() -> impl Strategy<Value = Retry> {
    let jitter = prop::sample::select(vec![Jitter::Full, Jitter::Equal, Jitter::None]);
    let span = || some((0u64..10_000_000).prop_map(Millis));
    let backoff = (span(), some(1.0f64..100.0), span(), some(jitter)).prop_map(|(base, factor, cap, jitter)| Backoff {
        base,
        factor,
        cap,
        jitter,
    });
    let backoff = some(backoff).boxed();
    let special = (some(any::<bool>()), some(1u32..=1_000), backoff.clone(), some(1u32..=1_000), some(any::<bool>()))
        .prop_map(|(retry, max_attempts, backoff, escalate_after, notify)| CategoryRetry {
            retry,
            max_attempts,
            backoff,
            escalate_after,
            notify,
        });
    let categories = prop::collection::btree_map(prop::sample::select(Category::ALL.to_vec()), special, 0..3);
    (some(1u32..=1_000), backoff, some(1u32..=1_000), some(any::<bool>()), categories).prop_map(
        |(max_attempts, backoff, escalate_after, notify, categories)| Retry {
            max_attempts,
            backoff,
            escalate_after,
            notify,
            categories,
        },
    )
}

/// What a step says about its failures, on a step that says nothing else.
fn unlucky() -> impl Strategy<Value = Step> {
    let fallback = (names(), some(names())).prop_map(|(handler, queue)| Fallback { handler, queue });
    let span = some((0u64..10_000_000).prop_map(Millis));
    let with = Just(json!({ "id": "${{ input.id }}" }));
    let compensate = (names(), some(names()), span, some(retries()), some(with))
        .prop_map(|(handler, queue, timeout, retry, with)| Compensate { handler, queue, timeout, retry, with });
    let on_failure =
        prop::sample::select(vec![StepOnFailure::Fail, StepOnFailure::Continue, StepOnFailure::SkipDependents]);
    let target = prop_oneof![Just("api.example".to_owned()), Just("${{ input.host }}".to_owned())];
    (names(), some(target), some(fallback), some(compensate), some(on_failure)).prop_map(
        |(handler, breaker, fallback, compensate, on_failure)| Step {
            breaker,
            fallback,
            compensate,
            on_failure,
            ..Step::new(handler)
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let with = prop_oneof![
        Just(json!({ "a": [1, "x: y", true, 1.5] })),
        Just(json!("${{ input.x }}")),
        ".{0,20}".prop_map(|t| json!(t.replace("${{", "")))
    ];
    let span = |least| some((least..10_000_000u64).prop_map(Millis));
    (unlucky(), some(names()), span(0), some(retries()), some(0u8..=9), span(1), some(with)).prop_map(
        |(step, queue, timeout, retry, priority, start_within, with)| Step {
            queue,
            timeout,
            retry,
            priority,
            start_within,
            with,
            ..step
        },
    )
}

fn workflows() -> impl Strategy<Value = Workflow> {
    let step = (names(), steps(), prop::collection::btree_set(0usize..30, 0..4));
    let defaults = (some(names()), some((0u64..1_000_000).prop_map(Millis)), some(retries()), some(0u8..=9))
        .prop_map(|(queue, timeout, retry, priority)| Defaults { queue, timeout, retry, priority });
    let on_failure = prop::sample::select(vec![OnFailure::Fail, OnFailure::Suspend, OnFailure::Compensate]);
    let steps = prop::collection::vec(step, 1..30);
    (names(), some(".{0,30}"), defaults, 0u64..10_000_000, on_failure, steps).prop_map(
        |(workflow, description, defaults, timeout, on_failure, list)| {
            let mut steps = stepfleet_protocol::workflow::Steps::new();
            for (name, mut step, needs) in list {
                step.needs = needs
                    .iter()
                    .filter_map(|i| steps.get_index(*i))
                    .map(|(n, _): (&Name, &Step)| n.clone())
                    .filter(|n| *n != name)
                    .collect();
                steps.entry(name).or_insert(step);
            }
            Workflow { workflow, description, defaults, timeout: Millis(timeout), on_failure, input: None, steps }
        },
    )
}

proptest! {
    #[test]
    fn no_text_makes_the_checker_panic(text in ".{0,2000}", cut in 0usize..1_200, noise in "[ \\-:{}\\[\\]&*!|>'\"%@`#,?a-c\n\t0-9$]{0,200}") {
        let _ = check(&text);
        let _ = check(&noise);
        let cut = ORDERS.char_indices().map(|(i, _)| i).nth(cut).unwrap_or(ORDERS.len());
        let _ = check(&format!("{}{noise}{}", &ORDERS[..cut], &ORDERS[cut..]));
    }

    #[test]
    fn a_generated_workflow_is_accepted_and_survives_a_round_trip(workflow in workflows()) {
        let value = serde_json::to_value(&workflow).expect("serializable");
        prop_assert_eq!(check_value(&value), Ok(workflow.clone()));
        prop_assert_eq!(check(&value.to_string()), Ok(workflow));
    }
}
