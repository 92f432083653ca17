//! State as it is stored: run records, step states, timers, work items, members of the ready set, dead letters.
//!
//! Packed binary with a version in the first byte, small enough (64 bytes) that hashes stay compact in Redis. A record of a
//! newer version is an error that makes the owner release the partition.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    failure::Category,
    id::{JobId, Reign, RunId, StreamId},
    name::Name,
    state::State,
    value::Input,
};

mod members;

pub use members::*;

use super::pack::{Reader, Writer};
use crate::machine::{
    decision::Cause,
    fingerprint::Fingerprint,
    plan::Plan,
    run::{AttemptError, Ending, Run, Step},
};

/// The version that is written, and the newest that is read.
pub const VERSION: u8 = 1;
/// Field of a run hash with the packed record.
pub const FIELD_RECORD: &str = "r";
/// Field of a run hash with the trace context.
pub const FIELD_TRACE: &str = "t";

/// Why stored bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer program.
    #[error("{what} of version {version}, newer than {VERSION}: this program must be upgraded")]
    Newer {
        /// Which record.
        what: &'static str,
        /// Its version.
        version: u8,
    },
    /// Not a record at all.
    #[error("{0} is broken")]
    Broken(&'static str),
    /// Bytes that no rule foresees.
    #[error("reading it panicked")]
    Panicked,
}

/// The record of a run without its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    /// Key of the plan.
    pub plan: String,
    /// The registered version.
    pub version: Option<u32>,
    /// Where it stands.
    pub state: State,
    /// Whether it is being stopped.
    pub ending: Option<Ending>,
    /// A person has to look.
    pub review: bool,
    /// Whether there is an input.
    pub has_input: bool,
    /// Whether there are failed attempts to read.
    pub has_errors: bool,
    /// When it ended; 0 while it goes on.
    pub finished_ms: u64,
    /// Steps that are completed.
    pub completed: u32,
    /// Steps that gave up.
    pub failed: u32,
    /// Steps that are active.
    pub active: u32,
    /// Unfinished work items.
    pub work: u32,
}

const PLAN_BYTES: usize = 16;

/// Packs the record of a run.
pub fn pack_run(run: &Run) -> Vec<u8> {
    let ending = run.ending.map_or(0, |e| e as u8);
    let flags = u8::from(run.has_input)
        | u8::from(run.review) << 1
        | u8::from(run.version.is_some()) << 2
        | u8::from(!run.errors.is_empty()) << 3
        | ending << 4;
    let mut w = Writer::default();
    w.byte(VERSION).byte(run.state as u8).byte(flags).raw(&plan_bytes(&run.plan.hash));
    if let Some(version) = run.version {
        w.number(version.into());
    }
    w.number(run.finished_ms).number(run.completed.into()).number(run.failed.into());
    w.number(run.active.into()).number(run.work.into());
    w.out
}

/// Reads the record of a run.
///
/// # Errors
/// When it is broken or newer.
pub fn unpack_run(bytes: &[u8]) -> Result<RunRecord, RecordError> {
    let mut r = Reader::new(bytes);
    match r.byte() {
        Some(VERSION) => {}
        Some(version) if version > VERSION => return Err(RecordError::Newer { what: "run record", version }),
        _ => return Err(RecordError::Broken("run record")),
    }
    let mut read = || {
        let state = State::from_u8(r.byte()?)?;
        let flags = r.byte()?;
        let plan = hex(r.raw(PLAN_BYTES)?);
        let version = if flags & 4 == 0 { None } else { Some(r.small()?) };
        let ending = match flags >> 4 {
            0 => None,
            1 => Some(Ending::Cancelled),
            2 => Some(Ending::TimedOut),
            _ => return None,
        };
        Some(RunRecord {
            plan,
            version,
            state,
            ending,
            has_input: flags & 1 != 0,
            review: flags & 2 != 0,
            has_errors: flags & 8 != 0,
            finished_ms: r.number()?,
            completed: r.small()?,
            failed: r.small()?,
            active: r.small()?,
            work: r.small()?,
        })
    };
    read().ok_or(RecordError::Broken("run record"))
}

/// The packed record of a run that is held although nothing but its record can be read, with the state it had; none if a run
/// in that state cannot be held.
pub fn suspend_packed(record: &[u8]) -> Option<(State, Vec<u8>)> {
    let state = unpack_run(record).ok()?.state;
    if !matches!(state, State::Queued | State::Processing | State::Waiting) {
        return None;
    }
    let mut packed = record.to_vec();
    packed[1] = State::Suspended as u8;
    Some((state, packed))
}

