//! Who asked for what is found in the audit store, by API and command line; what gave up is told in the log, and to a program.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_tests::{
    Program,
    lab::{self, Fleet},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

/// Runs a verb of the program as the user `ada`; what it wrote to stdout.
async fn verb(api: &str, words: &[&str]) -> String {
    let launch = Program::stepfleet(words.iter().copied()).unwrap().env("STEPFLEET_API", api).env("USER", "ada");
    let mut program = launch.start().unwrap();
    assert!(program.wait(SOON).await.unwrap().success(), "{words:?}: {}", program.stderr());
    program.stdout()
}

fn words(entry: &Value) -> [&str; 4] {
    ["actor", "action", "target", "outcome"].map(|field| entry[field].as_str().unwrap_or_default())
}

#[tokio::test]
async fn what_an_operator_asked_for_is_listed_with_name_reason_and_outcome() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 2, 0).await.unwrap();
    let api = fleet.api();
    let definition = json!({ "workflow": "idle", "steps": { "only": { "handler": "noop", "queue": "nobody" } } });
    api.register(&definition).await.unwrap();
    let run = api.submit(&definition, json!(null)).await.unwrap();
    verb(api.base(), &["runs", "cancel", &run, "--yes", "--reason", "wrong order"]).await;
    let (status, _) = api.command(&run, "resume").await.unwrap();
    assert_eq!(status, 409);
    verb(api.base(), &["partitions", "add", "1", "--yes"]).await;

    let all = api.items("/api/v1/audit").await.unwrap();
    let target = format!("run:{run}");
    let found: Vec<[&str; 4]> = all.iter().map(words).collect();
    let expected = [
        ["cli:ada", "partitions.add", "partitions:3", "done"],
        ["api", "run.resume", &target, "refused"],
        ["cli:ada", "run.cancel", &target, "done"],
        ["api", "workflow.register", "workflow:idle@1", "done"],
    ];
    assert_eq!(found, expected, "newest first, over partitions and fleet");
    assert_eq!(all[2]["reason"], "wrong order");
    assert!(all[1]["message"].as_str().unwrap().contains("allowed is suspended"), "{:#}", all[1]);

    // Page by page it is the same, and every filter narrows it.
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/audit?limit=1{cursor}")).await.unwrap();
        pages.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(pages, all);
    let registered = all[3]["at"].as_str().unwrap();
    for (filter, count) in [
        ("actor=cli:ada", 2),
        ("action=run.", 2),
        ("action=run.cancel", 1),
        (&*format!("target={target}"), 2),
        ("target=workflow:", 1),
        ("since=1h", 4),
        ("until=1h", 0),
        (&*format!("until={registered}"), 1),
        (&*format!("since={registered}&actor=api"), 2),
    ] {
        assert_eq!(api.items(&format!("/api/v1/audit?{filter}")).await.unwrap().len(), count, "{filter}");
    }
    let problem = api.get("/api/v1/audit?since=yesterday").await.unwrap_err().to_string();
    assert!(problem.contains("since is `yesterday`") && problem.contains("24h"), "{problem}");
    let shown = verb(api.base(), &["audit", "list", "--action", "run.", "--since", "24h"]).await;
    assert!(shown.contains("cli:ada") && shown.contains("wrong order") && shown.contains("refused"), "{shown}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_step_that_gives_up_is_told_in_the_log_of_the_coordinator() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 1).await.unwrap();
    let api = fleet.api();
    let definition = json!({ "workflow": "orders", "steps": { "charge": { "handler": "fail",
        "with": { "category": "permanent" } } } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    api.until_state(&run, "failed", SOON).await.unwrap();
    wait::until(SOON, "the log line", async || {
        let log = fleet.coordinators[0].program.stderr() + &fleet.coordinators[0].program.stdout();
        let line = log.lines().find(|line| line.contains("a step needs attention") && line.contains(&run));
        let line = line.unwrap_or_default();
        ensure!(["charge", "orders", "permanent", "attempt"].iter().all(|word| line.contains(word)), "{log}");
        Ok(())
    })
    .await
    .unwrap();
    wait::until(SOON, "the subscriber to be at the end", async || {
        let page = api.get("/api/v1/subscribers").await?;
        let found = &page["items"][0];
        ensure!(found["name"] == "escalation-log" && found["lag"] == 0 && found["delivered"] == 1, "{page:#}");
        ensure!(api.metric("stepfleet_outbox_lag").await? == 0.0, "the metric says so too");
        ensure!(api.metric("stepfleet_outbox_deliveries_total").await? == 1.0, "one was delivered");
        Ok(())
    })
    .await
    .unwrap();
    assert!(api.items("/api/v1/subscribers/undelivered").await.unwrap().is_empty());
    let shown = verb(api.base(), &["subscribers", "list"]).await;
    assert!(shown.contains("escalation-log"), "{shown}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_step_that_gives_up_is_told_to_a_program_until_it_takes_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let [program, told] = ["notify.sh", "told.jsonl"].map(|name| folder.path().join(name));
    // The first time the room cannot be reached.
    let text = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\n[ -e tried ] || { touch tried; echo 'no such room' >&2; exit 7; }\ncat >> told.jsonl\n";
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 1);
    fleet.add_coordinator_with(&["--escalation-command", program.to_str().unwrap()]).await.unwrap();
    fleet.add_worker(&[]).unwrap();
    let definition = json!({ "workflow": "orders", "steps": { "charge": { "handler": "fail",
        "with": { "category": "permanent" } } } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    let line = wait::until(SOON, "the program to be told", async || {
        let told = std::fs::read_to_string(&told)?;
        ensure!(told.ends_with('\n'), "{told}");
        Ok(told)
    })
    .await
    .unwrap();
    let told: Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(
        (&told["run"], &told["step"], &told["why"]),
        (&json!(run), &json!("charge"), &json!("gave_up")),
        "{told}"
    );
    let page = fleet.api().get("/api/v1/subscribers").await.unwrap();
    let of = |name: &str| page["items"].as_array().unwrap().iter().any(|item| item["name"] == name);
    assert!(of("escalation-log") && of("escalation-command"), "{page:#}");
    let failures = fleet.api().text("/metrics").await.unwrap();
    let failed =
        failures.lines().find(|l| l.starts_with("stepfleet_outbox_delivery_failures_total") && l.contains("command"));
    assert!(failed.is_some_and(|line| line.ends_with(" 1")), "{failed:?}");
    fleet.stop().await.unwrap();
}
