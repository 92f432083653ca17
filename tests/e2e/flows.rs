//! Workflows from submit to the end, over the API.

use std::time::Duration;

use serde_json::json;
use stepfleet_tests::{
    lab::{self, Effects, Fleet, Hands, audit},
    wait,
};

use crate::web::Web;

/// Five times what a short run may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

on_one_server! {
    a_chain_hands_its_outputs_on,
    large_values_reach_the_steps_that_need_them,
    a_diamond_and_a_fan_join_what_their_branches_gave,
}

pub(crate) async fn a_chain_hands_its_outputs_on(fleet: &Fleet) {
    let api = fleet.api();
    let definition = json!({ "workflow": "chain", "steps": {
        "first": { "handler": "exec", "with": { "command": ["printf", "%s", "${{ input.word }}"] } },
        "pause": { "handler": "sleep", "needs": ["first"], "with": { "duration": "20ms" } },
        "last": { "handler": "exec", "needs": ["pause"],
            "with": { "command": ["tr", "a-z", "A-Z"], "stdin": "${{ steps.first.output.stdout }} of ${{ run.workflow }}" } },
    }});
    let run = api.submit(&definition, json!({ "word": "bread" })).await.unwrap();
    let view = api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(view["steps"]["completed"], 3, "{view:#}");
    assert_eq!(api.output(&run, "last").await.unwrap()["stdout"], "BREAD OF CHAIN");
}

/// What is above 8 KiB travels by reference: the input of a run, the output of a step, the input that is made of both.
pub(crate) async fn large_values_reach_the_steps_that_need_them(fleet: &Fleet) {
    const BYTES: usize = 60_000;
    let api = fleet.api();
    let count = |stdin: &str, needs: &[&str]| json!({ "handler": "exec", "needs": needs, "with": { "command": ["wc", "-c"], "stdin": stdin } });
    let definition = json!({ "workflow": "large", "steps": {
        "make": { "handler": "exec", "with": { "command": ["sh", "-c", format!("head -c {BYTES} /dev/zero | tr '\\0' x")] } },
        "input": count("${{ input.text }}", &[]),
        "output": count("${{ steps.make.output.stdout }}", &["make"]),
        "both": count("${{ input.text }}${{ steps.make.output.stdout }}", &["make", "input"]),
        "pass": { "handler": "noop", "needs": ["make"], "with": "${{ steps.make.output }}" },
    }});
    let run = api.submit(&definition, json!({ "text": "y".repeat(BYTES) })).await.unwrap();
    api.until_state(&run, "completed", SOON).await.unwrap();
    assert_eq!(api.output(&run, "make").await.unwrap()["stdout"].as_str().unwrap(), "x".repeat(BYTES));
    for (step, bytes) in [("input", BYTES), ("output", BYTES), ("both", 2 * BYTES)] {
        let counted = api.output(&run, step).await.unwrap();
        assert_eq!(counted["stdout"].as_str().unwrap().trim(), bytes.to_string(), "{step}");
    }
}

pub(crate) async fn a_diamond_and_a_fan_join_what_their_branches_gave(fleet: &Fleet) {
    let api = fleet.api();
    let count = |name: &str| {
        json!({ "handler": "exec", "needs": ["top"],
        "with": { "command": ["printf", "%s", format!("{name}:${{{{ steps.top.output.stdout }}}}")] } })
    };
    let mut steps = json!({ "top": { "handler": "exec", "with": { "command": ["printf", "x"] } } });
    let names: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
    for name in &names {
        steps[name] = count(name);
    }
    let joined = names.iter().map(|n| format!("${{{{ steps.{n}.output.stdout }}}}")).collect::<Vec<_>>().join(" ");
    steps["join"] = json!({ "handler": "exec", "needs": names, "with": { "command": ["printf", "%s", joined] } });
    let fan = api.submit(&json!({ "workflow": "fan", "steps": steps }), json!(null)).await.unwrap();
    let diamond = json!({ "workflow": "diamond", "steps": {
        "top": { "handler": "exec", "with": { "command": ["printf", "x"] } },
        "l": count("l"), "r": count("r"),
        "join": { "handler": "exec", "needs": ["l", "r"],
            "with": { "command": ["printf", "%s", "${{ steps.l.output.stdout + steps.r.output.stdout }}"] } },
    }});
    let diamond = api.submit(&diamond, json!(null)).await.unwrap();
    api.until_all(&[fan.clone(), diamond.clone()], "completed", SOON).await.unwrap();
    let wanted: Vec<String> = names.iter().map(|n| format!("{n}:x")).collect();
    assert_eq!(api.output(&fan, "join").await.unwrap()["stdout"], wanted.join(" "));
    assert_eq!(api.output(&diamond, "join").await.unwrap()["stdout"], "l:xr:x");
}

#[tokio::test]
async fn http_steps_retry_what_may_pass_and_give_up_what_will_not() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 1, 2).await.unwrap();
    let (api, web) = (fleet.api(), Web::start().await.unwrap());
    let step = |path: &str| {
        json!({ "handler": "http", "with": { "url": web.url(path) },
        "retry": { "backoff": { "base": "50ms", "cap": "100ms" } } })
    };
    let mut hang = step("/hang");
    hang["timeout"] = json!("300ms");
    hang["retry"]["max_attempts"] = json!(2);
    let definition = json!({ "workflow": "web", "steps": {
        "good": step("/good"), "flaky": step("/flaky"), "limited": step("/limited"), "bad": step("/bad"), "hang": hang } });
    let run = api.submit(&definition, json!(null)).await.unwrap();
    let view = api.until_state(&run, "failed", SOON).await.unwrap();
    let of = |name: &str| view["step_list"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone();
    for (name, state, attempts) in [
        ("good", "completed", 1),
        ("flaky", "completed", 3),
        ("limited", "completed", 2),
        ("bad", "failed", 1),
        ("hang", "failed", 2),
    ] {
        let step = of(name);
        assert_eq!((&step["state"], &step["attempts"]), (&json!(state), &json!(attempts)), "{name}: {view:#}");
    }
    assert_eq!(api.output(&run, "good").await.unwrap()["body"]["price"], 42);
    let letters = api.items("/api/v1/dead-letters").await.unwrap();
    let mut found: Vec<_> =
        letters.iter().map(|l| (l["step"].as_str().unwrap(), l["category"].as_str().unwrap())).collect();
    found.sort_unstable();
    assert_eq!(found, [("bad", "permanent"), ("hang", "timeout")]);
}

#[tokio::test]
async fn five_thousand_runs_come_with_one_request_and_all_end() {
    let server = lab::server().await.unwrap();
    let fleet = Fleet::start(&server.url(), 4, 0).await.unwrap();
    let (api, effects) = (fleet.api(), Effects::default());
    let _hands = Hands::start(&server.url(), 64, &effects).unwrap();
    api.register(&json!({ "workflow": "one", "steps": { "only": { "handler": "mark" } } })).await.unwrap();
    let runs = api.submit_many("one", 5_000).await.unwrap();
    assert_eq!(runs.len(), 5_000);
    wait::until(Duration::from_secs(120), "all runs to complete", async || {
        let metrics = api.get("/api/v1/metrics/runs?time_range=1h").await?;
        anyhow::ensure!(metrics["completed"] == 5_000, "{metrics}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(effects.steps(), 5_000);
    for run in runs.iter().step_by(100) {
        audit(api, run, &effects).await.unwrap();
    }
}
