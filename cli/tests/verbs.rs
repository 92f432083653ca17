//! The real program against a small server that answers recorded JSON of the API: what is asked, shown, and returned as
//! exit code. Whether the API means it is the business of the end-to-end tests.

mod peer;

use peer::{Peer, Reply, run, run_with};
use serde_json::json;

const RUN: &str = "0198c2f4-6f5c-7000-8a3e-2f1d5b7c9e10";

fn summary(state: &str) -> serde_json::Value {
    json!({
        "id": RUN, "workflow": "orders", "version": 3, "state": state, "created_at": "2026-11-19T23:59:59.999Z",
        "finished_at": "2026-11-20T00:00:01.999Z", "duration_ms": 2_000,
        "steps": { "total": 2, "completed": 1, "failed": 1, "active": 0 }, "review": false,
    })
}

fn whole(state: &str) -> serde_json::Value {
    let mut run = summary(state);
    let more = json!({
        "partition": 4, "plan": "ab", "input": { "bytes": 9, "value": { "n": 1 } },
        "errors": [{
            "step": "charge", "attempt": 3, "job": "j", "worker": "alpha@1", "at": "2026-11-20T00:00:01.000Z", "run_ms": 40,
            "category": "permanent", "code": "card_declined", "message": "the card\u{1b}[31m was declined",
        }],
        "step_list": [
            { "name": "fetch", "index": 0, "handler": "http", "queue": "default", "state": "completed", "attempts": 1,
              "losses": 0, "generation": 1, "worker": "alpha@1", "duration_ms": 900 },
            { "name": "charge", "index": 1, "handler": "charge", "queue": "default", "state": "failed", "attempts": 3,
              "losses": 1, "generation": 1, "needs": ["fetch"], "dead_letter": "4-1-0" },
        ],
    });
    run.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    run
}

fn problem(status: u16, code: &str) -> Reply {
    let body = json!({ "type": "about:blank", "title": "", "status": status, "code": code, "detail": format!("it is {code}") });
    Reply::new(status, body.to_string())
}

