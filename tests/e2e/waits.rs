//! Why work waits and how long, and what very much of it costs the server at once: a wide graph that goes back to its first step,
//! letters that are purged.

use std::time::Duration;

use anyhow::ensure;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use stepfleet_tests::{
    Server,
    lab::{self, Api, Fleet, START},
    wait,
};

/// Owners look at the gates a few times a second.
const HEARD: Duration = Duration::from_secs(1);
/// Steps that hang on one; letters of a purge.
const WIDE: usize = 2_000;

async fn fleet(workers: usize) -> (Server, Fleet) {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, workers).await.unwrap();
    (server, fleet)
}

/// The explanation of a run that waits at this gate.
async fn gated(api: &Api, run: &str, gate: &str) -> Value {
    wait::until(START, &format!("run {run} to be parked at {gate}"), async || {
        let told = api.get(&format!("/api/v1/runs/{run}/explain")).await?;
        ensure!(told["reason"] == "gated" && told["details"]["gate"] == gate, "{told:#}");
        Ok(told)
    })
    .await
    .unwrap()
}

fn has(told: &Value, parts: &[&str]) {
    let text = told["sentence"].as_str().unwrap();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in `{text}`");
    }
}

/// What it says, and that `runs explain` says the same.
async fn position(fleet: &Fleet, run: &str, told: &Value) -> (u64, u64) {
    let text = fleet.verb(&["runs", "explain", run]).await.unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["details"]["gate"], told["details"]["gate"], "{text}");
    let since = told["details"]["since"].as_str().unwrap();
    assert!(since.starts_with("20") && shown["details"]["since"] == since, "{text}");
    (told["details"]["ahead"].as_u64().unwrap(), told["details"]["parked"].as_u64().unwrap())
}

