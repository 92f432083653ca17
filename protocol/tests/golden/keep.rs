//! Kept bytes, and the same bytes as a newer program would write them.

use std::{fmt::Debug, fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::codec;

/// A kept file: its bytes, or with `UPDATE=1` the bytes that it has from now on.
pub(crate) fn kept(name: &str, today: &[u8]) -> Vec<u8> {
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
pub(crate) fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, message: &T) {
    let bytes = codec::pack(message);
    let golden = kept(name, &bytes);
    assert_eq!(codec::unpack::<T>(&golden).as_ref(), Ok(message), "{name}: the kept bytes say something else");
    assert_eq!(bytes, golden, "{name}: other bytes than the kept ones");
    let richer = with_unknown_fields(&golden);
    assert_ne!(richer, golden);
    assert_eq!(codec::unpack::<T>(&richer).as_ref(), Ok(message), "{name}: an unknown field is not tolerated");
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
    let rest = enrich(bytes, &mut out);
    assert!(rest.is_empty(), "one value");
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
