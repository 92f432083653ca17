//! The bytes of version 1, kept for ever: a program of today reads them, and writes exactly them.
//!
//! `UPDATE=1` rewrites the files of `golden/v1`. Whoever does that changes what other programs, of this version too, are
//! promised.

mod audit;
mod keep;

use proptest::prelude::*;
use serde::Serialize;
use stepfleet_protocol::{
    beat::{Beat, Control, Held, Phase, Sight},
    codec::{self, DecodeError, FIELD_LZ4, FIELD_PLAIN},
    failure::{Category, Failure},
    id::{CommandId, JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    message::{
        Answer, Audit, Body, Command, Job, JobRef, JobResult, LogEntry, Lost, NewRun, Outcome, Reply, Results,
        Returned, Started, Submit, Unreadable, Verb,
    },
    missing::Missing,
    name::Name,
    pod::PodEnd,
    state::State,
    value::{Input, Payload, ValueRef},
};

use crate::keep::{check, kept};

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
    let (read_age_ms, running_ms, gone_ms) = (Some(4), Some(500), None);
    let sight = Sight { silent_ms: 31_000, trip_ms: 2, read_age_ms, held: true, running_ms, gone_ms, pod: None };
    let end = PodEnd { pod: "pool-1".into(), reason: "OOMKilled".into(), exit_code: Some(137), message: None };
    let by_pod = Sight { pod: Some(end), ..sight.clone() };
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
        let (id, actor, run) = (command_id(), "ann".into(), run_id());
        let (reason, again, campaign) = (reason.map(str::to_owned), false, None);
        Body::Command(Command { id, actor, run, reason, verb, again, campaign })
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
        ("log-lost", Body::Lost(Lost { worker: worker(), counted: true, jobs: vec![at()], seen: Vec::new() })),
        ("log-lost-seen", Body::Lost(Lost { worker: worker(), counted: true, jobs: vec![at()], seen: vec![sight] })),
        ("log-lost-pod", Body::Lost(Lost { worker: worker(), counted: true, jobs: vec![at()], seen: vec![by_pod] })),
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
        pod: None,
    }
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
    check("beat-pod", &Beat { pod: Some("0a1b2c3d-0000-4000-8000-000000000001".into()), ..beat() });
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
