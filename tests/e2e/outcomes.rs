//! How runs end when a step gave up: what they bear, what is skipped, going back, resolving by hand, undoing.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_tests::{
    lab::{self, Effects, Fleet, Hands},
    wait,
};

use crate::worker_death::{DEATH, until_lines};

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    lesson_30_a_step_whose_failure_does_not_matter_skips_what_needs_it_and_the_run_completes,
    a_run_that_failed_late_goes_back_to_one_step_and_keeps_what_was_before_it,
    a_step_that_was_done_by_hand_gets_its_output_and_the_run_goes_on,
    a_run_that_is_stuck_at_a_step_that_hangs_is_ended_by_hand,
    a_step_that_no_worker_takes_in_time_expires_with_a_letter,
}

/// A step that appends a line to a file and gives a text.
fn marks(file: &str, needs: &[&str], then: &str) -> Value {
    json!({ "handler": "exec", "needs": needs, "retry": { "max_attempts": 1 },
        "with": { "command": ["sh", "-c", format!("echo x >> {file}; {then}")] } })
}

fn state_of<'a>(view: &'a Value, step: &str) -> &'a str {
    let steps = view["step_list"].as_array().unwrap();
    steps.iter().find(|s| s["name"] == step).unwrap()["state"].as_str().unwrap()
}

fn lines(file: &str) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

async fn lesson_30_a_step_whose_failure_does_not_matter_skips_what_needs_it_and_the_run_completes(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "bears", "steps": {
        "thumbnails": { "handler": "fail", "on_failure": "skip_dependents", "retry": { "max_attempts": 1 } },
        "upload": { "handler": "noop", "needs": ["thumbnails"] },
        "announce": { "handler": "noop", "needs": ["upload"] },
        "mail": { "handler": "fail", "on_failure": "continue", "retry": { "max_attempts": 1 } },
        "store": { "handler": "noop", "needs": ["mail"] },
    }});
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    let states = ["thumbnails", "upload", "announce", "mail", "store"].map(|step| state_of(&view, step));
    assert_eq!(states, ["failed", "skipped", "skipped", "failed", "completed"], "{view:#}");
    let counts = json!({ "total": 5, "completed": 1, "failed": 2, "tolerated": 2, "skipped": 2, "active": 0 });
    assert_eq!(view["steps"], counts);
    let letters = api.items("/api/v1/dead-letters?workflow=bears").await.unwrap();
    assert!(letters.is_empty(), "its author said how the run goes on: {letters:#?}");
    let history = api.history(&run).await.unwrap();
    let said = |step: &str, note: &str| history.iter().any(|h| h["step"] == step && h["note"] == note);
    assert!(
        said("upload", "step `thumbnails` gave up") && said("announce", "step `upload` was skipped"),
        "{history:#?}"
    );
    let (status, answer) = api.command(&run, "retry").await.unwrap();
    assert_eq!((status, &answer["code"]), (409, &json!("illegal_state")), "{answer:#}");
}

async fn a_run_that_failed_late_goes_back_to_one_step_and_keeps_what_was_before_it(fleet: &Fleet) {
    let api = fleet.api();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (first, second, gate) = (file("first"), file("second"), file("gate"));
    let last = json!({ "handler": "exec", "needs": ["second"], "retry": { "max_attempts": 1 },
        "with": { "command": ["cat", gate], "stdin": "${{ steps.second.output.stdout }}" } });
    let definition = json!({ "workflow": "goes-back", "steps": {
        "first": marks(&first, &[], "wc -l < /dev/null"),
        "second": marks(&second, &["first"], &format!("wc -l < {second}")),
        "last": last,
    }});
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    std::fs::write(&gate, "open").unwrap();
    let wrong = api.post(&format!("/api/v1/runs/{run}/retry"), &[], &json!({ "from": "third" })).await.unwrap();
    assert_eq!((wrong.0, &wrong.1["code"]), (404, &json!("step_not_found")), "{:#}", wrong.1);
    fleet.verb(&["runs", "retry", &run, "--from", "second", "--reason", "the second was wrong"]).await.unwrap();
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!((lines(&first), lines(&second)), (1, 2), "what is before it is kept: {view:#}");
    assert_eq!(api.output(&run, "second").await.unwrap()["stdout"].as_str().unwrap().trim(), "2");
    let generations: Vec<&Value> = view["step_list"].as_array().unwrap().iter().map(|s| &s["generation"]).collect();
    assert_eq!(generations, [&json!(1), &json!(2), &json!(2)], "{view:#}");
    let letters = api.items("/api/v1/dead-letters?workflow=goes-back").await.unwrap();
    assert!(letters.is_empty(), "the letter of the last step is closed: {letters:#?}");
}

async fn a_step_that_was_done_by_hand_gets_its_output_and_the_run_goes_on(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "by-hand", "steps": {
        "pay": { "handler": "fail", "retry": { "max_attempts": 1 } },
        "book": { "handler": "exec", "needs": ["pay"],
            "with": { "command": ["wc", "-c"], "stdin": "${{ steps.pay.output.receipt }}" } },
    }});
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    // Larger than what travels inside a message.
    let receipt = "r".repeat(100_000);
    let body = json!({ "step": "pay", "complete": { "receipt": receipt }, "reason": "paid in cash" });
    let (status, answer) = api.post(&format!("/api/v1/runs/{run}/resolve"), &[], &body).await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(api.output(&run, "book").await.unwrap()["stdout"].as_str().unwrap().trim(), "100000");
    let history = api.history(&run).await.unwrap();
    let resolved = history.iter().find(|h| h["step"] == "pay" && h["to"] == "completed").unwrap();
    assert_eq!((&resolved["reason"], &resolved["note"]), (&json!("resolved"), &json!("paid in cash")));
    let both = json!({ "step": "pay", "complete": null, "fail": "no" });
    let (status, answer) = api.post(&format!("/api/v1/runs/{run}/resolve"), &[], &both).await.unwrap();
    assert_eq!((status, &answer["code"]), (400, &json!("bad_resolution")), "{answer:#}");
}

