//! Inputs for decoders: arbitrary bytes, and kept samples that were changed a little.

use proptest::{prelude::*, sample::Index};

/// Longest arbitrary input.
const ARBITRARY_BYTES_MAX: usize = 600;
/// Longest input that changes make of a sample: repeats multiply.
const CHANGED_BYTES_MAX: usize = 64 << 10;

/// What readers of text stumble over, and heads of MessagePack that promise very much.
const TOKENS: [&[u8]; 40] = [
    b"${{",
    b"}}",
    b"$${{",
    b"- ",
    b": ",
    b"\n",
    b"\n  ",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!binary ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"'",
    b"|\n",
    b"---\n",
    b"? ",
    b"null",
    b"1e999",
    b"-0",
    b"9223372036854775808",
    b"\0",
    b"\xff\xfe",
    "\u{202e}".as_bytes(),
    b"input.",
    b"steps.a.output",
    b".map(x, ",
    b"(((((((((((((((((((((((((((((((",
    b"[[[[[[[[[[[[[[[[",
    b"needs",
    b"retry",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
];

/// One change.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// One bit is another.
    Flip(Index, u8),
    /// One byte is another.
    Set(Index, u8),
    /// The rest is missing.
    Cut(Index),
    /// Some bytes are missing.
    Drop(Index, u8),
    /// Some bytes come on top.
    Insert(Index, Vec<u8>),
    /// A token comes on top.
    Token(Index, Index),
    /// A piece is there many times.
    Repeat(Index, u8, u8),
    /// A piece of another sample stands in place of one of this.
    Splice(Index, Index, Index, u8),
}

/// An input.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// No sample is behind it.
    Arbitrary(Vec<u8>),
    /// A sample with changes.
    Changed(Index, Vec<Change>),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        at().prop_map(Change::Cut),
        (at(), 1u8..40).prop_map(|(at, bytes)| Change::Drop(at, bytes)),
        (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), at()).prop_map(|(at, token)| Change::Token(at, token)),
        (at(), 1u8..60, 1u8..80).prop_map(|(at, bytes, times)| Change::Repeat(at, bytes, times)),
        (at(), at(), at(), 1u8..80).prop_map(|(at, of, from, bytes)| Change::Splice(at, of, from, bytes)),
    ]
}

/// Every input.
pub(crate) fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..ARBITRARY_BYTES_MAX).prop_map(Input::Arbitrary),
        6 => (any::<Index>(), prop::collection::vec(change(), 0..6)).prop_map(|(of, all)| Input::Changed(of, all)),
    ]
}

impl Input {
    /// Its bytes, over these samples.
    pub(crate) fn bytes(&self, samples: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Arbitrary(bytes) => bytes.clone(),
            Self::Changed(of, changes) => {
                let mut bytes = samples[of.index(samples.len())].clone();
                for change in changes {
                    apply(change, &mut bytes, samples);
                    bytes.truncate(CHANGED_BYTES_MAX);
                }
                bytes
            }
        }
    }
}

fn apply(change: &Change, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
    let place = |at: &Index, bytes: &Vec<u8>| at.index(bytes.len() + 1);
    let piece = |at: usize, length: u8, bytes: &[u8]| at..(at + usize::from(length)).min(bytes.len());
    match change {
        Change::Flip(at, bit) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Change::Set(at, byte) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Change::Flip(..) | Change::Set(..) => {}
        Change::Cut(at) => bytes.truncate(place(at, bytes)),
        Change::Drop(at, length) => drop(bytes.drain(piece(place(at, bytes), *length, bytes))),
        Change::Insert(at, new) => {
            let at = place(at, bytes);
            bytes.splice(at..at, new.iter().copied());
        }
        Change::Token(at, token) => {
            let at = place(at, bytes);
            bytes.splice(at..at, TOKENS[token.index(TOKENS.len())].iter().copied());
        }
        Change::Repeat(at, length, times) => {
            let at = place(at, bytes);
            let again = bytes[piece(at, *length, bytes)].repeat(usize::from(*times));
            bytes.splice(at..at, again);
        }
        Change::Splice(at, of, from, length) => {
            let other = &samples[of.index(samples.len())];
            let new = other[piece(place(from, other), *length, other)].to_vec();
            let at = place(at, bytes);
            bytes.splice(piece(at, *length, bytes), new);
        }
    }
}