/// A run from its record, before its steps are put in place.
pub fn restore_run(id: RunId, record: &RunRecord, trace: Option<&[u8]>, plan: Arc<Plan>) -> Run {
    let mut run = Run::new(id, plan);
    run.version = record.version;
    run.state = record.state;
    run.ending = record.ending;
    run.review = record.review;
    run.has_input = record.has_input;
    run.traceparent = trace.and_then(|t| std::str::from_utf8(t).ok()).map(Arc::from);
    run.finished_ms = record.finished_ms;
    run.completed = record.completed;
    run.failed = record.failed;
    run.active = record.active;
    run.work = record.work;
    run
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The key of a plan: the first 16 bytes of a SHA-256 in hex.
pub fn plan_hash(stored: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(stored)[..PLAN_BYTES])
}

fn plan_bytes(hash: &str) -> [u8; PLAN_BYTES] {
    let mut out = [0; PLAN_BYTES];
    for (byte, digits) in out.iter_mut().zip(hash.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).expect("the door checked the hash");
        *byte = u8::from_str_radix(digits, 16).expect("the door checked the hash");
    }
    out
}

/// Whether `text` is a plan key.
pub fn is_plan_hash(text: &str) -> bool {
    text.len() == 2 * PLAN_BYTES && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Packs the state of a step: at most 64 bytes.
pub fn pack_step(step: &Step) -> Vec<u8> {
    let flags = u8::from(step.job.is_some())
        | u8::from(step.in_flight) << 1
        | u8::from(step.stopping) << 2
        | u8::from(step.timed) << 3
        | u8::from(step.patched) << 4
        | u8::from(step.has_output) << 5
        | u8::from(step.unhandled_ms > 0) << 6
        | u8::from(step.letter.is_some()) << 7;
    let more = (step.losses & 0x0f) | u8::from(step.generation > 1) << 4 | u8::from(step.spent > 0) << 5;
    let mut w = Writer::default();
    w.byte(VERSION << 4 | step.state as u8).byte(flags).byte(more);
    w.number(step.attempts.into()).number(step.needs_left.into());
    if step.generation > 1 {
        w.number(step.generation.into());
    }
    if step.spent > 0 {
        w.number(step.spent.into());
    }
    if let Some(job) = step.job {
        w.number(job.reign.counter).raw(&job.reign.random.to_be_bytes()).number(job.seq).number(job.n.into());
    }
    if step.unhandled_ms > 0 {
        w.number(step.unhandled_ms);
    }
    if let Some(letter) = step.letter {
        w.number(letter.ms).number(letter.seq);
    }
    w.out
}

/// Reads the state of a step.
///
/// # Errors
/// When it is broken or newer.
pub fn unpack_step(bytes: &[u8]) -> Result<Step, RecordError> {
    let mut r = Reader::new(bytes);
    let first = r.byte().ok_or(RecordError::Broken("step state"))?;
    match first >> 4 {
        VERSION => {}
        version if version > VERSION => return Err(RecordError::Newer { what: "step state", version }),
        _ => return Err(RecordError::Broken("step state")),
    }
    let mut read = || {
        let (flags, more) = (r.byte()?, r.byte()?);
        let has = |bit: u8| flags & (1 << bit) != 0;
        let mut step = Step::fresh(0);
        step.state = State::from_u8(first & 0x0f)?;
        step.losses = more & 0x0f;
        step.attempts = r.small()?;
        step.needs_left = r.small()?;
        if more & 0x10 != 0 {
            step.generation = r.small()?;
        }
        if more & 0x20 != 0 {
            step.spent = r.small()?;
        }
        if has(0) {
            let counter = r.number()?;
            let random = u64::from_be_bytes(r.raw(8)?.try_into().ok()?);
            step.job = Some(JobId { reign: Reign { counter, random }, seq: r.number()?, n: r.small()? });
        }
        (step.in_flight, step.stopping, step.timed) = (has(1), has(2), has(3));
        (step.patched, step.has_output) = (has(4), has(5));
        if has(6) {
            step.unhandled_ms = r.number()?;
        }
        if has(7) {
            step.letter = Some(StreamId { ms: r.number()?, seq: r.number()? });
        }
        Some(step)
    };
    read().ok_or(RecordError::Broken("step state"))
}

/// A dead letter in its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Version of the record.
    pub v: u8,
    /// The run.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: Name,
    /// Its registered version.
    #[serde(default)]
    pub version: Option<u32>,
    /// The step's name.
    pub step: Name,
    /// The step's number.
    pub index: u32,
    /// The step's generation.
    pub generation: u32,
    /// The handler.
    pub handler: Name,
    /// The queue.
    pub queue: Name,
    /// Why it gave up.
    pub cause: Cause,
    /// Category of the last failure.
    pub category: Category,
    /// Every failed attempt of the budget, oldest first.
    pub attempts: Vec<AttemptError>,
    /// The input of the last job; none if it could not be made.
    #[serde(default)]
    pub input: Option<Input>,
    /// When, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// Its group; none in a letter of an older version, which is in no index.
    #[serde(default)]
    pub fingerprint: Option<Fingerprint>,
    /// Earlier letters of the same step: how often it came back.
    #[serde(default)]
    pub returns: u32,
}

