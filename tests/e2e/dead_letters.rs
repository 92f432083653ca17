//! Dead letters as an operator meets them: grouped by what went wrong, narrowed down, discarded.

use std::time::Duration;

use serde_json::json;
use stepfleet_tests::{lab::Fleet, wait};

const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    letters_of_one_cause_are_one_group_over_all_partitions,
    a_discarded_letter_is_gone_and_its_run_stays_failed,
    a_campaign_replays_each_letter_once_and_tells_what_became_of_it,
    a_canary_that_fails_again_stops_the_campaign,
}

/// A run that fails for good, with this exit code.
pub(crate) async fn fails(fleet: &Fleet, workflow: &str, exit: u8) -> String {
    let with = json!({ "category": "permanent", "code": format!("exit_{exit}"), "message": "it broke" });
    let step = json!({ "handler": "fail", "with": with });
    let definition = json!({ "workflow": workflow, "steps": { "work": step } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_state(&run, "failed", SOON).await.unwrap();
    run
}

async fn letters_of_one_cause_are_one_group_over_all_partitions(fleet: &Fleet) {
    let api = fleet.api();
    for workflow in ["one", "one", "two", "two"] {
        fails(fleet, workflow, 7).await;
    }
    fails(fleet, "one", 9).await;
    let groups = api.items("/api/v1/dead-letters/groups").await.unwrap();
    assert_eq!(groups.iter().map(|g| g["count"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 1], "{groups:#?}");
    let large = &groups[0];
    assert_eq!((&large["workflows"], &large["handler"]), (&json!(["one", "two"]), &json!("fail")), "{large:#}");
    assert!(!large["workers"].as_array().unwrap().is_empty(), "{large:#}");
    assert_eq!(large["worker_versions"], json!([env!("CARGO_PKG_VERSION")]), "{large:#}");
    assert!(large["first_seen"].as_str().unwrap() <= large["last_seen"].as_str().unwrap(), "{large:#}");
    let print = large["fingerprint"].as_str().unwrap();
    assert_eq!(large["example"]["fingerprint"], print);
    let listed = api.items(&format!("/api/v1/dead-letters?fingerprint={print}")).await.unwrap();
    assert_eq!(listed.len(), 4, "{listed:#?}");
    // A filter that looks inside of letters counts what it finds.
    let of_two = api.items("/api/v1/dead-letters/groups?workflow=two&newer_than_ms=600000").await.unwrap();
    assert_eq!((of_two.len(), &of_two[0]["count"]), (1, &json!(2)), "{of_two:#?}");
    let old = api.items("/api/v1/dead-letters?older_than_ms=600000").await.unwrap();
    assert!(old.is_empty(), "{old:#?}");
    let ids = format!("{},{}", listed[0]["id"].as_str().unwrap(), listed[1]["id"].as_str().unwrap());
    assert_eq!(api.items(&format!("/api/v1/dead-letters?ids={ids}")).await.unwrap().len(), 2);
    let page = fleet.verb(&["dead-letters", "groups", "--limit", "1"]).await.unwrap();
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!((page["items"].as_array().unwrap().len(), page["next"].is_string()), (1, true), "{page:#}");
}

async fn a_discarded_letter_is_gone_and_its_run_stays_failed(fleet: &Fleet) {
    let (api, run) = (fleet.api(), fails(fleet, "gone", 7).await);
    let letters = api.items("/api/v1/dead-letters?workflow=gone").await.unwrap();
    let id = letters[0]["id"].as_str().unwrap();
    let path = format!("/api/v1/dead-letters/{id}/discard");
    let (status, problem) = api.post(&path, &[], &json!({ "reason": "" })).await.unwrap();
    assert_eq!((status, &problem["code"]), (400, &json!("reason_missing")), "{problem:#}");
    fleet.verb(&["dead-letters", "discard", id, "--reason", "paid by hand", "--yes"]).await.unwrap();
    assert!(api.items("/api/v1/dead-letters/groups?workflow=gone").await.unwrap().is_empty());
    let (status, problem) = api.post(&path, &[], &json!({ "reason": "again" })).await.unwrap();
    assert_eq!((status, &problem["code"]), (404, &json!("letter_not_found")), "{problem:#}");
    assert_eq!(api.run(&run).await.unwrap()["state"], "failed");
    let history = api.history(&run).await.unwrap();
    assert!(history.iter().any(|h| h["reason"] == "discarded" && h["note"] == "paid by hand"), "{history:#?}");
}

/// A campaign that has ended.
pub(crate) async fn ended(fleet: &Fleet, request: &serde_json::Value) -> serde_json::Value {
    let (status, begun) = fleet.api().post("/api/v1/campaigns", &[], request).await.unwrap();
    assert_eq!(status, 201, "{begun:#}");
    let path = format!("/api/v1/campaigns/{}", begun["id"].as_str().unwrap());
    wait::until(SOON, "the campaign to end", async || {
        let view = fleet.api().get(&path).await?;
        let is_final = ["completed", "stopped", "cancelled"].iter().any(|phase| view["phase"] == *phase);
        anyhow::ensure!(is_final, "{view:#}");
        Ok(view)
    })
    .await
    .unwrap()
}

async fn a_campaign_replays_each_letter_once_and_tells_what_became_of_it(fleet: &Fleet) {
    let api = fleet.api();
    let mut runs = Vec::new();
    for _ in 0..12 {
        runs.push(fails(fleet, "bad", 7).await);
    }
    fails(fleet, "other", 7).await;
    let request = json!({ "kind": "replay", "filter": { "workflow": "bad" }, "dry_run": true });
    let (_, dry) = api.post("/api/v1/campaigns", &[], &request).await.unwrap();
    assert_eq!((&dry["matched"], &dry["more"]), (&json!(12), &json!(false)), "{dry:#}");
    let view = ended(fleet, &json!({ "kind": "replay", "filter": { "workflow": "bad" }, "reason": "try" })).await;
    assert_eq!((&view["phase"], &view["outcomes"]["failed_again"]), (&json!("completed"), &json!(12)), "{view:#}");
    let items = api.items(&format!("/api/v1/campaigns/{}/items", view["id"].as_str().unwrap())).await.unwrap();
    let mut of: Vec<&str> = items.iter().map(|item| item["run"].as_str().unwrap()).collect();
    of.sort_unstable();
    runs.sort_unstable();
    assert_eq!(of, runs, "each once: {items:#?}");
    for run in &runs {
        let history = api.history(run).await.unwrap();
        let replays =
            history.iter().filter(|h| h["reason"] == "replayed" && h["from"] == "failed" && !h["step"].is_null());
        assert_eq!(replays.count(), 1, "{history:#?}");
    }
    // A campaign of discards closes them all, and leaves the others alone.
    let view = ended(fleet, &json!({ "kind": "discard", "filter": { "workflow": "bad" }, "reason": "enough" })).await;
    assert_eq!(view["outcomes"]["discarded"], 12, "{view:#}");
    assert_eq!(api.items("/api/v1/dead-letters").await.unwrap().len(), 1);
}

async fn a_canary_that_fails_again_stops_the_campaign(fleet: &Fleet) {
    for _ in 0..6 {
        fails(fleet, "bad", 7).await;
    }
    let view = ended(fleet, &json!({ "kind": "replay", "all": true, "canary": 2 })).await;
    assert_eq!((&view["phase"], &view["outcomes"]["failed_again"]), (&json!("stopped"), &json!(2)), "{view:#}");
    assert!(view["why"].as_str().unwrap().contains("of the first 2 letters failed again"), "{view:#}");
    let letters = fleet.api().items("/api/v1/dead-letters").await.unwrap();
    let again = letters.iter().filter(|letter| letter["returns"] == 1).count();
    assert_eq!((letters.len(), again), (6, 2), "{letters:#?}");
}

/// A bulk replay that ran from a laptop ended with it, and nobody knew what it had done.
#[tokio::test]
async fn lesson_38_a_campaign_outlives_the_command_line_and_the_coordinator_and_replays_each_letter_once() {
    const LETTERS: usize = 30;
    let server = stepfleet_tests::lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 2, 1).await.unwrap();
    let mut runs = Vec::new();
    for _ in 0..LETTERS {
        runs.push(fails(&fleet, "bad", 7).await);
    }
    let words = [
        "dead-letters",
        "replay",
        "--workflow",
        "bad",
        "--rate",
        "10",
        "--reason",
        "the bank is back",
        "--detach",
        "--yes",
    ];
    let begun: serde_json::Value = serde_json::from_str(&fleet.verb(&words).await.unwrap()).unwrap();
    let id = begun["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/campaigns/{id}");
    // Held while the other coordinator comes up, so that most of it is still to be done.
    fleet.verb(&["campaigns", "pause", &id]).await.unwrap();
    let other = fleet.add_coordinator().await.unwrap().api.clone();
    let before = other.get(&path).await.unwrap();
    assert!(before["outcomes"]["failed_again"].as_u64().unwrap() < LETTERS as u64, "{before:#}");
    let mut first = fleet.coordinators.remove(0).program;
    first.kill_9().unwrap();
    other.post(&format!("{path}/resume"), &[], &json!({})).await.unwrap();
    let view = wait::until(SOON * 2, "the campaign to end", async || {
        let view = other.get(&path).await?;
        anyhow::ensure!(view["phase"] == "completed", "{view:#}");
        Ok(view)
    })
    .await
    .unwrap();
    assert_eq!(view["outcomes"]["failed_again"], LETTERS, "{view:#}");
    for run in &runs {
        let history = other.history(run).await.unwrap();
        let replays =
            history.iter().filter(|h| h["reason"] == "replayed" && h["from"] == "failed" && !h["step"].is_null());
        assert_eq!(replays.count(), 1, "{history:#?}");
    }
    let report = fleet.verb(&["campaigns", "export", &id]).await.unwrap();
    assert_eq!(report.lines().count(), LETTERS, "one line for each letter: {report}");
    let audit = other.items(&format!("/api/v1/audit?target=campaign:{id}")).await.unwrap();
    let actions: Vec<&str> = audit.iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["campaign.resume", "campaign.pause", "campaign.begin"]);
}
