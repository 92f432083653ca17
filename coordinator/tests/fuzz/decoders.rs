//! The decoders: everything that reads what another process, or an earlier program, has written.
//!
//! Each says of its input whether it was read. What was read is written by the encoder that goes with the decoder, and read
//! again: that must give the same.

use std::{collections::BTreeMap, fmt::Debug, panic::catch_unwind, str::FromStr, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use stepfleet_coordinator::{
    http::view,
    machine::{plan::Plan, run::AttemptError},
    shell::core::Outbox,
    store::{
        campaigns::{Campaign, Item, Taken},
        history,
        letters::Filter,
        outbox::{Cursor, Undelivered},
        read::PlacedId,
        record::{self, DeadLetter},
    },
    workflow::{self, RunScope, Scope, Template},
};
use stepfleet_protocol::{
    audit::AuditEntry,
    beat::{Beat, Control, CoordinatorBeat},
    call::{CallId, CallRecord},
    codec::{self, FIELD_LZ4, FIELD_PLAIN},
    gate::{Gate, GateState},
    id::{JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    message::{Job, LogEntry, Reply},
    name::Name,
    policy::Policies,
    workflow::Workflow,
};

/// Whether an input was read; the error is a broken promise.
pub(crate) type Verdict = Result<bool, String>;

/// One decoder.
#[derive(Clone, Copy)]
pub(crate) struct Decoder {
    /// Its name, and that of the folder with its samples.
    pub(crate) name: &'static str,
    /// Reads, writes and reads again.
    pub(crate) check: fn(&[u8]) -> Verdict,
}

/// All decoders.
pub(crate) const ALL: &[Decoder] = &[
    Decoder { name: "log-entry", check: stream::<LogEntry> },
    Decoder { name: "job", check: stream::<Job> },
    Decoder { name: "dead-letter", check: stream::<DeadLetter> },
    Decoder { name: "audit-entry", check: stream::<AuditEntry> },
    Decoder { name: "undelivered", check: stream::<Undelivered> },
    Decoder { name: "outbox", check: outbox },
    Decoder { name: "reply", check: packed::<Reply> },
    Decoder { name: "beat", check: packed::<Beat> },
    Decoder { name: "coordinator-beat", check: packed::<CoordinatorBeat> },
    Decoder { name: "control", check: packed::<Control> },
    Decoder { name: "gate-state", check: packed::<GateState> },
    Decoder { name: "call-record", check: packed::<CallRecord> },
    Decoder { name: "attempt-error", check: packed::<AttemptError> },
    Decoder { name: "cursor", check: packed::<Cursor> },
    Decoder { name: "campaign", check: packed::<Campaign> },
    Decoder { name: "campaign-item", check: campaign_items },
    Decoder { name: "value", check: packed::<Value> },
    Decoder { name: "plan", check: plan },
    Decoder { name: "stored-policies", check: packed::<Policies> },
    Decoder { name: "run-record", check: run_record },
    Decoder { name: "step-state", check: step_state },
    Decoder { name: "members", check: members },
    Decoder { name: "history", check: transitions },
    Decoder { name: "workflow-text", check: workflow_text },
    Decoder { name: "policies-text", check: policies_text },
    Decoder { name: "template", check: template },
    Decoder { name: "api-body", check: api_body },
    Decoder { name: "ids", check: ids },
];

/// Reads, writes what was read and reads that again.
fn again<T: Debug>(found: Option<T>, write: impl Fn(&T) -> Vec<u8>, read: impl Fn(&[u8]) -> Option<T>) -> Verdict {
    let Some(found) = found else { return Ok(false) };
    let (written, first) = (write(&found), format!("{found:?}"));
    // Written down, as a number may be none that equals itself.
    match read(&written).map(|second| format!("{second:?}")) {
        Some(second) if second == first => Ok(true),
        second => Err(format!("read {first}, written as {written:02x?}, which reads {second:?}")),
    }
}

fn both(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    verdicts.into_iter().try_fold(false, |any, verdict| verdict.map(|read| any | read))
}

/// A message in a field of a stream entry, plain or compressed.
fn stream<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> Verdict {
    let write = |value: &T| {
        let wire = codec::encode(value);
        [wire.field.as_bytes(), &wire.bytes].concat()
    };
    let read = |wire: &[u8]| codec::decode::<T>(&wire[..1], &wire[1..]).ok();
    let as_is = |field: &str| again(codec::decode::<T>(field.as_bytes(), bytes).ok(), write, read);
    let compressed = codec::compress(bytes);
    both([
        as_is(FIELD_PLAIN),
        as_is(FIELD_LZ4),
        again(codec::decode(FIELD_LZ4.as_bytes(), &compressed).ok(), write, read),
    ])
}

/// A message without a field.
fn packed<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> Verdict {
    again(codec::unpack::<T>(bytes).ok(), |value| codec::pack(value), |bytes| codec::unpack(bytes).ok())
}

fn campaign_items(bytes: &[u8]) -> Verdict {
    both([packed::<Item>(bytes), packed::<Taken>(bytes)])
}

fn outbox(bytes: &[u8]) -> Verdict {
    for (_, packed) in codec::unpack::<Outbox>(bytes).into_iter().flat_map(|found| found.runs) {
        transitions(&packed)?;
    }
    stream::<Outbox>(bytes)
}

fn transitions(bytes: &[u8]) -> Verdict {
    history::tells_of(bytes, |_| false);
    let found = Some(history::unpack(bytes)).filter(|found| !found.is_empty());
    again(found, |all| history::pack(all), |bytes| Some(history::unpack(bytes)))
}

/// A workflow as runs follow it, compressed or plain.
fn plan(bytes: &[u8]) -> Verdict {
    let unpacked = codec::decompress(bytes).ok();
    both([Some(bytes), unpacked.as_deref()].into_iter().flatten().map(|plain| {
        if let Ok(workflow) = codec::unpack::<Workflow>(plain) {
            // What passed no door may make no sense; owners and auditors catch that, and hold the run.
            drop(catch_unwind(|| Plan::compile("0".repeat(32).into(), &workflow)));
        }
        packed::<Workflow>(plain)
    }))
}

fn run_record(bytes: &[u8]) -> Verdict {
    let read = |bytes: &[u8]| {
        let mut found = record::unpack_run(bytes).ok()?;
        // It tells whether there are errors to be read, which a restored run does not know yet.
        found.has_errors = false;
        Some(found)
    };
    drop(record::suspend_packed(bytes));
    let write = |found: &record::RunRecord| {
        let workflow =
            workflow::check(r#"{"workflow": "w", "steps": {"a": {"handler": "noop"}}}"#).expect("a workflow");
        let plan = Plan::compile(found.plan.as_str().into(), &workflow);
        record::pack_run(&record::restore_run(RunId::new(PartitionId(1), 1, 1), found, None, Arc::new(plan)))
    };
    again(read(bytes), write, read)
}

fn step_state(bytes: &[u8]) -> Verdict {
    let read = |bytes: &[u8]| record::unpack_step(bytes).ok();
    again(read(bytes), record::pack_step, read)
}

/// Members of sorted sets and elements of lists.
fn members(bytes: &[u8]) -> Verdict {
    both([
        again(record::unpack_timer(bytes), |(run, timer)| record::pack_timer(*run, *timer), record::unpack_timer),
        again(record::unpack_ready(bytes), |(run, index)| record::pack_ready(*run, *index), record::unpack_ready),
        again(record::unpack_work(bytes), record::pack_work, record::unpack_work),
        again(JobId::unpack(bytes), |id| id.pack().to_vec(), JobId::unpack),
    ])
}

/// What the door takes is read back by every owner, compiles, and is taken as a value too.
fn workflow_text(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        drop(workflow::check_value(&value));
    }
    match workflow::check(text) {
        Ok(found) => {
            drop(Plan::compile("0".repeat(32).into(), &found));
            for step in found.steps.values() {
                step.with.as_ref().map(Template::parse).transpose().map_err(|e| format!("the door lets {e:?} in"))?;
            }
            packed::<Workflow>(&codec::pack(&found))
        }
        Err(report) => told(&report).map(|()| false),
    }
}

fn policies_text(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        drop(workflow::check_policies_value(&value));
    }
    match workflow::check_policies(text) {
        Ok(found) => packed::<Policies>(&codec::pack(&found)),
        Err(report) => told(&report).map(|()| false),
    }
}

/// A refusal names what is wrong.
fn told(report: &workflow::Report) -> Result<(), String> {
    let is_bounded = report.problems.len() <= workflow::PROBLEMS_MAX;
    let named = report.problems.iter().all(|problem| !problem.found.is_empty() && problem.found.len() < 2_000);
    if is_bounded && named && !report.problems.is_empty() { Ok(()) } else { Err(format!("says only {report:?}")) }
}

/// A `with`: JSON, or a text as it is. What compiles renders, or says why not.
fn template(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let with = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let Ok(template) = Template::parse(&with) else { return Ok(false) };
    let output = |value: Value| Arc::new(value);
    let name = |text| Name::new(text).expect("a legal name");
    let scope = Scope {
        input: output(
            json!({"n": 3, "f": 1.5, "text": "ü😀", "list": [1, "2", null, {"id": 7}], "deep": {"a": {"b": [true]}}}),
        ),
        outputs: BTreeMap::from([(name("a"), output(json!({"ok": true}))), (name("b"), output(json!([1, 2, 3])))]),
        run: RunScope { id: "r".into(), workflow: "w".into(), created_at: "2026-01-02T03:04:05Z".into() },
        attempt: 2,
    };
    match template.render(&scope) {
        Ok(value) => packed::<Value>(&codec::pack(&value)),
        Err(error) if error.message.len() < 4_000 => Ok(true),
        Err(error) => Err(format!("the error has {} bytes", error.message.len())),
    }
}

fn json_body<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> Verdict {
    let read = |bytes: &[u8]| serde_json::from_slice::<T>(bytes).ok();
    again(read(bytes), |value| serde_json::to_vec(value).expect("keys are texts"), read)
}

/// Every body that the API takes.
fn api_body(bytes: &[u8]) -> Verdict {
    both([
        json_body::<view::SubmitRequest>(bytes),
        json_body::<view::CommandRequest>(bytes),
        json_body::<view::RetryRequest>(bytes),
        json_body::<view::ResolveRequest>(bytes),
        json_body::<view::SuspendRequest>(bytes),
        json_body::<view::ReplayRequest>(bytes),
        json_body::<view::DiscardRequest>(bytes),
        json_body::<view::CampaignRequest>(bytes),
        json_body::<view::OpenRequest>(bytes),
        json_body::<view::AddPartitions>(bytes),
        json_body::<Filter>(bytes),
    ])
}

fn text<T: FromStr + ToString + Debug>(bytes: &[u8]) -> Verdict {
    let read = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<T>().ok();
    again(read(bytes), |value| value.to_string().into_bytes(), read)
}

/// Ids and names in their texts.
fn ids(bytes: &[u8]) -> Verdict {
    let gate = |bytes: &[u8]| Gate::parse(std::str::from_utf8(bytes).ok()?).ok();
    let name = |bytes: &[u8]| Name::new(std::str::from_utf8(bytes).ok()?).ok();
    both([
        text::<RunId>(bytes),
        text::<JobId>(bytes),
        text::<Reign>(bytes),
        text::<StreamId>(bytes),
        text::<WorkerId>(bytes),
        text::<CallId>(bytes),
        text::<PlacedId>(bytes),
        again(gate(bytes), |gate| gate.to_string().into_bytes(), gate),
        again(name(bytes), |name| name.to_string().into_bytes(), name),
    ])
}
