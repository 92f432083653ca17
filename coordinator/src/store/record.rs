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
#[cfg(test)]
mod tests;

pub use members::*;

use super::pack::{Reader, Writer};
use crate::machine::{
    decision::Cause,
    fingerprint::Fingerprint,
    plan::Plan,
    run::{AttemptError, Ending, Run, Step, Undoing},
};

/// The version that is written for everything that the first program knew.
pub const VERSION: u8 = 1;
/// The newest version that is read. It is written only where a record says something that version 1 cannot say, so that an older
/// owner releases the partition instead of misreading it.
pub const NEWEST: u8 = 2;
/// Field of a run hash with the packed record.
pub const FIELD_RECORD: &str = "r";
/// Field of a run hash with the trace context.
pub const FIELD_TRACE: &str = "t";

/// Why stored bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer program.
    #[error("{what} of version {version}, newer than {NEWEST}: this program must be upgraded")]
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
    /// Steps among them without which the run goes on.
    pub tolerated: u32,
    /// Steps that are skipped.
    pub skipped: u32,
    /// Steps that are active.
    pub active: u32,
    /// How far the undoing of the run is.
    pub undoing: Undoing,
    /// It is being taken back to an earlier step.
    pub rewinding: bool,
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
    let newest = run.tolerated > 0 || run.skipped > 0 || run.undoing != Undoing::None || run.rewinding;
    w.byte(if newest { NEWEST } else { VERSION }).byte(run.state as u8).byte(flags).raw(&plan_bytes(&run.plan.hash));
    if let Some(version) = run.version {
        w.number(version.into());
    }
    w.number(run.finished_ms).number(run.completed.into()).number(run.failed.into());
    w.number(run.active.into()).number(run.work.into());
    if newest {
        w.byte(run.undoing as u8 | u8::from(run.rewinding) << 2);
        w.number(run.tolerated.into()).number(run.skipped.into());
    }
    w.out
}

/// Reads the record of a run.
///
/// # Errors
/// When it is broken or newer.
pub fn unpack_run(bytes: &[u8]) -> Result<RunRecord, RecordError> {
    let mut r = Reader::new(bytes);
    let version = match r.byte() {
        Some(version @ VERSION..=NEWEST) => version,
        Some(version) if version > NEWEST => return Err(RecordError::Newer { what: "run record", version }),
        _ => return Err(RecordError::Broken("run record")),
    };
    let newest = version == NEWEST;
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
        let mut record = RunRecord {
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
            tolerated: 0,
            skipped: 0,
            active: r.small()?,
            undoing: Undoing::None,
            rewinding: false,
            work: r.small()?,
        };
        if newest {
            let flags = r.byte()?;
            record.undoing = match flags & 3 {
                0 => Undoing::None,
                1 => Undoing::Running,
                2 => Undoing::Done,
                _ => Undoing::Failed,
            };
            record.rewinding = flags & 4 != 0;
            (record.tolerated, record.skipped) = (r.small()?, r.small()?);
        }
        Some(record)
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
    run.tolerated = record.tolerated;
    run.skipped = record.skipped;
    run.undoing = record.undoing;
    run.rewinding = record.rewinding;
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
    let more = (step.losses & 0x0f)
        | u8::from(step.generation > 1) << 4
        | u8::from(step.spent > 0) << 5
        | u8::from(step.tolerated) << 6
        | u8::from(step.start_by_ms > 0) << 7;
    let version = if step.tolerated || step.start_by_ms > 0 { NEWEST } else { VERSION };
    let mut w = Writer::default();
    w.byte(version << 4 | step.state as u8).byte(flags).byte(more);
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
    if step.start_by_ms > 0 {
        w.number(step.start_by_ms);
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
        VERSION..=NEWEST => {}
        version if version > NEWEST => return Err(RecordError::Newer { what: "step state", version }),
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
            step.generation = r.small().filter(|generation| *generation > 0)?;
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
        step.tolerated = more & 0x40 != 0;
        if more & 0x80 != 0 {
            step.start_by_ms = r.number()?;
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
