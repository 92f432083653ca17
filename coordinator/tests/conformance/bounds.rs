//! Bounds: commits, the window, layout.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use stepfleet_coordinator::{
    machine::event::{Timer, Work, WorkKind},
    shell::{
        owner::{Memory, Owner},
        schedule::TIMERS_PER_READ,
    },
    store::{link::Dial, record, reply},
};
use stepfleet_protocol::{
    id::{JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    keys::GROUP,
    message::{Body, JobRef, JobResult, Outcome, Results, Verb},
    name::Name,
    state::State,
    value::Payload,
    workflow::Workflow,
};

use crate::{
    both,
    fleet::{PARTITION, chain, keys, own},
    tap::{self, Tap},
    world::{World, on_memory, on_real, on_real_alone},
};

both! {
    never_more_than_the_window_is_on_the_stream_and_the_urgent_come_first,
    more_due_timers_than_one_read_brings_are_all_decided,
    a_loaded_owner_decides_the_next_batch_while_the_last_one_is_committed,
    a_queue_is_made_before_its_first_job_whoever_decides_that_ahead,
}

const WINDOW: i64 = 256;
/// Five times the promise of 5 ms, in microseconds. Servers know wall time only, so one that had no core for a moment shows up too,
/// but not three times in a row.
const LIMIT_US: u32 = 25_000;

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

/// A run that nobody knows.
fn nobody(n: u64) -> RunId {
    RunId::new(PARTITION, 1, n)
}

/// Stores timers of runs that nobody knows, due at the given times.
async fn store_timers<D: Dial>(w: &mut World<D>, due_ms: impl Iterator<Item = u64>) {
    let mut pipe = redis::pipe();
    let mut due_ms = due_ms.zip(0..).peekable();
    while due_ms.peek().is_some() {
        pipe.cmd("ZADD").arg(keys().timers());
        for (due, n) in due_ms.by_ref().take(2_000) {
            pipe.arg(due).arg(record::pack_timer(nobody(n), Timer::Run));
        }
        if pipe.len() == 25 || due_ms.peek().is_none() {
            w.client.trip(&std::mem::take(&mut pipe)).await.expect("no faults");
        }
    }
}

async fn more_due_timers_than_one_read_brings_are_all_decided<D: Dial>(mut w: World<D>) {
    let count = TIMERS_PER_READ as u64 * 2 + 1;
    store_timers(&mut w, (0..count).map(|n| 1_000 + n / 3_000)).await;
    let mut owner = w.own().await;
    for _ in 0..60 {
        w.turns(&mut owner, 1).await;
        if w.number(&["ZCARD", &keys().timers()]).await == 0 {
            assert!(owner.done.items >= count);
            return;
        }
    }
    panic!("{} timers are left", w.number(&["ZCARD", &keys().timers()]).await);
}

async fn a_loaded_owner_decides_the_next_batch_while_the_last_one_is_committed<D: Dial>(mut w: World<D>) {
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let mut runs = Vec::new();
    for _ in 0..600 {
        runs.push(w.submit(&chain(2)).await);
    }
    let mut done = 0;
    for _ in 0..400 {
        w.turns(&mut owner, 1).await;
        let jobs = worker.take(1_000).await.unwrap_or_default();
        done += jobs.len();
        // One entry each, so that much is left of what was read.
        for (of, _) in jobs {
            worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        }
        if w.number(&["ZCARD", &keys().runs(State::Completed)]).await == 600 {
            break;
        }
    }
    assert_eq!(done, 1_200, "each step is done once");
    for run in runs {
        assert_eq!(w.stored(run).await.record.state, State::Completed);
    }
    assert!(owner.done.ahead > 0 && owner.done.ahead < owner.done.commits, "{:?}", owner.done);
    assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, 0);
}

