//! The history of a run: every transition, packed, one append per run and commit.
//!
//! A chunk is a version byte, its length and its records. The outbox carries the same chunks. Records of one chunk are near
//! each other in time and mostly of one worker, so each says only what differs from the one before it.

use std::sync::Arc;

use stepfleet_protocol::{id::WorkerId, state::State};

use super::pack::{Reader, Writer};
use crate::machine::decision::{Transition, Why};

const VERSION: u8 = 2;

/// Bits of a record's flags.
mod flag {
    /// A worker is named, or it is the one named last in this chunk.
    pub(super) const WORKER: u8 = 1;
    pub(super) const SAME_WORKER: u8 = 1 << 1;
    pub(super) const ACTOR: u8 = 1 << 2;
    pub(super) const NOTE: u8 = 1 << 3;
    /// The attempt is 1, or it is written; else it is 0.
    pub(super) const FIRST: u8 = 1 << 4;
    pub(super) const ATTEMPT: u8 = 1 << 5;
    /// The time differs from that of the record before.
    pub(super) const TIME: u8 = 1 << 6;
}

/// Packs the transitions of one run and commit.
pub fn pack(transitions: &[Transition]) -> Vec<u8> {
    let mut body = Writer { out: Vec::with_capacity(transitions.len() * 8 + 32) };
    let (mut at_ms, mut worker) = (0, None);
    for t in transitions {
        let (same_worker, delta) = (t.worker == worker, t.at_ms.wrapping_sub(at_ms) as i64);
        let flags = match &t.worker {
            None => 0,
            Some(_) if same_worker => flag::SAME_WORKER,
            Some(_) => flag::WORKER,
        } | if t.actor.is_some() { flag::ACTOR } else { 0 }
            | if t.note.is_some() { flag::NOTE } else { 0 }
            | match t.attempt {
                0 => 0,
                1 => flag::FIRST,
                _ => flag::ATTEMPT,
            }
            | if delta != 0 { flag::TIME } else { 0 };
        body.byte(flags).number(t.step.map_or(0, |s| u64::from(s) + 1));
        body.byte((t.from as u8) << 4 | t.to as u8).byte(t.why as u8);
        if delta != 0 {
            body.number(zigzag(delta));
            at_ms = t.at_ms;
        }
        if flags & flag::ATTEMPT != 0 {
            body.number(t.attempt.into());
        }
        if flags & flag::WORKER != 0 {
            body.text(t.worker.as_ref().map_or("", WorkerId::as_str).as_bytes());
            worker.clone_from(&t.worker);
        }
        for text in [&t.actor, &t.note].into_iter().flatten() {
            body.text(text.as_bytes());
        }
    }
    let mut chunk = Writer { out: Vec::with_capacity(body.out.len() + 4) };
    chunk.byte(VERSION).text(&body.out);
    chunk.out
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Reads a history. A chunk of an unknown version is skipped; a broken tail ends the reading.
pub fn unpack(bytes: &[u8]) -> Vec<Transition> {
    let mut out = Vec::new();
    let mut before = Before::default();
    each(bytes, |begins, record| {
        if begins {
            before = Before::default();
        }
        let transition = before.transition(record);
        let good = transition.is_some();
        out.extend(transition);
        good
    });
    out
}

/// Whether something in it happened for one of these reasons. It makes nothing: a look at every commit must cost little.
pub fn tells_of(bytes: &[u8], wanted: impl Fn(Why) -> bool) -> bool {
    let mut found = false;
    each(bytes, |_, record| {
        found |= wanted(record.why);
        !found
    });
    found
}

/// When a history began, in Unix milliseconds; its first bytes are enough.
pub fn began_ms(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    let known = reader.byte()? == VERSION;
    reader.number()?;
    known.then(|| Record::read(&mut reader))?.map(|record| record.delta as u64)
}

/// Shows each record, and whether it begins its chunk, until `look` has seen enough of the chunk.
fn each<'a>(bytes: &'a [u8], mut look: impl FnMut(bool, Record<'a>) -> bool) {
    let mut chunks = Reader::new(bytes);
    while let (Some(version), Some(body)) = (chunks.byte(), chunks.text()) {
        let (mut records, mut begins) = (Reader::new(body), true);
        while version == VERSION && !records.left.is_empty() {
            let Some(record) = Record::read(&mut records) else { break };
            if !look(std::mem::take(&mut begins), record) {
                break;
            }
        }
    }
}

/// A record as it is packed.
struct Record<'a> {
    flags: u8,
    step: u64,
    states: u8,
    why: Why,
    delta: i64,
    attempt: u32,
    worker: Option<&'a [u8]>,
    actor: Option<&'a [u8]>,
    note: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let flags = r.byte()?;
        let (step, states, why) = (r.number()?, r.byte()?, Why::from_u8(r.byte()?)?);
        let delta = if flags & flag::TIME != 0 { unzigzag(r.number()?) } else { 0 };
        let attempt = match flags & (flag::FIRST | flag::ATTEMPT) {
            0 => 0,
            flag::FIRST => 1,
            _ => r.small()?,
        };
        let mut text = |bit: u8| if flags & bit == 0 { Some(None) } else { r.text().map(Some) };
        let (worker, actor, note) = (text(flag::WORKER)?, text(flag::ACTOR)?, text(flag::NOTE)?);
        Some(Self { flags, step, states, why, delta, attempt, worker, actor, note })
    }
}

