//! Steps and runs that fail: retries, limits of time, dead letters, replay.

use std::time::Duration;

use serde_json::json;
use stepfleet_tests::lab::Fleet;

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    a_failing_step_is_tried_again_after_its_backoff,
    a_step_that_waits_for_its_next_try_says_when_that_is_due,
    limits_of_time_end_steps_and_runs,
    a_dead_letter_tells_everything_and_its_replay_ends_the_run,
}

pub(crate) async fn a_failing_step_is_tried_again_after_its_backoff(fleet: &Fleet) {
    let api = fleet.api();
    let backoff = json!({ "base": "200ms", "factor": 2, "jitter": "none" });
    let definition = json!({ "workflow": "flaky", "steps": { "work": { "handler": "fail", "with": { "times": 2 },
        "retry": { "max_attempts": 3, "backoff": backoff } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(view["step_list"][0]["attempts"], 3);
    // 200 ms and 400 ms of waiting.
    assert!(view["duration_ms"].as_u64().unwrap() >= 600, "{view:#}");
    let history = api.history(&run).await.unwrap();
    let planned = history.iter().filter(|h| h["to"] == "retrying").count();
    assert_eq!(planned, 2, "{history:#?}");
    let failed = history.iter().filter(|h| h["reason"] == "attempt_failed" && h["note"].is_string()).count();
    assert_eq!(failed, 2, "each failure says what it was: {history:#?}");
    let notes: Vec<&str> =
        history.iter().filter(|h| h["to"] == "retrying").filter_map(|h| h["note"].as_str()).collect();
    assert_eq!(notes, ["try 2 of 3 in 200 ms", "try 3 of 3 in 400 ms"]);
}

async fn a_step_that_waits_for_its_next_try_says_when_that_is_due(fleet: &Fleet) {
    let api = fleet.api();
    let backoff = json!({ "base": "1h", "cap": "1h", "jitter": "none" });
    let definition = json!({ "workflow": "patient", "timeout": 0, "steps": { "work": { "handler": "fail",
        "timeout": "0", "retry": { "backoff": backoff } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let step = api.until_step(&run, "work", "retrying", SOON).await.unwrap();
    let (failed, due) = (step["finished_at"].as_str().unwrap(), step["next_attempt_at"].as_str().unwrap());
    // RFC 3339 sorts as text; an hour lies between the two.
    assert!(due > failed && due.ends_with('Z') && due.len() == failed.len() && due[..13] != failed[..13], "{step:#}");
    assert_eq!(due[14..], failed[14..], "to the millisecond: {step:#}");
    let shown: serde_json::Value = serde_json::from_str(&fleet.verb(&["runs", "show", &run]).await.unwrap()).unwrap();
    assert_eq!(shown["step_list"][0]["next_attempt_at"], due, "{shown:#}");
    api.command(&run, "cancel").await.unwrap();
    let step = api.until_step(&run, "work", "cancelled", SOON).await.unwrap();
    assert!(step["next_attempt_at"].is_null(), "{step:#}");
}

pub(crate) async fn limits_of_time_end_steps_and_runs(fleet: &Fleet) {
    let api = fleet.api();
    let sleep = json!({ "handler": "sleep", "with": { "duration": "5m" } });
    let mut short = sleep.clone();
    short["timeout"] = json!("300ms");
    short["retry"] = json!({ "max_attempts": 1 });
    let step = api.submit(&json!({ "workflow": "short-step", "steps": { "work": short } }), json!(null)).await.unwrap();
    let late = json!({ "workflow": "short-run", "timeout": "700ms", "steps": { "work": sleep } });
    let late = api.submit(&late, json!(null)).await.unwrap();
    let view = api.until_state(&step, "failed", SOON).await.unwrap();
    assert_eq!(view["errors"][0]["category"], "timeout", "{view:#}");
    let view = api.until_state(&late, "failed", SOON).await.unwrap();
    api.until_step(&late, "work", "cancelled", SOON).await.unwrap();
    let history = api.history(&late).await.unwrap();
    let named = |h: &serde_json::Value| {
        h["reason"] == "timed_out" && h["note"] == "the run took longer than its limit of 700ms"
    };
    assert!(history.iter().any(named), "{view:#} {history:#?}");
    let other = api.items("/api/v1/dead-letters?category=permanent&workflow=short-step").await.unwrap();
    assert!(other.is_empty(), "{other:#?}");
    let slow = api.items("/api/v1/dead-letters?category=timeout&workflow=short-step").await.unwrap();
    assert_eq!((slow.len(), &slow[0]["run"]), (1, &json!(step)), "{slow:#?}");
    let letters = api.items("/api/v1/dead-letters?workflow=short-run").await.unwrap();
    assert!(letters.is_empty(), "a run that took too long leaves no letter: {letters:#?}");
}

pub(crate) async fn a_dead_letter_tells_everything_and_its_replay_ends_the_run(fleet: &Fleet) {
    let api = fleet.api();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cause").display().to_string();
    let definition = json!({ "workflow": "reads", "steps": {
        "before": { "handler": "exec", "with": { "command": ["sh", "-c", format!("echo x >> {file}.before")] } },
        "read": { "handler": "exec", "needs": ["before"], "with": { "command": ["cat", "${{ input.file }}"] },
            "retry": { "max_attempts": 2, "backoff": { "base": "50ms" } } },
        "after": { "handler": "exec", "needs": ["read"],
            "with": { "command": ["cat"], "stdin": "${{ steps.read.output.stdout }}" } },
    }});
    let runs = [
        api.submit(&definition, json!({ "file": file })).await.unwrap(),
        api.submit(&definition, json!({ "file": file })).await.unwrap(),
    ];
    api.until_all(&runs, "failed", SOON).await.unwrap();
    let letters = api.items("/api/v1/dead-letters?workflow=reads").await.unwrap();
    assert_eq!(letters.len(), 2);
    let letter = letters.iter().find(|l| l["run"] == runs[0].as_str()).unwrap();
    let id = letter["id"].as_str().unwrap();
    let whole = api.get(&format!("/api/v1/dead-letters/{id}")).await.unwrap();
    let attempts = whole["attempts"].as_array().unwrap();
    assert!(!attempts.is_empty(), "{whole:#}");
    for attempt in attempts {
        assert!(attempt["worker"].as_str().unwrap().starts_with('w'), "{whole:#}");
        assert!(attempt["message"].is_string() && attempt["at"].is_string(), "{whole:#}");
    }
    assert!(whole["input"].to_string().contains(&file), "{whole:#}");

    // The cause is fixed; one is replayed as a letter, the other's run is retried. Both keep the finished step.
    std::fs::write(&file, "here").unwrap();
    let (status, answer) = api.post(&format!("/api/v1/dead-letters/{id}/replay"), &[], &json!({})).await.unwrap();
    assert_eq!((status, &answer["replayed"]), (200, &json!(1)), "{answer:#}");
    let (status, answer) = api.command(&runs[1], "retry").await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    api.until_all(&runs, "completed", SOON).await.unwrap();
    for run in &runs {
        assert_eq!(api.output(run, "after").await.unwrap()["stdout"], "here");
    }
    let before = std::fs::read_to_string(format!("{file}.before")).unwrap();
    assert_eq!(before.lines().count(), 2, "the finished steps were kept");
    let letters = api.items("/api/v1/dead-letters?workflow=reads").await.unwrap();
    assert!(letters.is_empty(), "both letters are closed: {letters:#?}");
}
