//! Bounds: commits, the window, layout.

use stepfleet_coordinator::store::{link::Dial, reply};
use stepfleet_protocol::{
    id::RunId,
    message::{Outcome, Verb},
    name::Name,
    state::State,
    workflow::Workflow,
};

use crate::{
    both,
    fleet::{chain, keys},
    world::{World, on_real_alone},
};

both! {
    never_more_than_the_window_is_on_the_stream_and_the_urgent_come_first,
}

const WINDOW: i64 = 256;

/// `wide` steps between one before and one after.
fn fan(wide: usize) -> Workflow {
    let mut steps = serde_json::Map::new();
    steps.insert("first".into(), serde_json::json!({"handler": "noop"}));
    let names: Vec<String> = (0..wide).map(|i| format!("w{i}")).collect();
    for name in &names {
        steps.insert(name.clone(), serde_json::json!({"handler": "noop", "needs": ["first"]}));
    }
    steps.insert("last".into(), serde_json::json!({"handler": "noop", "needs": names}));
    serde_json::from_value(serde_json::json!({"workflow": "fan", "steps": steps})).expect("a legal workflow")
}

/// A thousand roots, every tenth of them urgent.
fn roots() -> Workflow {
    let step = |i: usize| serde_json::json!({"handler": "noop", "priority": if i.is_multiple_of(10) { 9 } else { 1 }});
    let steps: serde_json::Map<String, serde_json::Value> = (0..1_000).map(|i| (format!("r{i}"), step(i))).collect();
    serde_json::from_value(serde_json::json!({"workflow": "roots", "steps": steps})).expect("a legal workflow")
}

async fn never_more_than_the_window_is_on_the_stream_and_the_urgent_come_first<D: Dial>(mut w: World<D>) {
    let run = w.submit(&roots()).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let queue = Name::new("default").expect("a legal name");
    let mut order = Vec::new();
    w.turns(&mut owner, 10).await;
    while order.len() < 1_000 {
        let lag = w.one(&[b"XINFO", b"GROUPS", keys().jobs(&queue).as_bytes()]).await;
        let outstanding = stepfleet_coordinator::shell::upkeep::outstanding(&lag).expect("a group");
        assert!(outstanding as i64 <= WINDOW, "{outstanding} jobs are on the stream");
        let jobs = worker.take(64).await.expect("up");
        worker.answer(jobs.iter().map(|(of, _)| (of.clone(), Outcome::Completed(None))).collect()).await.expect("up");
        order.extend(jobs.into_iter().map(|(_, job)| job.index));
        w.turns(&mut owner, 2).await;
    }
    w.turns(&mut owner, 2).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
    let plan: Vec<String> = roots().steps.keys().map(ToString::to_string).collect();
    let urgent = |index: &u32| plan[*index as usize][1..].parse::<u32>().is_ok_and(|i| i % 10 == 0);
    let behind: Vec<bool> = order[WINDOW as usize..].iter().map(urgent).collect();
    let last = behind.iter().rposition(|u| *u).unwrap_or(0);
    assert!(last < 100, "an urgent step waited behind {last} others that had not been dispatched");
}

/// The keys that name a run.
pub(crate) async fn keys_of<D: Dial>(w: &mut World<D>, run: RunId) -> Vec<String> {
    let mut pattern = keys().log();
    let _ = pattern.split_off(pattern.len() - "log".len());
    let found = w.one(&[b"KEYS", b"*"]).await;
    let found = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text).map(str::to_string);
    let id = run.to_string();
    found.filter(|key| key.starts_with(&pattern) && key.contains(&id)).collect()
}

/// Commands that held the server for too long, of ours.
async fn slow<D: Dial>(w: &mut World<D>) -> Vec<String> {
    let log = w.one(&[b"SLOWLOG", b"GET", b"100"]).await;
    let entries = reply::array(&log).unwrap_or_default();
    let text = |entry: &redis::Value| {
        let parts = reply::array(entry)?;
        let words: Vec<&str> = reply::array(parts.get(3)?)?.iter().filter_map(reply::text).take(3).collect();
        Some(format!("{} us: {}", reply::number(parts.get(2)?)?, words.join(" ")))
    };
    entries.iter().filter_map(text).filter(|t| !t.contains("SLOWLOG") && !t.contains("CONFIG")).collect()
}

#[test]
fn trap_12_a_fan_of_8000_and_its_cancel_hold_the_server_never_long() -> anyhow::Result<()> {
    on_real_alone(async |mut w| {
        // Five times the promise of 5 ms. The log knows wall time only, so a server that had no core for a moment shows up
        // too, but not three times in a row.
        w.one(&[b"CONFIG", b"SET", b"slowlog-log-slower-than", b"25000"]).await;
        let mut found = Vec::new();
        for _ in 0..3 {
            w.one(&[b"SLOWLOG", b"RESET"]).await;
            let run = w.submit(&fan(8_000)).await;
            let (mut owner, mut worker) = (w.own().await, w.worker(1));
            assert_eq!(w.finish(&mut owner, &mut worker, run).await.len(), 8_002);
            assert_eq!(w.state(run).await, Some(State::Completed));
            let run = w.submit(&fan(8_000)).await;
            let first = w.jobs(&mut owner, &mut worker).await;
            worker.answer(first.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect()).await.expect("up");
            w.turns(&mut owner, 30).await;
            w.client.command(run, Verb::Cancel).await.expect("up");
            w.finish(&mut owner, &mut worker, run).await;
            assert_eq!(w.state(run).await, Some(State::Cancelled));
            found = slow(&mut w).await;
            if found.is_empty() {
                break;
            }
        }
        assert_eq!(found, Vec::<String>::new());
    })
}

#[test]
fn trap_24_a_finished_ten_step_run_is_small() -> anyhow::Result<()> {
    on_real_alone(async |mut w| {
        let run = w.submit(&chain(10)).await;
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        w.finish(&mut owner, &mut worker, run).await;
        let mut bytes = 0;
        for key in keys_of(&mut w, run).await {
            bytes += w.number(&["MEMORY", "USAGE", &key]).await;
        }
        let encoding = w.one(&[b"OBJECT", b"ENCODING", keys().run(&run).as_bytes()]).await;
        assert_eq!(reply::text(&encoding), Some("listpack"));
        println!("a finished ten-step run has {bytes} bytes");
        assert!(bytes < 2_500, "{bytes} bytes");
    })
}