/// What the records so far have said.
#[derive(Default)]
struct Before {
    at_ms: u64,
    worker: Option<WorkerId>,
}

impl Before {
    fn transition(&mut self, record: Record<'_>) -> Option<Transition> {
        self.at_ms = self.at_ms.wrapping_add(record.delta as u64);
        if let Some(worker) = record.worker {
            self.worker = std::str::from_utf8(worker).ok()?.parse().ok();
        }
        let text = |bytes: Option<&[u8]>| -> Option<Option<Arc<str>>> {
            bytes.map(|bytes| std::str::from_utf8(bytes).ok().map(Arc::from)).map_or(Some(None), |text| text.map(Some))
        };
        let named = record.flags & (flag::WORKER | flag::SAME_WORKER) != 0;
        Some(Transition {
            step: record.step.checked_sub(1).map(|s| s as u32),
            from: State::from_u8(record.states >> 4)?,
            to: State::from_u8(record.states & 0x0f)?,
            at_ms: self.at_ms,
            attempt: record.attempt,
            why: record.why,
            worker: self.worker.clone().filter(|_| named),
            actor: text(record.actor)?,
            note: text(record.note)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Transition> {
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
        let bare = Transition {
            step: None,
            from: State::Created,
            to: State::Queued,
            attempt: 0,
            why: Why::Submitted,
            worker: None,
            actor: None,
            note: None,
            ..full.clone()
        };
        let again = Transition { at_ms: full.at_ms - 3, attempt: 1, actor: None, note: None, ..full.clone() };
        let other = Transition { worker: "v@0000000000fe".parse().ok(), ..again.clone() };
        vec![bare.clone(), full.clone(), again, bare, other, full]
    }

    #[test]
    fn whether_it_tells_of_a_reason_is_seen_without_reading_it() {
        let packed = [pack(&sample()), pack(&sample()[..1])].concat();
        for why in Why::ALL {
            let told = unpack(&packed).iter().any(|transition| transition.why == why);
            assert_eq!(tells_of(&packed, |found| found == why), told, "{why:?}");
        }
        assert!(!tells_of(b"\x02\xff", |_| true), "a broken tail tells nothing");
    }

    #[test]
    fn a_step_that_went_well_takes_few_bytes() {
        let one = |from, to, why, worker: Option<&str>| Transition {
            step: Some(5),
            from,
            to,
            at_ms: 1_800_000_000_000,
            attempt: 1,
            why,
            worker: worker.and_then(|w| w.parse().ok()),
            actor: None,
            note: None,
        };
        let worker = Some("worker-1@0198c2f46f5c");
        let usual = [
            one(State::Queued, State::Processing, Why::Begun, worker),
            one(State::Processing, State::Completed, Why::Done, worker),
            one(State::Created, State::Queued, Why::NeedsMet, None),
        ];
        assert!(pack(&usual).len() <= 45, "{} bytes", pack(&usual).len());
    }

    #[test]
    fn chunks_read_back_in_order_and_unknown_versions_are_skipped() {
        let mut bytes = pack(&sample());
        bytes.extend([9, 2, 1, 1]);
        bytes.extend(pack(&sample()));
        assert_eq!(unpack(&bytes), [sample(), sample()].concat());
    }

    #[test]
    fn the_first_bytes_tell_when_it_began() {
        let packed = pack(&sample());
        assert_eq!(began_ms(&packed[..20]), Some(sample()[0].at_ms));
        assert_eq!((began_ms(&packed[..4]), began_ms(&[9; 20]), began_ms(&[])), (None, None, None));
    }

    #[test]
    fn a_broken_tail_ends_the_reading_without_panic() {
        let whole = pack(&sample());
        for end in 0..whole.len() {
            assert!(unpack(&whole[..end]).len() <= sample().len());
        }
    }
}
