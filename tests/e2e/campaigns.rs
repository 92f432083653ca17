//! Campaigns over dead letters as an operator uses them in an incident: carefully, in steps, with a way back.

use std::time::Duration;

use serde_json::{Value, json};
use stepfleet_tests::{lab::Fleet, wait};

use crate::dead_letters::ended;

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    a_patch_mends_the_input_for_every_coming_attempt,
    a_patch_that_is_none_is_refused,
    a_held_campaign_catches_up_with_nothing,
    a_campaign_ends_at_its_maximum,
    a_letter_that_came_back_three_times_is_left_alone_unless_forced,
    a_campaign_whose_letters_fail_again_stops,
    a_campaign_waits_for_a_version_and_begins_once,
    a_cancelled_campaign_tells_what_became_of_what_was_under_way,
    lesson_39_replay_all_acts_on_every_letter_not_on_a_page,
}

fn definition(workflow: &str) -> Value {
    let with = json!({ "category": "permanent", "message": "it broke" });
    json!({ "workflow": workflow, "steps": { "work": { "handler": "fail", "with": with } } })
}

/// So many runs that failed for good.
async fn fail(fleet: &Fleet, workflow: &str, count: usize) -> Vec<String> {
    fleet.api().register(&definition(workflow)).await.unwrap();
    let runs = fleet.api().submit_many(workflow, count).await.unwrap();
    fleet.api().until_all(&runs, "failed", SOON * 2).await.unwrap();
    runs
}

/// Begins a campaign; the path of it.
async fn begin(fleet: &Fleet, request: &Value) -> String {
    let (status, begun) = fleet.api().post("/api/v1/campaigns", &[], request).await.unwrap();
    assert_eq!(status, 201, "{begun:#}");
    format!("/api/v1/campaigns/{}", begun["id"].as_str().unwrap())
}

async fn until_phase(fleet: &Fleet, path: &str, phase: &str) -> Value {
    wait::until(SOON, "the phase of the campaign", async || {
        let view = fleet.api().get(path).await?;
        anyhow::ensure!(view["phase"] == phase, "{view:#}");
        Ok(view)
    })
    .await
    .unwrap()
}