#[test]
fn a_listing_is_a_table_and_its_json_is_unchanged() {
    let body = json!({ "items": [summary("failed")], "added_later": 1 }).to_string();
    let peer = Peer::start(vec![("GET /api/v1/runs", Reply::new(200, &body))]);
    let shown = run(&peer, &["runs", "list", "--state", "failed", "--workflow", "orders"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(
        shown.out.contains(RUN) && shown.out.contains("orders@3") && shown.out.contains("1/2, 1 failed"),
        "{shown:?}"
    );
    assert!(peer.asked()[0].ends_with("?state=failed&workflow=orders&limit=50"), "{:?}", peer.asked());
    let json = run(&peer, &["runs", "list", "--output", "json"]);
    assert_eq!((json.code, json.out.trim_end()), (0, body.as_str()));
}

#[test]
fn a_failed_run_is_shown_with_its_steps_and_what_to_do() {
    let peer = Peer::start(vec![("GET /api/v1/runs/", Reply::new(200, whole("failed").to_string()))]);
    let shown = run(&peer, &["runs", "show", RUN]);
    assert_eq!(shown.code, 0, "{shown:?}");
    for part in ["orders@3", "3 (+1 lost)", "permanent card_declined: the card", "900ms", r#"{"n":1}"#] {
        assert!(shown.out.contains(part), "{part}: {shown:?}");
    }
    assert!(!shown.out.contains('\u{1b}'), "what others wrote is harmless: {shown:?}");
    assert!(
        shown.err.contains("dead-letters show 4-1-0") && shown.err.contains(&format!("runs retry {RUN}")),
        "{shown:?}"
    );
    let quiet = run(&peer, &["runs", "show", RUN, "--quiet"]);
    assert_eq!(quiet.err, "");
}

#[test]
fn every_refusal_has_its_exit_code() {
    for (status, code, exit) in [
        (404, "run_not_found", 3),
        (409, "illegal_state", 4),
        (422, "idempotency_mismatch", 4),
        (400, "bad_run_id", 2),
        (403, "forbidden", 6),
        (503, "unavailable", 5),
        (500, "internal", 1),
    ] {
        let peer = Peer::start(vec![("POST /api/v1/runs/", problem(status, code))]);
        let shown = run(&peer, &["runs", "retry", RUN]);
        assert_eq!(shown.code, exit, "{status} {code}: {shown:?}");
        assert!(shown.err.contains(&format!("error: it is {code}")) && shown.out.is_empty(), "{shown:?}");
    }
}

#[test]
fn an_api_that_is_not_there_is_named_with_a_hint() {
    let shown = run_with("http://127.0.0.1:1", &["runs", "list"], "");
    assert_eq!(shown.code, 5);
    assert!(shown.err.contains("`http://127.0.0.1:1`") && shown.err.contains("stepfleet dev"), "{shown:?}");
    let peer = Peer::start(vec![("GET /", Reply::new(200, "<html>hello</html>"))]);
    let shown = run(&peer, &["runs", "list"]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.err.contains("cannot be read"), "{shown:?}");
}

#[test]
fn what_cannot_be_undone_needs_a_yes() {
    let taken = json!({ "id": RUN, "state": "cancelled", "command_id": "c", "url": "u" }).to_string();
    let counted = json!({ "matched": 7 }).to_string();
    let peer = Peer::start(vec![
        ("POST /api/v1/runs/", Reply::new(200, &taken)),
        ("POST /api/v1/campaigns", Reply::new(200, &counted)),
    ]);
    for verb in [
        vec!["runs", "cancel", RUN],
        vec!["dead-letters", "purge", "--workflow", "old", "--reason", "over"],
        vec!["dead-letters", "replay", "--all"],
        vec!["quarantine", "discard", "0-1-0"],
        vec!["workers", "drain", "alpha@1"],
    ] {
        let shown = run(&peer, &verb);
        assert_eq!(shown.code, 2, "{shown:?}");
        assert!(shown.err.contains("--yes"), "{shown:?}");
    }
    // Of many letters the number is asked for first.
    assert!(
        peer.bodies().iter().all(|body| body.contains(r#""dry_run":true"#)),
        "nothing was done: {:?}",
        peer.bodies()
    );
    assert_eq!(peer.asked(), vec!["POST /api/v1/campaigns"; 2]);
    let shown = run(&peer, &["runs", "cancel", RUN, "--yes", "--reason", "twice"]);
    assert_eq!((shown.code, shown.out.trim_end()), (0, format!("{RUN} cancelled").as_str()));
    assert_eq!(peer.bodies().last().map(String::as_str), Some(r#"{"reason":"twice"}"#));
}

#[test]
fn a_start_that_waits_ends_with_the_run() {
    let taken = json!({ "id": RUN, "state": "queued", "url": "u", "known": false }).to_string();
    let transition = json!({ "at": "2026-11-20T00:00:00.000Z", "step": "fetch", "from": "queued", "to": "processing", "reason": "begun" });
    for (state, exit) in [("completed", 0), ("failed", 1), ("suspended", 1), ("cancelled", 1)] {
        let peer = Peer::start(vec![
            ("POST /api/v1/runs", Reply::new(201, &taken)),
            (
                &*format!("GET /api/v1/runs/{RUN}/history"),
                Reply::new(200, json!({ "items": [transition] }).to_string()),
            ),
            ("GET /api/v1/runs/", Reply::new(200, whole(state).to_string())),
        ]);
        let shown = run(&peer, &["runs", "start", "orders", "--input", r#"{"n":1}"#, "--wait"]);
        assert_eq!((shown.code, shown.out.trim_end()), (exit, RUN), "{state}: {shown:?}");
        assert!(shown.err.contains("fetch queued -> processing, begun") && shown.err.contains(state), "{shown:?}");
        assert_eq!(peer.bodies()[0], r#"{"workflow":"orders","input":{"n":1}}"#);
        let json = run(&peer, &["runs", "watch", RUN, "--output", "json"]);
        assert_eq!((json.code, json.out.trim_end()), (exit, transition.to_string().as_str()), "{json:?}");
    }
}

#[test]
fn a_wait_has_a_limit() {
    let peer = Peer::start(vec![("GET /api/v1/runs/", Reply::new(200, whole("processing").to_string()))]);
    let shown = run(&peer, &["runs", "start", "-f", "gone.yaml", "--wait"]);
    assert_eq!(shown.code, 3, "{shown:?}");
    let peer = Peer::start(vec![
        (&*format!("GET /api/v1/runs/{RUN}/history"), Reply::new(200, r#"{"items":[]}"#)),
        ("GET /api/v1/runs/", Reply::new(200, whole("processing").to_string())),
    ]);
    let shown = run(&peer, &["runs", "watch", RUN, "--timeout", "250ms"]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.err.contains("goes on after 250ms"), "{shown:?}");
}

#[test]
fn bulk_gives_each_line_its_answer() {
    let answers = format!(
        "{}\n{}\n",
        json!({ "line": 1, "run": { "id": RUN, "state": "queued", "url": "u" } }),
        json!({ "line": 2, "error": { "type": "about:blank", "title": "", "status": 404, "code": "workflow_not_found", "detail": "there is no workflow `x`" } }),
    );
    let peer = Peer::start(vec![("POST /api/v1/runs/bulk", Reply::new(200, &answers))]);
    let lines = "{\"workflow\":\"orders\"}\n\n{\"workflow\":\"x\"}\n";
    let shown = run_with(&peer.url, &["runs", "start", "--bulk", "-", "--idempotency-key", "k"], lines);
    assert_eq!((shown.code, shown.out.trim_end()), (1, RUN), "{shown:?}");
    assert!(
        shown.err.contains("line 3: there is no workflow `x`") && shown.err.contains("1 run taken, 1 refused"),
        "{shown:?}"
    );
    assert!(peer.bodies()[0].contains(r#""idempotency_key":"k:3""#), "{:?}", peer.bodies());
}

#[test]
fn a_dry_run_replays_nothing() {
    let peer = Peer::start(vec![("POST /api/v1/campaigns", Reply::new(200, r#"{"matched":7}"#))]);
    let shown = run(&peer, &["dead-letters", "replay", "--category", "data", "--dry-run"]);
    assert_eq!(
        (shown.code, shown.out.trim_end()),
        (0, "7 would be replayed: all dead letters of category `data`"),
        "{shown:?}"
    );
    let body: serde_json::Value = serde_json::from_str(&peer.bodies()[0]).expect("JSON");
    assert_eq!((&body["dry_run"], &body["filter"]), (&json!(true), &json!({ "category": "data" })));
    for words in [
        &["dead-letters", "replay"][..],
        &["dead-letters", "purge", "--yes"],
        &["dead-letters", "replay", "0-1-0", "--all"],
    ] {
        let shown = run(&peer, words);
        assert_eq!((shown.code, peer.bodies().len()), (2, 1), "nobody is asked: {shown:?}");
        assert!(shown.err.contains("allowed"), "{shown:?}");
    }
}

#[test]
fn a_critical_fleet_is_a_no() {
    let health = json!({
        "level": "critical", "reasons": ["nobody reads queue `cpu`"], "workers_live": 0, "workers_draining": 0,
        "workers_silent": 1, "queues": [{ "name": "cpu", "depth": 3, "ready": 3, "on_streams": 0, "pending": 0,
        "oldest_age_ms": 61_000, "workers": 0, "slots": 0, "level": "critical" }],
    });
    let peer = Peer::start(vec![("GET /api/v1/workers/health", Reply::new(200, health.to_string()))]);
    let shown = run(&peer, &["workers", "health"]);
    assert_eq!(shown.code, 1);
    assert!(shown.out.contains("nobody reads queue `cpu`") && shown.out.contains("1m 1s"), "{shown:?}");
}

#[test]
fn what_is_different_is_shown_when_policies_are_applied_and_when_they_would_be() {
    let applied = |dry_run: bool| {
        let diff = ["+ retry.notify: true", "~ retry.max_attempts: 3 -> 5"];
        json!({ "version": 7, "changed": true, "dry_run": dry_run, "diff": diff }).to_string()
    };
    let document = json!({ "version": 6, "policies": { "retry": { "max_attempts": 5 } } }).to_string();
    let peer = Peer::start(vec![
        ("PUT /api/v1/policies?dry_run=true", Reply::new(200, applied(true))),
        ("PUT /api/v1/policies", Reply::new(200, applied(false))),
        ("GET /api/v1/policies?version=6", Reply::new(200, document)),
    ]);
    let dry = run(&peer, &["policies", "apply", "--version", "6", "--dry-run"]);
    let done = run(&peer, &["policies", "apply", "--version", "6", "--reason", "slow", "--expected-version", "6"]);
    for shown in [&dry, &done] {
        assert_eq!(shown.code, 0, "{shown:?}");
        assert_eq!(shown.out, "+ retry.notify: true\n~ retry.max_attempts: 3 -> 5\n");
    }
    assert!(dry.err.contains("nothing was written") && done.err.contains("version 7 holds"), "{dry:?} {done:?}");
    let asked = peer.asked();
    assert_eq!(asked[3], "PUT /api/v1/policies?expected_version=6&reason=slow", "{asked:?}");
}

#[test]
fn what_holds_is_shown_with_where_it_was_written() {
    let plain = json!({ "value": 3, "level": "built_in", "for_category": false });
    let category = |name: &str, base: u64, level: &str| {
        json!({ "category": name, "retry": { "value": true, "level": "built_in", "for_category": true },
            "max_attempts": plain, "base_ms": { "value": base, "level": level, "for_category": level == "handler" },
            "factor": plain, "cap_ms": plain, "jitter": plain, "escalate_after": plain, "notify": plain })
    };
    let breaker = json!({ "enabled": true, "failures": 5, "ratio": 0.5, "minimum_calls": 10, "window_ms": 60_000,
        "break_ms": 60_000, "break_cap_ms": 600_000, "canaries": 3 });
    let body = json!({ "version": 4, "handler": "pay", "classified": true, "breaker_of": "handler pay", "breaker": breaker,
        "categories": [category("transient", 1_000, "fleet"), category("system", 5_000, "handler")] });
    let peer = Peer::start(vec![("GET /api/v1/policies/effective?handler=pay", Reply::new(200, body.to_string()))]);
    let shown = run(&peer, &["policies", "show", "--handler", "pay"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let rows: Vec<Vec<&str>> = shown.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let has = |words: &[&str]| rows.iter().any(|row| row == words);
    assert!(has(&["backoff.base", "1.0s", "fleet", "transient"]), "{}", shown.out);
    assert!(has(&["backoff.base", "5.0s", "handler,", "for", "the", "category", "system"]), "{}", shown.out);
    assert!(has(&["max_attempts", "3", "built", "in", "all"]), "{}", shown.out);
    assert!(shown.out.contains("0.5 of at least 10 calls"), "{}", shown.out);
    assert_eq!(run(&peer, &["policies", "show", "--step", "fetch"]).code, 2, "a step needs its workflow");
}

#[test]
fn the_audit_store_is_a_table_and_its_filters_are_sent_as_they_are() {
    let body = json!({ "items": [
        { "id": "fleet-9-0", "at": "2026-11-20T00:00:00.000Z", "actor": "cli:ada", "action": "worker.drain",
          "target": "worker:alpha@1", "outcome": "done" },
        { "id": "0-8-0", "at": "2026-11-19T23:59:59.999Z", "actor": "cli:bob", "action": "run.cancel",
          "target": "run:x", "outcome": "refused", "message": "it is\u{1b}[31m over", "reason": "wrong order" },
    ] })
    .to_string();
    let peer = Peer::start(vec![("GET /api/v1/audit", Reply::new(200, &body))]);
    let shown = run(&peer, &["audit", "list", "--actor", "cli:ada", "--action", "run.", "--since", "24h"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    for part in ["cli:ada", "worker.drain", "worker:alpha@1", "refused", "wrong order", "OUTCOME"] {
        assert!(shown.out.contains(part), "{part}: {shown:?}");
    }
    assert!(!shown.out.contains('\u{1b}'), "what others wrote is harmless: {shown:?}");
    let asked = peer.asked();
    assert!(asked[0].ends_with("?actor=cli%3Aada&action=run.&since=24h&limit=50"), "{asked:?}");
    let json = run(&peer, &["audit", "list", "--output", "json"]);
    assert_eq!((json.code, json.out.trim_end()), (0, body.as_str()));
}

#[test]
fn a_subscriber_with_undelivered_events_is_shown_with_what_to_do() {
    let subscriber = json!({ "name": "pager", "lag": 7, "lag_ms": 65_000, "delivered": 40, "undelivered": 2, "missed": 0,
        "partitions": [{ "partition": 0, "entry": "5-0", "lag": 7, "lag_ms": 65_000 }] });
    let undelivered = json!({ "id": "0-9-0", "at": "2026-11-20T00:00:00.000Z", "subscriber": "pager", "entry": "4-0",
        "error": "no route to it", "attempts": 5 });
    let peer = Peer::start(vec![
        ("GET /api/v1/subscribers/undelivered", Reply::new(200, json!({ "items": [undelivered] }).to_string())),
        ("GET /api/v1/subscribers", Reply::new(200, json!({ "items": [subscriber] }).to_string())),
    ]);
    let shown = run(&peer, &["subscribers", "list"]);
    assert!(shown.out.contains("pager") && shown.out.contains("1m 5s"), "{shown:?}");
    assert!(shown.err.contains("stepfleet subscribers undelivered"), "{shown:?}");
    let shown = run(&peer, &["subscribers", "undelivered", "--subscriber", "pager"]);
    assert!(shown.out.contains("no route to it") && shown.out.contains("4-0"), "{shown:?}");
    assert!(peer.asked()[1].ends_with("?subscriber=pager&limit=50"), "{:?}", peer.asked());
}

#[test]
fn recorded_calls_are_told_in_the_order_of_their_tries() {
    let call = |attempt: u32, state: &str, more: serde_json::Value| {
        let mut call = json!({ "id": format!("0.1.{attempt}.1"), "step": "pay", "generation": 1, "attempt": attempt, "n": 1,
            "job": "1-0000000000000007.1.1", "kind": "http", "method": "POST", "endpoint": "https://pay.example/charges",
            "key": "run/pay/1", "state": state, "intended_at": "2026-11-19T23:59:59.999Z" });
        call.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        call
    };
    let lost = call(1, "completed", json!({ "settled_by": 2 }));
    let page = json!({ "items": [call(2, "unknown", json!({ "status": 504, "note": "no answer" })), lost] });
    let peer = Peer::start(vec![(&*format!("GET /api/v1/runs/{RUN}/calls"), Reply::new(200, page.to_string()))]);
    let shown = run(&peer, &["runs", "calls", RUN]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let (first, second) = (shown.out.find("settled by try 2"), shown.out.find("no answer"));
    assert!(first.is_some() && first < second && shown.out.contains("unknown"), "{shown:?}");
}
