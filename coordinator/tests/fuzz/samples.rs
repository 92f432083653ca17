//! The kept samples: small and real, written by the encoders of today or an earlier day, and what once broke a decoder.
//!
//! `UPDATE=1` writes those of today (never over an older one of another name).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use stepfleet_coordinator::{
    machine::{
        decision::{Cause, Transition, Why},
        event::{Timer, Work, WorkKind},
        plan::Plan,
        run::{AttemptError, Ending, Run, Step, Undoing},
    },
    shell::core::Outbox,
    store::{
        campaigns::{Campaign, Item, Kind, Outcome, Taken},
        history,
        outbox::{Cursor, Undelivered},
        read::PlacedId,
        record::{self, DeadLetter},
    },
    workflow,
};
use stepfleet_protocol::{
    codec::{self, pack},
    failure::{Category, Failure},
    gate::{GateState, Stand},
    id::{JobId, PartitionId, Reign, RunId, StreamId},
    name::Name,
    state::State,
};

use crate::texts;

/// The folder with the samples of a decoder.
pub(crate) fn folder(decoder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(decoder)
}

/// The kept samples of a decoder with their names, in the order of the names; never none.
pub(crate) fn kept(decoder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder(decoder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}; UPDATE=1 writes it", folder.display()));
    let mut all: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let entry = entry.expect("a folder that can be read");
            let bytes = fs::read(entry.path()).expect("a file that can be read");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{} is empty; UPDATE=1 fills it", folder.display());
    all
}

/// Keeps an input that broke a decoder. Returns where.
pub(crate) fn keep(decoder: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = folder(decoder);
    fs::create_dir_all(&folder).expect("the folder can be made");
    let path = folder.join(name);
    fs::write(&path, bytes).expect("the file can be written");
    path
}

/// Writes the samples of today.
pub(crate) fn write() {
    for (decoder, name, bytes) in today() {
        keep(decoder, &name, &bytes);
    }
}

type Sample = (&'static str, String, Vec<u8>);

fn today() -> Vec<Sample> {
    let mut all = golden();
    let mut add = |decoder: &'static str, name: &str, bytes: Vec<u8>| all.push((decoder, name.to_owned(), bytes));
    add("dead-letter", "letter", pack(&letter()));
    add("undelivered", "one", pack(&undelivered()));
    let outbox =
        Outbox { v: 1, runs: vec![(run_id(), history::pack(&transitions()).into()), (run_id(), Vec::new().into())] };
    add("outbox", "two-runs", pack(&outbox));
    let gate = GateState {
        v: 1,
        stand: Stand::HalfOpen,
        since_ms: 5,
        until_ms: 9,
        canaries: 3,
        reason: "500s".into(),
        actor: "breaker".into(),
    };
    add("gate-state", "half-open", pack(&gate));
    add("attempt-error", "failed", pack(&attempt()));
    add("cursor", "first", pack(&Cursor::first(7)));
    add("campaign", "replay", pack(&campaign()));
    let taken = Taken { run: run_id(), index: 3, step: "charge".into(), answered: true };
    add("campaign-item", "taken", pack(&taken));
    let letter = PlacedId { partition: PartitionId(4), entry: StreamId { ms: 7, seq: 1 } };
    let item = Item { letter, run: run_id(), step: "charge".into(), outcome: Outcome::ALL[0], note: Some("x".into()) };
    add("campaign-item", "item", pack(&item));
    add("value", "nested", pack(&json!({"a": [1, -2.5, null, true, "ü"], "b": {"c": "x".repeat(40)}})));
    add("run-record", "fresh", record::pack_run(&run(|_| {})));
    let later = run(|run| {
        (run.version, run.ending, run.has_input) = (Some(3), Some(Ending::TimedOut), true);
        (run.tolerated, run.skipped, run.undoing, run.rewinding) = (1, 300, Undoing::Failed, true);
        (run.finished_ms, run.completed, run.active, run.work) = (1_800_000_000_000, 70_000, 2, 1);
    });
    add("run-record", "version-2", record::pack_run(&later));
    add("step-state", "fresh", record::pack_step(&Step::fresh(3)));
    add("step-state", "full", record::pack_step(&full_step()));
    for (name, timer) in [
        ("timer-run", Timer::Run),
        ("timer-retry", Timer::Retry { index: 1, job: job_id() }),
        ("timer-attempt", Timer::Attempt { index: 1, job: job_id() }),
        ("timer-start", Timer::Start { index: 1, by_ms: 99 }),
    ] {
        add("members", name, record::pack_timer(run_id(), timer));
    }
    add("members", "ready", record::pack_ready(run_id(), 70_000));
    add("members", "work", record::pack_work(&Work { run: run_id(), kind: WorkKind::Fan { of: 9 }, next: 500 }));
    add("members", "job-id", job_id().pack().to_vec());
    add("history", "moves", history::pack(&transitions()));
    for (name, text) in texts::WORKFLOWS {
        let found = workflow::check(text).unwrap_or_else(|report| panic!("{name}: {report:?}"));
        add("plan", name, codec::compress(&pack(&found)));
        add("plan", &format!("{name}-plain"), pack(&found));
        add("workflow-text", name, text.as_bytes().to_vec());
    }
    for (name, text) in texts::POLICIES {
        let found = workflow::check_policies(text).unwrap_or_else(|report| panic!("{name}: {report:?}"));
        add("stored-policies", name, pack(&found));
        add("policies-text", name, text.as_bytes().to_vec());
    }
    let written = [("template", texts::TEMPLATES), ("api-body", texts::BODIES), ("ids", texts::IDS)];
    for (decoder, texts) in written {
        for (at, text) in texts.iter().enumerate() {
            add(decoder, &format!("{at:02}"), text.as_bytes().to_vec());
        }
    }
    all
}

/// The golden bytes of the protocol, which the encoders of today write too.
fn golden() -> Vec<Sample> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/golden/v1");
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("the golden files are there") {
        let path = entry.expect("a folder that can be read").path();
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let decoder = match name.split('-').next() {
            Some("log") => "log-entry",
            Some("job") if name == "job-id-packed" => "members",
            Some("job") => "job",
            Some("audit") => "audit-entry",
            Some("beat") => "beat",
            Some("coordinator") => "coordinator-beat",
            Some("control") => "control",
            Some("reply") => "reply",
            Some("call") => "call-record",
            _ => continue,
        };
        let digits: Vec<u8> = fs::read(&path).expect("hex").into_iter().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex");
        all.push((decoder, name, digits.chunks(2).map(byte).collect()));
    }
    all
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a legal name")
}

