//! W3C trace context: where in a trace something happens, and the ids of spans that several processes know without telling
//! each other, because they follow from the ids of jobs and runs.
//!
//! Format: <https://www.w3.org/TR/trace-context/#traceparent-header>, version 00.

use std::{fmt, str::FromStr};

use crate::id::{JobId, RunId};

/// Bit of the flags: the trace is recorded.
const SAMPLED: u8 = 1;

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad traceparent: allowed is `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in small letters, no id all zeros"
)]
pub struct TraceError;

/// A span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not all zeros.
    pub trace: [u8; 16],
    /// The span; not all zeros.
    pub span: [u8; 8],
    /// Flags of the trace, of which only the first bit is known: it is recorded.
    pub flags: u8,
}

impl TraceContext {
    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn at(&self, span: [u8; 8]) -> Self {
        Self { span, ..*self }
    }

    /// The trace's id in hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.trace))
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = TraceError;
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let read = || {
            let mut parts = text.split('-');
            let mut part = |len: usize| parts.next().filter(|part| part.len() == len && is_hex(part));
            let (_, trace, span, flags) = (part(2).filter(|v| *v == "00")?, part(32)?, part(16)?, part(2)?);
            let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
            let span = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
            let flags = u8::from_str_radix(flags, 16).ok()?;
            let context = Self { trace: trace.to_be_bytes(), span: span.to_be_bytes(), flags };
            parts.next().is_none().then_some(context)
        };
        read().ok_or(TraceError)
    }
}

/// The span in which a job was sent.
pub fn span_of_job(job: &JobId) -> [u8; 8] {
    let number = job.seq.rotate_left(32) ^ u64::from(job.n) ^ job.reign.counter.rotate_left(16);
    span(mixed(job.reign.random ^ mixed(number)))
}

/// The span of a run, from its submit to its end.
pub fn span_of_run(run: &RunId) -> [u8; 8] {
    let bytes = run.bytes();
    let (high, low) = bytes.split_at(8);
    let half = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    span(mixed(half(low) ^ mixed(half(high))))
}

/// No span has the id 0.
fn span(id: u64) -> [u8; 8] {
    id.max(1).to_be_bytes()
}

/// Spreads every bit over all others: the last steps of `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014).
fn mixed(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::id::{PartitionId, Reign};

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_reads_back() {
        let context: TraceContext = TEXT.parse().expect("it is one");
        assert_eq!(context.to_string(), TEXT);
        assert!(context.is_sampled());
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let quiet: TraceContext = TEXT.replace("-01", "-00").parse().expect("it is one");
        assert!(!quiet.is_sampled());
        assert_eq!(context.at([1; 8]).to_string(), TEXT.replace("b7ad6b7169203331", "0101010101010101"));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for bad in [
            "",
            "00",
            "00-a-b-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(TraceError), "{bad}");
        }
    }

    #[test]
    fn jobs_and_runs_have_spans_of_their_own() {
        let mut seen = HashSet::new();
        for counter in 1..4 {
            for (seq, n) in (0..200).flat_map(|seq| (0..20).map(move |n| (seq, n))) {
                assert!(seen.insert(span_of_job(&JobId { reign: Reign { counter, random: 7 }, seq, n })));
            }
        }
        for random in 0..1_000 {
            assert!(seen.insert(span_of_run(&RunId::new(PartitionId(3), 1_800_000_000_000, random))));
        }
    }
}
