//! The history of a run: every transition, packed, one append per run and commit.
//!
//! A chunk is a version byte, its length and its records. The outbox carries the same chunks.

use std::sync::Arc;

use stepfleet_protocol::state::State;

use super::pack::{Reader, Writer};
use crate::machine::decision::{Transition, Why};

const VERSION: u8 = 1;

/// Packs the transitions of one run and commit.
pub fn pack(transitions: &[Transition]) -> Vec<u8> {
    let mut body = Writer { out: Vec::with_capacity(transitions.len() * 16) };
    for t in transitions {
        let flags = u8::from(t.worker.is_some()) | u8::from(t.actor.is_some()) << 1 | u8::from(t.note.is_some()) << 2;
        body.number(t.step.map_or(0, |s| u64::from(s) + 1)).byte((t.from as u8) << 4 | t.to as u8);
        body.byte(t.why as u8).number(t.at_ms).number(t.attempt.into()).byte(flags);
        if let Some(worker) = &t.worker {
            body.text(worker.as_str().as_bytes());
        }
        for text in [&t.actor, &t.note].into_iter().flatten() {
            body.text(text.as_bytes());
        }
    }
    let mut chunk = Writer { out: Vec::with_capacity(body.out.len() + 4) };
    chunk.byte(VERSION).text(&body.out);
    chunk.out
}

/// Reads a history. A chunk of an unknown version is skipped; a broken tail ends the reading.
pub fn unpack(bytes: &[u8]) -> Vec<Transition> {
    let mut out = Vec::new();
    let mut chunks = Reader::new(bytes);
    while let (Some(version), Some(body)) = (chunks.byte(), chunks.text()) {
        let mut records = Reader::new(body);
        while version == VERSION && !records.left.is_empty() {
            let Some(transition) = unpack_one(&mut records) else { break };
            out.push(transition);
        }
    }
    out
}

fn unpack_one(r: &mut Reader) -> Option<Transition> {
    let step = r.number()?;
    let states = r.byte()?;
    let why = Why::from_u8(r.byte()?)?;
    let (at_ms, attempt, flags) = (r.number()?, r.small()?, r.byte()?);
    let mut text = |bit: u8| -> Option<Option<&str>> {
        if flags & bit == 0 { Some(None) } else { Some(Some(std::str::from_utf8(r.text()?).ok()?)) }
    };
    let (worker, actor, note) = (text(1)?, text(2)?, text(4)?);
    Some(Transition {
        step: step.checked_sub(1).map(|s| s as u32),
        from: State::from_u8(states >> 4)?,
        to: State::from_u8(states & 0x0f)?,
        at_ms,
        attempt,
        why,
        worker: worker.and_then(|w| w.parse().ok()),
        actor: actor.map(Arc::from),
        note: note.map(Arc::from),
    })
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
        vec![bare, full]
    }

    #[test]
    fn chunks_read_back_in_order_and_unknown_versions_are_skipped() {
        let mut bytes = pack(&sample());
        bytes.extend([9, 2, 1, 1]);
        bytes.extend(pack(&sample()));
        assert_eq!(unpack(&bytes), [sample(), sample()].concat());
    }

    #[test]
    fn a_broken_tail_ends_the_reading_without_panic() {
        let whole = pack(&sample());
        for end in 0..whole.len() {
            assert!(unpack(&whole[..end]).len() <= 2);
        }
    }
}
