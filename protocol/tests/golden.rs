//! The bytes of version 1, kept for ever: a program of today reads them, and writes exactly them.
//!
//! `UPDATE=1` rewrites the files of `golden/v1`. Whoever does that changes what other programs, of this version too, are
//! promised.

use std::{fmt::Debug, fs, path::Path};

use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::{
    beat::{Beat, Control, Held, Phase},
    codec::{self, DecodeError, FIELD_LZ4, FIELD_PLAIN},
    failure::{Category, Failure},
    id::{CommandId, JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    message::{
        Answer, Audit, Body, Command, Job, JobRef, JobResult, LogEntry, Lost, NewRun, Outcome, Reply, Results,
        Returned, Started, Submit, Unreadable, Verb,
    },
    missing::Missing,
    name::Name,
    state::State,
    value::{Input, Payload, ValueRef},
};

fn name(text: &str) -> Name {
    Name::new(text).expect("a legal name")
}

fn job_id() -> JobId {
    JobId { reign: Reign { counter: 7, random: 0x0123_4567_89ab_cdef }, seq: 42, n: 3 }
}

fn run_id() -> RunId {
    RunId::new(PartitionId(5), 1_800_000_000_000, 99)
}

fn worker() -> WorkerId {
    WorkerId::new(&name("w-1"), 0xfeed)
}

fn command_id() -> CommandId {
    CommandId("0190a5e4-0000-7000-8000-000000000001".parse().expect("a UUID"))
}

fn inline() -> Payload {
    Payload::Inline(codec::pack("hello").into())
}

fn by_reference() -> Payload {
    Payload::Ref(ValueRef { id: job_id().to_string(), bytes: 20_000 })
}

fn at() -> JobRef {
    let entry = StreamId { ms: 1_800_000_000_123, seq: 1 };
    JobRef { job: job_id(), run: run_id(), index: 2, queue: name("default"), entry }
}

fn job() -> Job {
    Job {
        v: 1,
        id: job_id(),
        run: run_id(),
        workflow: name("orders"),
        step: name("fetch"),
        index: 2,
        generation: 1,
        attempt: 2,
        max_attempts: 3,
        handler: name("http"),
        timeout_ms: 300_000,
        input: Input::Whole(inline()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        gate: None,
        canary: false,
        undo: false,
    }
}

fn failure() -> Failure {
    Failure {
        causes: vec!["connection reset".into()],
        retry_after_ms: Some(30_000),
        retryable: Some(true),
        detail: Some(by_reference()),
        ..Failure::new(Category::RateLimited, "429 Too Many Requests").with_code("http_429")
    }
}

fn entries() -> Vec<(&'static str, LogEntry)> {
    let result = |outcome| JobResult { of: at(), run_ms: 12, outcome, gate: None };
    let outcomes = vec![
        result(Outcome::Completed(None)),
        result(Outcome::Completed(Some(inline()))),
        result(Outcome::Completed(Some(by_reference()))),
        result(Outcome::Failed(failure())),
        result(Outcome::Returned(Returned::Drain)),
        result(Outcome::Returned(Returned::NoHandler)),
        result(Outcome::Returned(Returned::Surplus)),
        result(Outcome::Cancelled),
    ];
    let command = |reason: Option<&str>, verb| {
        let reason = reason.map(str::to_owned);
        Body::Command(Command { id: command_id(), actor: "ann".into(), run: run_id(), reason, verb, again: false })
    };
    let bare = NewRun { run: run_id(), plan: "sha".into(), version: None, input: None, traceparent: None };
    let full = NewRun { version: Some(3), input: Some(inline()), traceparent: job().traceparent, ..bare.clone() };
    let letter = StreamId { ms: 9, seq: 1 };
    let bodies = vec![
        (
            "log-submit",
            Body::Submit(Submit { id: command_id(), actor: "ann".into(), runs: vec![bare, full], again: false }),
        ),
        ("log-results", Body::Results(Results { worker: worker(), results: outcomes })),
        ("log-started", Body::Started(Started { worker: worker(), jobs: vec![(at(), 1_500)] })),
        ("log-lost", Body::Lost(Lost { worker: worker(), counted: true, jobs: vec![at()] })),
        ("log-audit", Body::Audit(Audit::of_step(run_id(), 2))),
        (
            "log-unreadable",
            Body::Unreadable(Unreadable { queue: name("cpu"), entries: vec![at().entry, StreamId { ms: 9, seq: 0 }] }),
        ),
        ("log-audit-run", Body::Audit(Audit::of_run(run_id()))),
        ("log-audit-letter", Body::Audit(Audit::of_step(run_id(), 2).without(Missing::Letter { id: letter }))),
        ("log-cancel", command(Some("a duplicate"), Verb::Cancel)),
        ("log-suspend", command(None, Verb::Suspend { now: true })),
        ("log-resume", command(None, Verb::Resume)),
        ("log-retry", command(None, Verb::Retry)),
        ("log-replay", command(None, Verb::Replay { index: 2, letter, input: None })),
        ("log-replay-input", command(None, Verb::Replay { index: 2, letter, input: Some(inline()) })),
    ];
    bodies.into_iter().map(|(name, body)| (name, LogEntry::new(body))).collect()
}

fn reply() -> Reply {
    let answers = vec![
        Answer::Done { state: State::Queued },
        Answer::Known { state: State::Completed },
        Answer::Conflict { state: State::Failed, message: "cannot resume".into() },
        Answer::NotFound,
        Answer::NoPlan,
        Answer::Refused { code: "quota".into(), message: "too many runs".into() },
    ];
    Reply { v: 1, id: command_id(), answers }
}

fn beat() -> Beat {
    let held = |running_ms, progress| Held {
        job: job_id(),
        partition: PartitionId(5),
        queue: name("default"),
        entry: at().entry,
        running_ms,
        progress,
    };
    Beat {
        v: 1,
        read_age_ms: 17,
        phase: Phase::Draining,
        slots: 16,
        queues: vec![name("default"), name("cpu")],
        handlers: vec![name("http")],
        version: "0.1.0".into(),
        host: "pod-1".into(),
        pid: 1234,
        held: vec![held(Some(5), Some(50)), held(None, None)],
    }
}

/// A kept file: its bytes, or with `UPDATE=1` the bytes that it has from now on.
fn kept(name: &str, today: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v1/{name}.hex"));
    if std::env::var_os("UPDATE").is_some() {
        let hex: String = today.iter().map(|b| format!("{b:02x}")).collect();
        let lines: Vec<&str> = hex.as_bytes().chunks(96).map(|c| std::str::from_utf8(c).expect("hex")).collect();
        fs::write(&path, lines.join("\n") + "\n").expect("the golden file can be written");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; UPDATE=1 writes it", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

/// A message is written as the kept bytes, and they are read as the message.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, message: &T) {
    let bytes = codec::pack(message);
    let golden = kept(name, &bytes);
    assert_eq!(codec::unpack::<T>(&golden).as_ref(), Ok(message), "{name}: the kept bytes say something else");
    assert_eq!(bytes, golden, "{name}: other bytes than the kept ones");
    let richer = with_unknown_fields(&golden);
    assert_ne!(richer, golden);
    assert_eq!(codec::unpack::<T>(&richer).as_ref(), Ok(message), "{name}: an unknown field is not tolerated");
}

#[test]
fn every_message_keeps_its_bytes_and_tolerates_unknown_fields() {
    check("job", &job());
    check("job-minimal", &Job { input: Input::None, traceparent: None, ..job() });
    check("job-reference", &Job { input: Input::Whole(by_reference()), traceparent: None, ..job() });
    for (name, entry) in entries() {
        check(name, &entry);
    }
    check("reply", &reply());
    check("beat", &beat());
    check("failure", &failure());
    check("failure-minimal", &Failure::new(Category::Permanent, "no"));
}

#[test]
fn every_word_on_a_control_channel_keeps_its_bytes() {
    for (name, control) in [
        ("control-cancel", Control::Cancel(vec![job_id()])),
        ("control-drain", Control::Drain),
        ("control-jobs", Control::Jobs(name("cpu"))),
    ] {
        let golden = kept(name, &codec::pack(&control));
        assert_eq!(codec::pack(&control), golden, "{name}: other bytes than the kept ones");
        assert_eq!(codec::unpack::<Control>(&golden), Ok(control));
    }
}

#[test]
fn a_packed_job_id_keeps_its_bytes() {
    let golden = kept("job-id-packed", &job_id().pack());
    assert_eq!((job_id().pack().to_vec(), JobId::unpack(&golden)), (golden, Some(job_id())));
}

#[test]
fn a_small_message_is_plain_and_a_large_one_compressed() {
    let small = codec::encode(&job());
    assert_eq!((small.field, small.bytes), (FIELD_PLAIN, codec::pack(&job())));
    let large = Job { input: Input::Whole(Payload::Inline(vec![7; 4_000].into())), ..job() };
    let wire = codec::encode(&large);
    assert_eq!((wire.field, wire.bytes.len() < 500), (FIELD_LZ4, true));
    // Another version of lz4 may compress differently; what was written once must be read.
    let golden = kept("job-large-lz4", &wire.bytes);
    assert_eq!(codec::decode::<Job>(FIELD_LZ4.as_bytes(), &golden), Ok(large.clone()));
    assert_eq!(codec::decode::<Job>(FIELD_PLAIN.as_bytes(), &codec::pack(&large)), Ok(large), "either form is read");
}

#[test]
fn a_newer_message_says_so_even_when_it_cannot_be_read() {
    #[derive(Serialize)]
    struct Alien {
        v: u8,
        body: std::collections::BTreeMap<&'static str, u8>,
    }
    let alien = |v| codec::pack(&Alien { v, body: [("martian", 1)].into() });
    let plain = FIELD_PLAIN.as_bytes();
    assert_eq!(codec::decode::<LogEntry>(plain, &alien(2)), Err(DecodeError::Newer(2)));
    assert_eq!(
        codec::decode::<LogEntry>(FIELD_LZ4.as_bytes(), &codec::compress(&alien(9))),
        Err(DecodeError::Newer(9))
    );
    assert!(matches!(codec::decode::<LogEntry>(plain, &alien(1)), Err(DecodeError::Malformed(_))));
    let readable = Job { v: 2, ..job() };
    assert_eq!(codec::decode::<Job>(plain, &codec::pack(&readable)), Err(DecodeError::Newer(2)));
    for no_map in [&[0x91, 0x02][..], &[0xc4, 0x01, 0x02], &[0x02], &[]] {
        let read = codec::decode::<LogEntry>(plain, no_map);
        assert!(matches!(read, Err(DecodeError::Malformed(_))), "{no_map:?} passes for a newer message: {read:?}");
    }
    assert!(matches!(codec::decode::<Job>(b"x", &codec::pack(&job())), Err(DecodeError::Malformed(_))));
}

#[test]
fn cut_off_bytes_are_malformed() {
    let mut messages: Vec<Vec<u8>> = entries().iter().map(|(_, entry)| codec::pack(entry)).collect();
    messages.push(codec::pack(&job()));
    for bytes in messages {
        for end in 0..bytes.len() {
            let cut = &bytes[..end];
            let plain = codec::decode::<LogEntry>(FIELD_PLAIN.as_bytes(), cut);
            assert!(matches!(plain, Err(DecodeError::Malformed(_))), "{end} of {} bytes: {plain:?}", bytes.len());
            let packed = codec::decode::<LogEntry>(FIELD_LZ4.as_bytes(), &codec::compress(cut));
            assert!(matches!(packed, Err(DecodeError::Malformed(_))));
        }
    }
    let packed = codec::compress(&codec::pack(&entries()[1].1));
    for end in 0..packed.len() {
        let cut = codec::decode::<LogEntry>(FIELD_LZ4.as_bytes(), &packed[..end]);
        assert!(matches!(cut, Err(DecodeError::Malformed(_))), "{end} of {} bytes", packed.len());
    }
}

#[test]
fn bytes_that_nest_without_end_are_malformed() {
    let mut bytes = vec![0x82, 0xa1, b'v', 0x01, 0xa1, b'x'];
    bytes.resize(1 << 20, 0x91);
    let plain = codec::decode::<LogEntry>(FIELD_PLAIN.as_bytes(), &bytes);
    assert!(matches!(plain, Err(DecodeError::Malformed(_))), "{plain:?}");
}

/// Reads bytes as every type; what comes of it does not matter, as long as something does.
fn never_panics(field: &str, bytes: &[u8]) {
    let field = field.as_bytes();
    drop(codec::decode::<LogEntry>(field, bytes));
    drop(codec::decode::<Job>(field, bytes));
    drop(codec::decode::<Reply>(field, bytes));
    drop(codec::decode::<Beat>(field, bytes));
    drop(codec::unpack::<Control>(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_are_no_message_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        never_panics(FIELD_PLAIN, &bytes);
        never_panics(FIELD_LZ4, &bytes);
        let read = codec::decode::<LogEntry>(FIELD_PLAIN.as_bytes(), &bytes);
        prop_assert!(read.is_err(), "{:?}", read);
    }

    #[test]
    fn messages_with_a_wrong_byte_never_panic(which in 0usize..64, at in any::<prop::sample::Index>(), byte: u8) {
        let entries = entries();
        let mut bytes = codec::pack(&entries[which % entries.len()].1);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        never_panics(FIELD_PLAIN, &bytes);
        never_panics(FIELD_LZ4, &codec::compress(&bytes));
    }
}

/// Names of variants: a map of one such key is an enum and no struct.
const VARIANTS: [&str; 24] = [
    "unreadable",
    "submit",
    "results",
    "started",
    "command",
    "lost",
    "audit",
    "letter",
    "completed",
    "failed",
    "returned",
    "inline",
    "ref",
    "whole",
    "suspend",
    "replay",
    "done",
    "known",
    "conflict",
    "refused",
    "cancel",
    "jobs",
    "resume",
    "retry",
];

/// The same MessagePack value with one more field in front of every struct.
fn with_unknown_fields(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(enrich(bytes, &mut out).is_empty(), "one value");
    out
}

fn enrich<'a>(bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let number = |at: usize, len: usize| bytes[at..at + len].iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
    let (entries, head, is_map) = match bytes[0] {
        tag @ 0x80..=0x8f => (usize::from(tag & 0x0f), 1, true),
        tag @ 0x90..=0x9f => (usize::from(tag & 0x0f), 1, false),
        0xde => (number(1, 2), 3, true),
        0xdc => (number(1, 2), 3, false),
        tag => {
            let len = match tag {
                0xa0..=0xbf => 1 + usize::from(tag & 0x1f),
                0xc4 | 0xd9 => 2 + number(1, 1),
                0xc5 | 0xda => 3 + number(1, 2),
                0xcc | 0xd0 => 2,
                0xcd | 0xd1 => 3,
                0xca | 0xce | 0xd2 => 5,
                0xcb | 0xcf | 0xd3 => 9,
                _ => 1,
            };
            out.extend_from_slice(&bytes[..len]);
            return &bytes[len..];
        }
    };
    let mut rest = &bytes[head..];
    if is_map {
        let is_enum = entries == 1
            && VARIANTS.iter().any(|v| rest[1..].starts_with(v.as_bytes()) && usize::from(rest[0] & 0x1f) == v.len());
        let entries = entries + usize::from(!is_enum);
        out.push(0xde);
        out.extend_from_slice(&(entries as u16).to_be_bytes());
        if !is_enum {
            // from_the_future: { a: [nil, true] }
            out.push(0xa0 | 15);
            out.extend_from_slice(b"from_the_future");
            out.extend_from_slice(&[0x81, 0xa1, b'a', 0x92, 0xc0, 0xc3]);
        }
    } else {
        out.extend_from_slice(&bytes[..head]);
    }
    for _ in 0..entries * if is_map { 2 } else { 1 } {
        rest = enrich(rest, out);
    }
    rest
}