async fn a_queue_is_made_before_its_first_job_whoever_decides_that_ahead<D: Dial>(mut w: World<D>) {
    const RUNS: usize = 300;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    for n in 0..RUNS {
        let steps = serde_json::json!({"a": {"handler": "noop"},
            "b": {"handler": "noop", "needs": ["a"], "queue": format!("q{n}")}});
        let workflow = serde_json::json!({"workflow": "apart", "steps": steps});
        w.submit(&serde_json::from_value(workflow).expect("a legal workflow")).await;
    }
    let mut done = 0;
    for _ in 0..200 {
        w.turns(&mut owner, 1).await;
        for (of, _) in worker.take(1_000).await.unwrap_or_default() {
            done += 1;
            worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        }
        if w.number(&["SCARD", &keys().queues()]).await > RUNS as i64 {
            break;
        }
    }
    assert_eq!(done, RUNS);
    assert!(owner.done.ahead > 0, "{:?}", owner.done);
    assert_eq!(w.number(&["SCARD", &keys().queues()]).await, RUNS as i64 + 1);
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

/// From now on the server keeps what holds it for `limit_us` microseconds or longer.
pub(crate) async fn watch_slow<D: Dial>(w: &mut World<D>, limit_us: u32) {
    w.one(&[b"CONFIG", b"SET", b"slowlog-log-slower-than", limit_us.to_string().as_bytes()]).await;
    w.one(&[b"CONFIG", b"SET", b"latency-tracking-info-percentiles", b"100"]).await;
    w.one(&[b"SLOWLOG", b"RESET"]).await;
    w.one(&[b"CONFIG", b"RESETSTAT"]).await;
}

/// Commands of ours that held the server for so long since then, and the longest transaction if that did: the log of slow
/// commands has what is in a transaction, and not the whole of it.
pub(crate) async fn slow<D: Dial>(w: &mut World<D>, limit_us: u32) -> Vec<String> {
    let log = w.one(&[b"SLOWLOG", b"GET", b"100"]).await;
    let entries = reply::array(&log).unwrap_or_default();
    let text = |entry: &redis::Value| {
        let parts = reply::array(entry)?;
        let words: Vec<&str> = reply::array(parts.get(3)?)?.iter().filter_map(reply::text).take(3).collect();
        Some(format!("{} us: {}", reply::number(parts.get(2)?)?, words.join(" ")))
    };
    let found = entries.iter().filter_map(text).filter(|t| !t.contains("SLOWLOG") && !t.contains("CONFIG"));
    let mut found: Vec<String> = found.collect();
    let stats = w.one(&[b"INFO", b"latencystats"]).await;
    let stats = reply::bytes(&stats).map(String::from_utf8_lossy).unwrap_or_default();
    let line = stats.lines().find_map(|line| line.strip_prefix("latency_percentiles_usec_exec:p100="));
    let longest: f64 =
        line.and_then(|us| us.trim().parse().ok()).unwrap_or_else(|| panic!("no transaction in {stats}"));
    if longest >= f64::from(limit_us) {
        found.push(format!("{longest} us: EXEC"));
    }
    found
}

#[test]
fn trap_12_a_fan_of_8000_and_its_cancel_hold_the_server_never_long() -> anyhow::Result<()> {
    on_real_alone(async |mut w| {
        let mut found = Vec::new();
        for _ in 0..3 {
            watch_slow(&mut w, LIMIT_US).await;
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
            found = slow(&mut w, LIMIT_US).await;
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

#[test]
fn trap_12_a_take_over_with_a_million_timers_and_100_000_work_items_holds_the_server_never_long() -> anyhow::Result<()>
{
    on_real_alone(async |mut w| {
        const DUE: u64 = 3_000;
        let time = w.one(&[b"TIME"]).await;
        let now_ms = reply::time_ms(&time).expect("a time");
        // A page and a half is long due, in one millisecond; the rest comes within the horizon, 100,000 in a millisecond.
        let due = |n: u64| if n < DUE { now_ms - 5_000 } else { now_ms + 100_000 + n / 100_000 };
        store_timers(&mut w, (0..1_000_000).map(due)).await;
        for part in 0..10 {
            let mut push = redis::pipe();
            push.cmd("RPUSH").arg(keys().todo());
            for n in 0..10_000 {
                let work = Work { run: nobody(part * 10_000 + n), kind: WorkKind::Stop, next: 1 };
                push.arg(record::pack_work(&work));
            }
            w.client.trip(&push).await.expect("no faults");
        }
        let mut found = Vec::new();
        for _ in 0..3 {
            watch_slow(&mut w, LIMIT_US).await;
            let mut owner = w.own().await;
            w.turns(&mut owner, 12).await;
            assert_eq!(w.number(&["ZCARD", &keys().timers()]).await, 1_000_000 - DUE as i64, "what is due was decided");
            found = slow(&mut w, LIMIT_US).await;
            if found.is_empty() {
                break;
            }
        }
        assert!(w.number(&["LLEN", &keys().todo()]).await < 100_000, "work goes on");
        assert_eq!(found, Vec::<String>::new());
    })
}

#[test]
fn a_stream_that_outgrew_its_trims_is_trimmed_at_once_and_in_chunks() -> anyhow::Result<()> {
    const ENTRIES: i64 = 30_000;
    const CHUNK: i64 = 2_000;
    on_real("trims", async |mut w| {
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let run = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut worker, run).await;
        let stream = keys().jobs(&Name::new("default").expect("a legal name"));
        for _ in 0..ENTRIES / 1_000 {
            let mut pipe = redis::pipe();
            for _ in 0..1_000 {
                pipe.cmd("XADD").arg(&stream).arg("*").arg("m").arg("done");
            }
            w.client.trip(&pipe).await.expect("no faults");
        }
        // All of them were delivered and acked.
        w.one(&[b"XGROUP", b"SETID", stream.as_bytes(), GROUP.as_bytes(), b"$"]).await;
        let (mut before, mut trims) = (w.number(&["XLEN", &stream]).await, 0);
        while before > 200 {
            w.turns(&mut owner, 1).await;
            let after = w.number(&["XLEN", &stream]).await;
            assert!(before - after <= CHUNK, "{} entries went at once", before - after);
            trims += i64::from(trims > 0 || after < before);
            assert!(trims <= ENTRIES / CHUNK + 3, "{after} are left, and it waits");
            before = after;
        }
    })
}

/// The output of a job that nobody waits for.
fn result(n: u32, output: Bytes) -> Body {
    let queue = Name::new("default").expect("a legal name");
    let job = JobId { reign: Reign { counter: 99, random: 99 }, seq: 1, n };
    let run = RunId::new(PartitionId(0), 1, u64::from(n));
    let of = JobRef { job, run, index: 0, queue: queue.clone(), entry: StreamId { ms: 1, seq: u64::from(n) } };
    let outcome = Outcome::Completed(Some(Payload::Inline(output)));
    let results = vec![JobResult { of, run_ms: 1, outcome, gate: None }];
    Body::Results(Results { worker: WorkerId::new(&queue, 1), results })
}

/// Puts 512 large results on the log and turns the owner until it has decided all of them.
async fn flood<D: Dial, O: Dial>(w: &mut World<D>, owner: &mut Owner<O::Link>) {
    // It does not compress.
    let mut output = vec![0u8; 64 << 10];
    StdRng::seed_from_u64(1).fill(&mut output[..]);
    let (output, mut last) = (Bytes::from(output), StreamId::ZERO);
    for n in 0..512 {
        last = w.client.append(result(n, output.clone())).await.expect("up");
    }
    for _ in 0..200 {
        owner.turn(false).await.expect("no faults");
        let offset = w.one(&[b"HGET", keys().head().as_bytes(), b"offset"]).await;
        if reply::text(&offset).and_then(|text| text.parse().ok()) == Some(last) {
            return;
        }
    }
    panic!("the flood is not decided");
}

/// Trap 14: values inside the messages, as somebody else's worker may send them, at the begin of a reign and after a time of
/// small ones.
#[test]
fn no_read_is_large_when_512_results_of_64_kib_wait() {
    // 4 MiB as promised, and what one entry may be too many.
    const MOST: usize = (4 << 20) + (128 << 10);
    on_memory(async |mut w| {
        let largest = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&largest);
        let tap = Tap::after(w.dial.clone(), move |replies| {
            seen.fetch_max(tap::bytes(replies), Ordering::Relaxed);
        });
        flood_twice(&mut w, tap).await;
        let largest = largest.load(Ordering::Relaxed);
        assert!((1 << 20..MOST).contains(&largest), "the largest read had {largest} bytes");
    });
}

async fn flood_twice<D: Dial, O: Dial>(w: &mut World<D>, tap: O) {
    let mut small = w.own().await;
    let run = w.submit(&chain(1)).await;
    let mut worker = w.worker(1);
    w.finish(&mut small, &mut worker, run).await;
    drop(small);
    let mut owner = own(&tap, 7, Memory::default()).await.expect("free");
    flood::<D, O>(w, &mut owner).await;
    for _ in 0..30 {
        w.submit(&chain(1)).await;
        owner.turn(false).await.expect("no faults");
        let jobs = worker.take(10).await.unwrap_or_default();
        let done = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None)));
        worker.answer(done.collect()).await.expect("up");
    }
    flood::<D, O>(w, &mut owner).await;
}