/// Letters that were taken up so far.
async fn taken(fleet: &Fleet, path: &str) -> u64 {
    let view = fleet.api().get(path).await.unwrap();
    let outcomes = view["outcomes"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
    outcomes + view["open"].as_u64().unwrap()
}

async fn a_patch_mends_the_input_for_every_coming_attempt(fleet: &Fleet) {
    let api = fleet.api();
    let runs = fail(fleet, "bad", 3).await;
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    // The first try after the replay fails once more, and the retry still has the patched input.
    let id = letters[0]["id"].as_str().unwrap();
    let words = ["dead-letters", "replay", id, "--input", r#"{"category": "transient"}"#, "--set", "times=2"];
    fleet.verb(&words).await.unwrap();
    api.until_state(letters[0]["run"].as_str().unwrap(), "completed", SOON).await.unwrap();
    let request = json!({ "kind": "replay", "all": true, "reason": "mended",
        "patch": { "category": "transient", "times": 2, "message": null } });
    let view = ended(fleet, &request).await;
    assert_eq!((&view["phase"], &view["outcomes"]["completed"]), (&json!("completed"), &json!(2)), "{view:#}");
    api.until_all(&runs, "completed", SOON).await.unwrap();
    // The history names the campaign; the audit has one entry for all of its letters.
    let note = format!("campaign {}: mended", view["id"].as_str().unwrap());
    let run = letters[1]["run"].as_str().unwrap();
    let history = api.history(run).await.unwrap();
    assert!(history.iter().any(|h| h["reason"] == "replayed" && h["note"] == note), "{history:#?}");
    let audit = api.items("/api/v1/audit").await.unwrap();
    let actions = |action: &str| audit.iter().filter(|entry| entry["action"] == action).count();
    assert_eq!((actions("campaign.begin"), actions("letter.replay")), (1, 1), "{audit:#?}");
}

async fn a_patch_that_is_none_is_refused(fleet: &Fleet) {
    let api = fleet.api();
    fail(fleet, "bad", 1).await;
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    let replay = format!("/api/v1/dead-letters/{}/replay", letters[0]["id"].as_str().unwrap());
    let all = "/api/v1/campaigns";
    let large = "x".repeat(9_000);
    for (path, request, code, text) in [
        (replay.as_str(), json!({ "patch": [1] }), "bad_patch", "patch is a list: allowed is a JSON object"),
        (&replay, json!({ "patch": {}, "input": {} }), "bad_field", "input and patch are both given"),
        (all, json!({ "kind": "replay", "all": true, "patch": "x" }), "bad_patch", "patch is a text"),
        (
            all,
            json!({ "kind": "replay", "all": true, "patch": { "a": large } }),
            "bad_patch",
            "allowed are at most 8192",
        ),
        (
            all,
            json!({ "kind": "discard", "all": true, "reason": "r", "patch": {} }),
            "bad_field",
            "patch is given and kind is `discard`",
        ),
        (all, json!({ "kind": "replay", "all": true, "ramp_ms": 5 }), "bad_field", "ramp_ms is given and rate is not"),
        (
            all,
            json!({ "kind": "replay", "all": true, "when_version": "soon" }),
            "bad_field",
            "when_version is `soon`: allowed is a requirement such as `>=1.4`",
        ),
    ] {
        let (status, problem) = api.post(path, &[], &request).await.unwrap();
        assert_eq!((status, &problem["code"]), (400, &json!(code)), "{problem:#}");
        assert!(problem["detail"].as_str().unwrap().contains(text), "{problem:#}");
    }
    assert_eq!(api.items("/api/v1/dead-letters").await.unwrap().len(), 1, "nothing was replayed");
}

async fn a_held_campaign_catches_up_with_nothing(fleet: &Fleet) {
    fail(fleet, "bad", 60).await;
    let path = begin(fleet, &json!({ "kind": "replay", "all": true, "rate": 5 })).await;
    let id = path.rsplit('/').next().unwrap();
    fleet.verb(&["campaigns", "pause", id, "--reason", "wait"]).await.unwrap();
    until_phase(fleet, &path, "paused").await;
    let before = taken(fleet, &path).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(taken(fleet, &path).await, before, "it takes up nothing while it is held");
    let resumed = std::time::Instant::now();
    fleet.verb(&["campaigns", "resume", id]).await.unwrap();
    wait::until(SOON, "a letter", async || {
        anyhow::ensure!(taken(fleet, &path).await > before);
        Ok(())
    })
    .await
    .unwrap();
    let after = taken(fleet, &path).await - before;
    // A second's worth at most is saved up, and none of it from the pause.
    let most = (resumed.elapsed().as_secs_f64() + 1.0) * 5.0 + 1.0;
    assert!(after as f64 <= most, "{after} letters at once, {most} at most");
    fleet.verb(&["campaigns", "cancel", id]).await.unwrap();
    let view = until_phase(fleet, &path, "cancelled").await;
    assert!(taken(fleet, &path).await < 60 && view["open"] == 0, "{view:#}");
    let (status, problem) = fleet.api().post(&format!("{path}/resume"), &[], &json!({})).await.unwrap();
    assert_eq!((status, &problem["code"]), (409, &json!("campaign_ended")), "{problem:#}");
}

async fn a_campaign_ends_at_its_maximum(fleet: &Fleet) {
    fail(fleet, "bad", 7).await;
    let view = ended(fleet, &json!({ "kind": "replay", "all": true, "max": 3 })).await;
    assert_eq!((&view["phase"], &view["outcomes"]["failed_again"]), (&json!("completed"), &json!(3)), "{view:#}");
}

async fn a_letter_that_came_back_three_times_is_left_alone_unless_forced(fleet: &Fleet) {
    fail(fleet, "bad", 1).await;
    let request = json!({ "kind": "replay", "all": true });
    for _ in 0..3 {
        let view = ended(fleet, &request).await;
        assert_eq!(view["outcomes"]["failed_again"], 1, "{view:#}");
    }
    let view = ended(fleet, &request).await;
    assert_eq!((&view["outcomes"]["skipped"], &view["outcomes"]["failed_again"]), (&json!(1), &json!(0)), "{view:#}");
    let items = fleet.api().items(&format!("/api/v1/campaigns/{}/items", view["id"].as_str().unwrap())).await.unwrap();
    assert_eq!(items[0]["note"], "its step came back 3 times", "{items:#?}");
    let view = ended(fleet, &json!({ "kind": "replay", "all": true, "force": true })).await;
    assert_eq!(view["outcomes"]["failed_again"], 1, "{view:#}");
}

async fn a_campaign_whose_letters_fail_again_stops(fleet: &Fleet) {
    fail(fleet, "bad", 60).await;
    let view = ended(fleet, &json!({ "kind": "replay", "all": true, "rate": 20, "stop_when_failing": 20 })).await;
    let failed = view["outcomes"]["failed_again"].as_u64().unwrap();
    assert!(view["phase"] == "stopped" && view["open"] == 0 && (10..60).contains(&failed), "{view:#}");
    assert!(view["why"].as_str().unwrap().ends_with("letters failed again"), "{view:#}");
}

async fn a_campaign_waits_for_a_version_and_begins_once(fleet: &Fleet) {
    let api = fleet.api();
    fail(fleet, "bad", 2).await;
    let request = json!({ "kind": "replay", "all": true, "when_version": ">=99.1" });
    let key = [("idempotency-key", "the-incident-of-today")];
    let (_, first) = api.post("/api/v1/campaigns", &key, &request).await.unwrap();
    let (status, again) = api.post("/api/v1/campaigns", &key, &request).await.unwrap();
    assert_eq!((status, &again["id"]), (201, &first["id"]), "{again:#}");
    assert_eq!(api.items("/api/v1/campaigns").await.unwrap().len(), 1);
    let path = format!("/api/v1/campaigns/{}", first["id"].as_str().unwrap());
    let view = until_phase(fleet, &path, "waiting").await;
    let why = view["why"].as_str().unwrap();
    let found = concat!("found `", env!("CARGO_PKG_VERSION"), "`");
    assert!(why.contains("`>=99.1` does `fail`") && why.contains(found), "{why}");
    assert_eq!(taken(fleet, &path).await, 0, "{view:#}");
    fleet.verb(&["campaigns", "cancel", first["id"].as_str().unwrap()]).await.unwrap();
    until_phase(fleet, &path, "cancelled").await;
    let audit = api.items(&format!("/api/v1/audit?target=campaign:{}", first["id"].as_str().unwrap())).await.unwrap();
    let actions: Vec<&str> = audit.iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["campaign.cancel", "campaign.begin"], "{audit:#?}");
    assert!(audit[1]["detail"].to_string().contains("when_version"), "{audit:#?}");
    // The version that is there is enough for this one.
    let patch = json!({ "times": 0 });
    let view = ended(fleet, &json!({ "kind": "replay", "all": true, "when_version": ">=0.1", "patch": patch })).await;
    assert_eq!(view["outcomes"]["completed"], 2, "{view:#}");
}

async fn a_cancelled_campaign_tells_what_became_of_what_was_under_way(fleet: &Fleet) {
    fail(fleet, "bad", 3).await;
    // Each is tried again for some seconds before it succeeds.
    let patch = json!({ "category": "transient", "times": 3 });
    let path = begin(fleet, &json!({ "kind": "replay", "all": true, "patch": patch, "max": 2 })).await;
    wait::until(SOON, "two letters to be under way", async || {
        anyhow::ensure!(taken(fleet, &path).await == 2);
        Ok(())
    })
    .await
    .unwrap();
    let id = path.rsplit('/').next().unwrap();
    fleet.verb(&["campaigns", "cancel", id, "--reason", "enough"]).await.unwrap();
    let view = until_phase(fleet, &path, "cancelled").await;
    assert_eq!((&view["outcomes"]["completed"], &view["open"]), (&json!(2), &json!(0)), "{view:#}");
    assert_eq!(fleet.api().items(&format!("{path}/items")).await.unwrap().len(), 2);
    assert_eq!(fleet.api().items("/api/v1/dead-letters").await.unwrap().len(), 1, "the third was left alone");
}

/// "Replay all" of a page of a list replayed that page, and the rest was forgotten.
async fn lesson_39_replay_all_acts_on_every_letter_not_on_a_page(fleet: &Fleet) {
    // A page of the API has 100 at most, and a look of the campaign reads 100 of a partition.
    const LETTERS: usize = 450;
    let runs = fail(fleet, "bad", LETTERS).await;
    let report = fleet.verb(&["dead-letters", "replay", "--all", "--set", "times=0", "--yes"]).await.unwrap();
    let view: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&view["phase"], &view["outcomes"]["completed"]), (&json!("completed"), &json!(LETTERS)), "{view:#}");
    fleet.api().until_all(&runs, "completed", SOON).await.unwrap();
    assert!(fleet.api().items("/api/v1/dead-letters").await.unwrap().is_empty());
}