fn run_id() -> RunId {
    RunId::new(PartitionId(5), 1_800_000_000_000, 99)
}

fn job_id() -> JobId {
    JobId { reign: Reign { counter: 7, random: 0x0123_4567_89ab_cdef }, seq: 42, n: 3 }
}

fn attempt() -> AttemptError {
    let failure = Failure::new(Category::RateLimited, "429 Too Many Requests").with_code("http_429");
    let worker = "w@0000000000ff".parse().ok();
    AttemptError { index: 2, generation: 1, attempt: 3, job: job_id(), worker, at_ms: 900, run_ms: 1, failure }
}

fn letter() -> DeadLetter {
    DeadLetter {
        v: 1,
        run: run_id(),
        workflow: name("orders"),
        version: Some(2),
        step: name("charge"),
        index: 2,
        generation: 1,
        handler: name("http"),
        queue: name("default"),
        cause: Cause::Exhausted,
        category: Category::RateLimited,
        attempts: vec![attempt()],
        input: None,
        at_ms: 1_000,
        fingerprint: None,
        returns: 1,
    }
}

fn undelivered() -> Undelivered {
    Undelivered {
        v: 1,
        subscriber: "log".into(),
        entry: StreamId { ms: 9, seq: 1 },
        error: "refused".into(),
        attempts: 3,
    }
}

fn campaign() -> Campaign {
    Campaign {
        v: 1,
        id: uuid::Uuid::from_u128(7),
        kind: Kind::Replay,
        filter: serde_json::from_value(json!({"workflow": "orders", "ids": ["0-1000-1"]})).expect("a filter"),
        actor: "ann".into(),
        reason: Some("fixed".into()),
        at_ms: 1_000,
        ends: vec![StreamId { ms: 7, seq: 1 }, StreamId::ZERO],
        canary: 5,
        rate: 100,
        stop_when_failing: 20,
        max: 1_000_000,
        returns_max: 3,
        ramp_ms: 60_000,
        patch: Some(json!({"currency": null})),
        when_version: Some(">=1.4".into()),
    }
}

fn run(change: impl FnOnce(&mut Run)) -> Run {
    let workflow = workflow::check(texts::WORKFLOWS[0].1).expect("a legal workflow");
    let plan = Plan::compile("0123456789abcdef0123456789abcdef".into(), &workflow);
    let mut run = Run::new(run_id(), Arc::new(plan));
    change(&mut run);
    run
}

fn full_step() -> Step {
    let mut step = Step::fresh(200);
    step.state = State::Processing;
    (step.attempts, step.spent, step.losses, step.generation) = (300, 200, 2, 3);
    (step.in_flight, step.stopping, step.timed, step.patched, step.has_output) = (true, true, true, true, true);
    (step.job, step.letter) = (Some(job_id()), Some(StreamId { ms: 1_800_000_000_000, seq: 1 }));
    (step.unhandled_ms, step.tolerated) = (77, true);
    step
}

fn transitions() -> Vec<Transition> {
    let full = Transition {
        step: Some(70_000),
        from: State::Processing,
        to: State::Failed,
        at_ms: 1_800_000_000_000,
        attempt: 2,
        why: Why::AttemptFailed,
        worker: "w@0000000000ff".parse().ok(),
        actor: Some("me".into()),
        note: Some("transient: ü".into()),
    };
    let bare = Transition { step: None, attempt: 0, worker: None, actor: None, note: None, ..full.clone() };
    let again = Transition { at_ms: full.at_ms - 3, attempt: 1, note: None, ..full.clone() };
    vec![bare.clone(), full.clone(), again, bare, full]
}
