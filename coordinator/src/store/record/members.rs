//! Members of sorted sets and elements of lists: timers, ready steps, work items.

use stepfleet_protocol::id::{JobId, RunId};

use super::super::pack::{Reader, Writer};
use crate::machine::event::{Timer, Work, WorkKind};

/// A timer as a member of the sorted set.
pub fn pack_timer(run: RunId, timer: Timer) -> Vec<u8> {
    let mut w = Writer::default();
    match timer {
        Timer::Run => w.byte(b'R').raw(&run.bytes()),
        Timer::Retry { index, job } => w.byte(b'T').raw(&run.bytes()).raw(&index.to_be_bytes()).raw(&job.pack()),
        Timer::Attempt { index, job } => w.byte(b'A').raw(&run.bytes()).raw(&index.to_be_bytes()).raw(&job.pack()),
        Timer::Start { index, by_ms } => {
            w.byte(b'S').raw(&run.bytes()).raw(&index.to_be_bytes()).raw(&by_ms.to_be_bytes())
        }
    };
    w.out
}

/// Reads a member of the timers.
pub fn unpack_timer(bytes: &[u8]) -> Option<(RunId, Timer)> {
    let mut r = Reader::new(bytes);
    let kind = r.byte()?;
    let run = RunId::from_bytes(r.raw(16)?)?;
    if kind == b'S' {
        let index = u32::from_be_bytes(r.raw(4)?.try_into().ok()?);
        let by_ms = u64::from_be_bytes(r.raw(8)?.try_into().ok()?);
        return Some((run, Timer::Start { index, by_ms }));
    }
    let mut step = || {
        let index = u32::from_be_bytes(r.raw(4)?.try_into().ok()?);
        Some((index, JobId::unpack(r.raw(JobId::PACKED_BYTES)?)?))
    };
    let timer = match kind {
        b'R' => Timer::Run,
        b'T' => step().map(|(index, job)| Timer::Retry { index, job })?,
        b'A' => step().map(|(index, job)| Timer::Attempt { index, job })?,
        _ => return None,
    };
    Some((run, timer))
}

/// A ready step as a member of the sorted set.
pub fn pack_ready(run: RunId, index: u32) -> Vec<u8> {
    let mut w = Writer::default();
    w.raw(&run.bytes()).raw(&index.to_be_bytes());
    w.out
}

/// Reads a member of a ready set.
pub fn unpack_ready(bytes: &[u8]) -> Option<(RunId, u32)> {
    let mut r = Reader::new(bytes);
    let run = RunId::from_bytes(r.raw(16)?)?;
    let index = u32::from_be_bytes(r.raw(4)?.try_into().ok()?);
    Some((run, index))
}

/// Order of the ready set: the most urgent first, then the one that has waited longest.
pub fn ready_score(priority: u8, now_ms: u64) -> u64 {
    // 2^44 ms last until the year 2527, and the sum stays below 2^53, where a double is exact.
    u64::from(9u8.saturating_sub(priority)) * (1 << 44) + now_ms
}

/// The priority in a score of the ready set.
pub fn priority_of(score: u64) -> u8 {
    9u8.saturating_sub((score >> 44) as u8)
}

/// A work item as an element of the list.
pub fn pack_work(work: &Work) -> Vec<u8> {
    let (kind, of) = match work.kind {
        WorkKind::Roots => (0, 0),
        WorkKind::Fan { of } => (1, of),
        WorkKind::Stop => (2, 0),
        WorkKind::Resume => (3, 0),
        WorkKind::Reopen => (4, 0),
        WorkKind::Halt => (5, 0),
        WorkKind::Skip { of } => (6, of),
        WorkKind::Rewind { of } => (7, of),
        WorkKind::Restart { of } => (8, of),
        WorkKind::Recount { from } => (9, from),
    };
    let mut w = Writer::default();
    w.raw(&work.run.bytes()).byte(kind).number(of.into()).number(work.next.into());
    w.out
}

/// Reads an element of the list of work items.
pub fn unpack_work(bytes: &[u8]) -> Option<Work> {
    let mut r = Reader::new(bytes);
    let run = RunId::from_bytes(r.raw(16)?)?;
    let (kind, of, next) = (r.byte()?, r.small()?, r.small()?);
    let kind = match kind {
        0 => WorkKind::Roots,
        1 => WorkKind::Fan { of },
        2 => WorkKind::Stop,
        3 => WorkKind::Resume,
        4 => WorkKind::Reopen,
        5 => WorkKind::Halt,
        6 => WorkKind::Skip { of },
        7 => WorkKind::Rewind { of },
        8 => WorkKind::Restart { of },
        9 => WorkKind::Recount { from: of },
        _ => return None,
    };
    Some(Work { run, kind, next })
}