impl DeadLetter {
    /// Its group, also of a letter of an older version; none without an attempt.
    pub fn group(&self) -> Option<Fingerprint> {
        let last = self.attempts.last();
        self.fingerprint.or_else(|| last.map(|last| Fingerprint::of(self.handler.as_str(), &last.failure)))
    }

    /// Message of the last failure.
    pub fn message(&self) -> &str {
        self.attempts.last().map_or("", |last| &last.failure.message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stepfleet_protocol::id::PartitionId;

    use super::*;
    use crate::machine::event::{Timer, Work, WorkKind};

    fn job() -> impl Strategy<Value = JobId> {
        // As large as they get in centuries: a reign every second, a million commits a second, a full batch.
        (0u64..1 << 34, any::<u64>(), 0u64..1 << 55, 0u32..1 << 24).prop_map(|(counter, random, seq, n)| JobId {
            reign: Reign { counter, random },
            seq,
            n,
        })
    }

    proptest! {
        #[test]
        fn steps_read_back_and_stay_compact(
            state in 0u8..10, flags: [bool; 5], attempts in 0u32..2_000, spent in 0u32..2_000, losses in 0u8..4,
            generation in 1u32..100, needs_left in 0u32..100_000, job in proptest::option::of(job()),
            letter in proptest::option::of((0u64..1 << 44, any::<u64>())), unhandled_ms in 0u64..1 << 44,
        ) {
            let mut step = Step::fresh(needs_left);
            step.state = State::from_u8(state).expect("a state");
            (step.attempts, step.spent, step.losses, step.generation) = (attempts, spent, losses, generation);
            [step.in_flight, step.stopping, step.timed, step.patched, step.has_output] = flags;
            (step.job, step.unhandled_ms) = (job, unhandled_ms);
            step.letter = letter.map(|(ms, seq)| StreamId { ms, seq });
            let packed = pack_step(&step);
            prop_assert!(packed.len() <= 64, "{} bytes", packed.len());
            prop_assert_eq!(unpack_step(&packed), Ok(step));
        }

        #[test]
        fn broken_records_are_refused_without_panic(bytes: Vec<u8>) {
            let _ = (unpack_step(&bytes), unpack_run(&bytes), unpack_timer(&bytes), unpack_ready(&bytes), unpack_work(&bytes));
        }

        #[test]
        fn timers_and_work_read_back(random: u64, index: u32, job in job(), next: u32, of: u32) {
            let run = RunId::new(PartitionId(9), 77, random);
            for timer in [Timer::Run, Timer::Retry { index, job }, Timer::Attempt { index, job }] {
                prop_assert_eq!(unpack_timer(&pack_timer(run, timer)), Some((run, timer)));
            }
            prop_assert_eq!(unpack_ready(&pack_ready(run, index)), Some((run, index)));
            for kind in [WorkKind::Roots, WorkKind::Fan { of }, WorkKind::Stop, WorkKind::Resume, WorkKind::Reopen, WorkKind::Halt] {
                let work = Work { run, kind, next };
                prop_assert_eq!(unpack_work(&pack_work(&work)), Some(work));
            }
        }
    }

    #[test]
    fn a_newer_record_says_so() {
        assert_eq!(unpack_run(&[2]), Err(RecordError::Newer { what: "run record", version: 2 }));
        assert_eq!(unpack_step(&[0x20]), Err(RecordError::Newer { what: "step state", version: 2 }));
    }

    #[test]
    fn the_urgent_come_first_and_then_the_oldest() {
        let year_2500 = 16_725_225_600_000;
        assert!(ready_score(9, year_2500) < ready_score(8, 0));
        assert!(ready_score(5, 1) < ready_score(5, 2));
        assert_eq!(priority_of(ready_score(7, year_2500)), 7);
        assert!(ready_score(0, year_2500) < 1 << 53);
    }
}
