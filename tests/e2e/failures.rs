//! Steps and runs that fail: retries, limits of time, dead letters, replay.

use std::time::Duration;

use serde_json::json;
use stepfleet_tests::lab::Fleet;

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    a_failing_step_is_tried_again_after_its_backoff,
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
    assert!(history.iter().any(|h| h["reason"] == "timed_out"), "{view:#} {history:#?}");
    let letters = api.items("/api/v1/dead-letters?workflow=short-step").await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:#?}");
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
