//! Workers that die, freeze and are asked to leave.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use stepfleet_tests::{
    Signal,
    lab::{self, Effects, Fleet, Hands},
    wait,
};

const SOON: Duration = Duration::from_secs(30);
/// Death takes 30 s; a busy machine may need much more.
pub(crate) const DEATH: Duration = Duration::from_secs(120);

/// One step that leaves a line for each of its tries; the first takes `seconds`, the others nothing. Its output is the number
/// of the line.
pub(crate) fn marked(queue: &str, file: &str, seconds: u32) -> Value {
    let script = format!("echo x >> {file}; n=$(wc -l < {file}); [ $n -gt 1 ] || sleep {seconds}; echo $n");
    json!({ "workflow": queue, "steps": { "work": { "handler": "exec", "queue": queue,
        "with": { "command": ["sh", "-c", script] } }, "after": { "handler": "noop", "needs": ["work"], "queue": queue } } })
}

pub(crate) async fn until_lines(file: &str, lines: usize, deadline: Duration) -> anyhow::Result<()> {
    wait::until(deadline, "the step to leave its lines", async || {
        let text = std::fs::read_to_string(file)?;
        ensure!(text.lines().count() == lines, "{text:?}");
        Ok(())
    })
    .await
}

pub(crate) fn reasons(history: &[Value]) -> Vec<&str> {
    history.iter().filter(|h| h["step"] == "work").filter_map(|h| h["reason"].as_str()).collect()
}

/// One wait of 30 s for both: a worker killed in the middle of a job, and one that wakes up after its death.
#[tokio::test]
async fn the_jobs_of_dead_workers_run_again_and_late_results_change_nothing() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    // Two deaths must be less than a third of the fleet, or they wait for a second look.
    let effects = Effects::default();
    let _others: Vec<Hands> = (0..6).map(|_| Hands::start(&server.url(), 1, &effects).unwrap()).collect();
    fleet.add_worker(&["--queue", "killed"]).unwrap();
    fleet.add_worker(&["--queue", "frozen"]).unwrap();
    let api = fleet.api().clone();
    let killed = api.submit(&marked("killed", &file("killed"), 40), json!(null)).await.unwrap();
    let frozen = api.submit(&marked("frozen", &file("frozen"), 5), json!(null)).await.unwrap();
    until_lines(&file("killed"), 1, SOON).await.unwrap();
    until_lines(&file("frozen"), 1, SOON).await.unwrap();
    // Each is known to run its job: `started` came.
    api.until_step(&killed, "work", "processing", SOON).await.unwrap();
    fleet.workers[1].signal(Signal::SIGSTOP).unwrap();
    fleet.workers[0].kill_9().unwrap();
    fleet.add_worker(&["--queue", "killed", "--queue", "frozen"]).unwrap();

    for run in [&killed, &frozen] {
        api.until_state(run, "completed", DEATH).await.unwrap();
        assert_eq!(api.output(run, "work").await.unwrap()["stdout"].as_str().unwrap().trim(), "2");
        let history = api.history(run).await.unwrap();
        assert!(reasons(&history).contains(&"worker_lost"), "{history:#?}");
        let view = api.run(run).await.unwrap();
        let step = view["step_list"].as_array().unwrap().iter().find(|s| s["name"] == "work").unwrap();
        assert_eq!(step["losses"], 1, "{step:#}");
    }
    // The frozen one wakes, and tells what became of a job that is somebody else's now.
    fleet.workers[1].signal(Signal::SIGCONT).unwrap();
    let history = wait::until(SOON, "the late result in the history", async || {
        let history = api.history(&frozen).await?;
        ensure!(reasons(&history).contains(&"ignored"), "{history:#?}");
        Ok(history)
    })
    .await
    .unwrap();
    let completed =
        history.iter().filter(|h| h["step"] == "work" && h["to"] == "completed" && h["from"] != "completed");
    assert_eq!(completed.count(), 1, "{history:#?}");
    assert_eq!(api.output(&frozen, "work").await.unwrap()["stdout"].as_str().unwrap().trim(), "2");
    assert_eq!(api.run(&frozen).await.unwrap()["state"], "completed");
}