/// What others had: runs that are at work for ever, with a cancel that does nothing and a worker that leaks.
async fn a_run_that_is_stuck_at_a_step_that_hangs_is_ended_by_hand(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "stuck", "timeout": 0, "steps": {
        "hangs": { "handler": "sleep", "timeout": 0, "with": { "duration": "1h" } },
        "after": { "handler": "noop", "needs": ["hangs"] },
    }});
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_step(&run, "hangs", "processing", SOON).await.unwrap();
    let body = json!({ "step": "hangs", "complete": null });
    let (status, answer) = api.post(&format!("/api/v1/runs/{run}/resolve"), &[], &body).await.unwrap();
    assert_eq!(status, 409, "not under the hands of a worker: {answer:#}");
    fleet.verb(&["runs", "suspend", &run]).await.unwrap();
    fleet.verb(&["runs", "resolve", &run, "hangs", "--fail", "it hangs", "--reason", "seen at night"]).await.unwrap();
    let view = api.until_state(&run, "failed", SOON).await.unwrap();
    assert_eq!(view["errors"][0]["message"], "it hangs", "{view:#}");
    // The worker was told to stop, and what it says now changes nothing.
    wait::until(SOON, "the worker to let go", async || {
        let history = api.history(&run).await?;
        ensure!(history.iter().any(|h| h["step"] == "hangs" && h["reason"] == "ignored"), "{history:#?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(api.run(&run).await.unwrap()["state"], "failed");
}

async fn a_step_that_no_worker_takes_in_time_expires_with_a_letter(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "expires", "steps": {
        "work": { "handler": "noop", "queue": "nobody-reads-this", "start_within": "500ms" } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    let letters = api.items("/api/v1/dead-letters?workflow=expires").await.unwrap();
    assert_eq!(
        (letters.len(), &letters[0]["cause"], &letters[0]["category"]),
        (1, &json!("expired"), &json!("timeout"))
    );
}

/// The completed steps of an order are undone, the last first, each once, even if the worker dies that undoes one.
#[tokio::test]
async fn a_worker_that_dies_while_it_undoes_a_step_leaves_nothing_half_undone() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let effects = Effects::default();
    // One death must be less than a third of the fleet, or it waits for a second look.
    let _others: Vec<Hands> = (0..4).map(|_| Hands::start(&server.url(), 1, &effects).unwrap()).collect();
    fleet.add_worker(&["--queue", "mortal"]).unwrap();
    let (log, tries) = (file("log"), file("tries"));
    let undo = |name: &str, before: &str| {
        let script = format!("{before} echo {name} >> {log}");
        json!({ "handler": "exec", "with": { "command": ["sh", "-c", script], "stdin": "${{ steps.NAME.output.stdout }}"
            .replace("NAME", name) } })
    };
    let slow = format!("echo x >> {tries}; n=$(wc -l < {tries}); [ $n -gt 1 ] || sleep 60;");
    let step = |needs: &[&str], undo: Value| {
        json!({ "handler": "exec", "needs": needs, "queue": "mortal", "compensate": undo,
            "with": { "command": ["echo", "done"] } })
    };
    let definition = json!({ "workflow": "order", "on_failure": "compensate", "steps": {
        "reserve": step(&[], undo("reserve", "")),
        "charge": step(&["reserve"], undo("charge", &slow)),
        "pack": step(&["charge"], undo("pack", "")),
        "ship": { "handler": "fail", "needs": ["pack"], "queue": "mortal", "retry": { "max_attempts": 1 } },
    }});
    let api = fleet.api().clone();
    let run = api.submit(&definition, json!(null)).await.unwrap();
    until_lines(&tries, 1, SOON).await.unwrap();
    assert_eq!(api.run(&run).await.unwrap()["compensation"], "running");
    // It is known to be at work: `started` came.
    api.until_step(&run, "charge/undo", "processing", SOON).await.unwrap();
    fleet.workers[0].kill_9().unwrap();
    fleet.add_worker(&["--queue", "mortal"]).unwrap();
    let view = api.until_state(&run, "failed", DEATH).await.unwrap();
    assert_eq!(view["compensation"], "done", "{view:#}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "pack\ncharge\nreserve\n");
    let undone = ["reserve/undo", "charge/undo", "pack/undo"].map(|step| state_of(&view, step));
    assert_eq!(undone, ["completed"; 3], "{view:#}");
    let history = api.history(&run).await.unwrap();
    let told: Vec<&str> = history.iter().filter(|h| h["step"].is_null()).filter_map(|h| h["reason"].as_str()).collect();
    assert!(told.ends_with(&["compensating", "compensated"]), "{told:?}");
    let (status, answer) = api.command(&run, "retry").await.unwrap();
    assert_eq!(status, 409, "a run that was undone is not taken up again: {answer:#}");
}