#[tokio::test]
async fn lesson_32_a_run_behind_an_open_breaker_or_a_paused_queue_says_since_when_who_and_how_many_are_before_it() {
    let (_server, fleet) = fleet(1).await;
    let api = fleet.api().clone();
    fleet.verb(&["breakers", "open", "target:shop", "--reason", "the shop moves"]).await.unwrap();
    fleet.verb(&["queues", "pause", "mail", "--reason", "the letters are wrong"]).await.unwrap();
    tokio::time::sleep(HEARD).await;
    let nap = json!({ "duration": "1ms" });
    let shop = json!({ "workflow": "shops",
        "steps": { "buy": { "handler": "sleep", "breaker": "shop", "with": nap } } });
    let mail = json!({ "workflow": "mails",
        "steps": { "send": { "handler": "sleep", "queue": "mail", "with": nap } } });
    for (definition, gate, parts) in [
        (&shop, "target:shop", ["Step `buy` is parked at the gate `target:shop`", "(open by ", ": the shop moves)"]),
        (&mail, "queue:mail", ["Step `send` is parked at the gate `queue:mail`", "by ", ": the letters are wrong)"]),
    ] {
        let mut last = String::new();
        for ahead in 0..3 {
            last = api.submit(definition, Value::Null).await.unwrap();
            let told = gated(&api, &last, gate).await;
            has(&told, &parts);
            has(&told, &["shut for ", &format!("with {ahead} before it")]);
            assert_eq!(position(&fleet, &last, &told).await, (ahead, ahead + 1));
        }
        let next = gated(&api, &last, gate).await["next"][0].as_str().unwrap().to_owned();
        let verb = if gate == "target:shop" { "breakers show target:shop" } else { "queues resume mail" };
        assert!(next.contains(verb), "{next}");
    }
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn lesson_41_a_queue_says_how_old_its_oldest_job_is_and_how_long_the_rest_will_take() {
    let (_server, mut fleet) = fleet(0).await;
    let api = fleet.api().clone();
    let nap =
        json!({ "workflow": "naps", "steps": { "nap": { "handler": "sleep", "with": { "duration": "100ms" } } } });
    api.register(&nap).await.unwrap();
    let runs = api.submit_many("naps", 120).await.unwrap();
    let queue = async || {
        let all = api.items("/api/v1/queues").await?;
        all.into_iter().find(|queue| queue["name"] == "default").ok_or_else(|| anyhow::anyhow!("no queue"))
    };
    let old = wait::until(START, "the oldest job to be two seconds old", async || {
        let queue = queue().await?;
        ensure!(queue["oldest_age_ms"].as_u64().is_some_and(|age| age >= 2_000), "{queue}");
        Ok(queue)
    })
    .await
    .unwrap();
    assert_eq!(
        (&old["depth"], &old["drain_ms"]),
        (&json!(120), &Value::Null),
        "without a worker nobody can tell: {old}"
    );
    fleet.add_worker(&["--concurrency", "1"]).unwrap();
    // One at a time and ten in a second at most: what is left takes a tenth of a second each, or more.
    let told = wait::until(START, "the time that is left", async || {
        let queue = queue().await?;
        ensure!(queue["drain_ms"].as_u64().is_some_and(|ms| ms > 0), "{queue}");
        Ok(queue)
    })
    .await
    .unwrap();
    let (depth, ms) = (told["depth"].as_u64().unwrap(), told["drain_ms"].as_u64().unwrap());
    assert!(ms >= depth * 90, "{depth} jobs in {ms} ms");
    for name in ["stepfleet_queue_oldest_seconds", "stepfleet_queue_drain_seconds"] {
        assert!(api.metric(name).await.unwrap() > 0.0, "{name}");
    }
    fleet.add_worker(&["--concurrency", "16"]).unwrap();
    api.until_all(&runs, "completed", START).await.unwrap();
    let idle = queue().await.unwrap();
    assert_eq!((&idle["depth"], &idle["drain_ms"]), (&json!(0), &json!(0)), "{idle}");
    fleet.stop().await.unwrap();
}

/// A connection to a server that notes what holds it for 10 ms or longer: twice what is promised.
async fn watched(server: &Server) -> MultiplexedConnection {
    let mut redis = server.connection().await.unwrap();
    for (name, value) in [("slowlog-log-slower-than", "10000"), ("latency-tracking-info-percentiles", "100")] {
        let () = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async(&mut redis).await.unwrap();
    }
    redis
}

async fn forget_slow(redis: &mut MultiplexedConnection) {
    let () = redis::cmd("SLOWLOG").arg("RESET").query_async(redis).await.unwrap();
    let () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(redis).await.unwrap();
}

/// What held the server for so long since then, but for what the test asked. The log of slow commands has no transactions and
/// no scripts as a whole in it.
async fn slow(redis: &mut MultiplexedConnection) -> Vec<String> {
    let found: Vec<redis::Value> = redis::cmd("SLOWLOG").arg("GET").arg(100).query_async(redis).await.unwrap();
    let found = found.iter().map(|entry| format!("{entry:?}"));
    let mut found: Vec<String> = found.filter(|t| !t.contains("SLOWLOG") && !t.contains("CONFIG")).collect();
    let stats: String = redis::cmd("INFO").arg("latencystats").query_async(redis).await.unwrap();
    assert!(stats.contains("latency_percentiles_usec_exec:p100="), "no transaction was measured: {stats}");
    for command in ["exec", "eval", "evalsha"] {
        let prefix = format!("latency_percentiles_usec_{command}:p100=");
        let longest =
            stats.lines().find_map(|line| line.strip_prefix(&prefix)).map(|us| us.trim().parse::<f64>().unwrap());
        found.extend(longest.filter(|us| *us >= 10_000.0).map(|us| format!("{us} us: {command}")));
    }
    found
}

#[tokio::test]
async fn lesson_25_a_purge_of_2000_letters_holds_the_server_never_long() {
    let (server, fleet) = fleet(2).await;
    let api = fleet.api().clone();
    let fail = json!({ "handler": "fail", "with": { "category": "permanent", "message": "no" } });
    api.register(&json!({ "workflow": "fails", "steps": { "only": fail } })).await.unwrap();
    let mut redis = watched(&server).await;
    let mut found = Vec::new();
    for _ in 0..3 {
        let runs = api.submit_many("fails", WIDE).await.unwrap();
        api.until_all(&runs, "failed", 2 * START).await.unwrap();
        forget_slow(&mut redis).await;
        let wish = json!({ "kind": "discard", "all": true, "reason": "they were a mistake" });
        let (status, begun) = api.post("/api/v1/campaigns", &[], &wish).await.unwrap();
        assert_eq!(status, 201, "{begun:#}");
        let path = format!("/api/v1/campaigns/{}", begun["id"].as_str().unwrap());
        let view = wait::until(2 * START, "the campaign to end", async || {
            let view = api.get(&path).await?;
            ensure!(view["phase"] == "completed", "{view:#}");
            Ok(view)
        })
        .await
        .unwrap();
        assert_eq!(view["outcomes"]["discarded"], WIDE, "{view:#}");
        found = slow(&mut redis).await;
        if found.is_empty() {
            break;
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(api.items("/api/v1/dead-letters").await.unwrap().is_empty());
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn lesson_25_a_run_of_2000_dependants_goes_back_to_its_first_step_and_holds_the_server_never_long() {
    let (server, fleet) = fleet(2).await;
    let api = fleet.api().clone();
    let folder = tempfile::tempdir().unwrap();
    let mut redis = watched(&server).await;
    let mut found = Vec::new();
    // The log knows wall time only, so a server that had no core for a moment shows up too, but not three times in a row.
    for round in 0..3 {
        let file = folder.path().join(round.to_string()).display().to_string();
        let script = format!("echo x >> {file}; [ $(wc -l < {file}) -gt 1 ]");
        let mut steps = serde_json::Map::new();
        steps.insert("first".into(), json!({ "handler": "noop" }));
        let names: Vec<String> = (0..WIDE).map(|i| format!("w{i}")).collect();
        names.iter().for_each(|w| drop(steps.insert(w.clone(), json!({ "handler": "noop", "needs": ["first"] }))));
        steps.insert(
            "last".into(),
            json!({ "handler": "exec", "needs": names, "retry": { "max_attempts": 1 },
                "with": { "command": ["sh", "-c", script] } }),
        );
        let run = api.submit(&json!({ "workflow": "wide", "steps": steps }), Value::Null).await.unwrap();
        api.until_state(&run, "failed", 2 * START).await.unwrap();
        forget_slow(&mut redis).await;
        let (status, answer) =
            api.post(&format!("/api/v1/runs/{run}/retry"), &[], &json!({ "from": "first" })).await.unwrap();
        assert!([200, 202].contains(&status), "{status} {answer}");
        let view = api.until_state(&run, "completed", 2 * START).await.unwrap();
        assert_eq!(view["steps"]["completed"], WIDE + 2, "{}", view["steps"]);
        let steps = api.items(&format!("/api/v1/runs/{run}/steps")).await.unwrap();
        assert_eq!(steps.len(), WIDE + 2);
        assert!(steps.iter().all(|step| step["generation"] == 2), "each of them was done again");
        found = slow(&mut redis).await;
        if found.is_empty() {
            break;
        }
    }
    assert_eq!(found, Vec::<String>::new());
    fleet.stop().await.unwrap();
}