/// What runs finishes within the drain time; what has not begun goes to others at once; no attempt is burned by either.
#[tokio::test]
async fn a_worker_that_is_asked_to_leave_finishes_what_runs_and_hands_back_the_rest() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    let api = fleet.api().clone();
    fleet.add_worker(&["--queue", "default", "--queue", "marks", "--drain-timeout", "30s"]).unwrap();
    let one = |queue: &str, handler: &str, with: Value| {
        let step = json!({ "handler": handler, "queue": queue, "with": with });
        json!({ "workflow": "one", "steps": { "work": step } })
    };
    let (mut running, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let slow = one("default", "sleep", json!({ "duration": "4s" }));
        running.push(api.submit(&slow, json!(null)).await.unwrap());
    }
    for run in &running {
        api.until_step(run, "work", "processing", SOON).await.unwrap();
    }
    for _ in 0..20 {
        let quick = one("default", "sleep", json!({ "duration": "10ms" }));
        waiting.push(api.submit(&quick, json!(null)).await.unwrap());
    }
    // It has no handler for this one and holds it for a second before it hands it back, again and again.
    waiting.push(api.submit(&one("marks", "mark", json!({ "ms": 1 })), json!(null)).await.unwrap());
    let asked = Instant::now();
    fleet.workers[0].signal(Signal::SIGTERM).unwrap();
    let effects = Effects::default();
    let hands = Hands::on(&server.url(), "marks", 1, &effects).unwrap();
    fleet.add_worker(&[]).unwrap();
    // The promise is a second.
    api.until_all(&waiting, "completed", Duration::from_secs(5).saturating_sub(asked.elapsed())).await.unwrap();
    assert!(fleet.workers[0].wait(SOON).await.unwrap().success(), "{}", fleet.workers[0].stderr());
    api.until_all(&running, "completed", Duration::from_secs(5)).await.unwrap();
    for run in running.iter().chain(&waiting) {
        let history = api.history(run).await.unwrap();
        let reasons = reasons(&history);
        assert!(!reasons.contains(&"attempt_failed") && !reasons.contains(&"worker_lost"), "{history:#?}");
        assert!(history.iter().all(|entry| entry["attempt"].as_u64().unwrap_or(0) <= 1), "{history:#?}");
        let done = history.iter().find(|entry| entry["step"] == "work" && entry["to"] == "completed").unwrap();
        let by = done["worker"].as_str().unwrap_or_default();
        assert!(
            !running.contains(run) || by.is_empty() || by.starts_with("w1@"),
            "it finishes where it runs: {history:#?}"
        );
    }
    hands.drain().await.unwrap();
    fleet.workers.remove(0);
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_asked_to_leave_burns_no_attempt() {
    let server = lab::server().await.unwrap();
    let mut fleet = Fleet::start(&server.url(), 1, 0).await.unwrap();
    fleet.add_worker(&["--drain-timeout", "1s"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines").display().to_string();
    let api = fleet.api().clone();
    let run = api.submit(&marked("default", &file, 40), json!(null)).await.unwrap();
    api.until_step(&run, "work", "processing", SOON).await.unwrap();
    fleet.workers[0].signal(Signal::SIGTERM).unwrap();
    // A second for the drain, one for the hand-back, and two for the program to heed SIGTERM.
    assert!(fleet.workers[0].wait(Duration::from_secs(15)).await.unwrap().success());
    let step = api.until_step(&run, "work", "queued", Duration::from_secs(5)).await.unwrap();
    assert_eq!((&step["losses"], &step["attempts"]), (&json!(0), &json!(0)), "{step:#}");
    fleet.add_worker(&[]).unwrap();
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(view["step_list"][0]["attempts"], 1, "{view:#}");
    let history = api.history(&run).await.unwrap();
    let reasons = reasons(&history);
    assert!(reasons.contains(&"returned") && !reasons.contains(&"worker_lost"), "{history:#?}");
    fleet.workers.remove(0);
    fleet.stop().await.unwrap();
}
