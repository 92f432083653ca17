//! What makes two failures the same to an operator: handler, category, code, and the message without what differs from one
//! occurrence to the next. Pure, and linear in the length of the message.
//!
//! A fingerprint is stored: the same failure has the same one in every version of the program. What the normaliser does may
//! therefore only change together with the salt, and the golden values of the tests then say so.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use stepfleet_protocol::failure::Failure;

/// Bytes of a message that count.
const MESSAGE_BYTES: usize = 1 << 10;
/// Shortest word of letters and digits that is taken for an id.
const ID_CHARS: usize = 8;
/// Changes between letters and digits in a word that make it an id.
const ID_CHANGES: usize = 3;
/// Says which normaliser made it.
const SALT: &str = "1";

/// A group of failures: 64 bits, shown as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of a failure of `handler`.
    pub fn of(handler: &str, failure: &Failure) -> Self {
        let code = failure.code.as_deref().unwrap_or_default();
        let message = normalised(&failure.message);
        let mut hash = Sha256::new();
        for part in [SALT, handler, failure.category.as_str(), code, &message] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        Self(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 16 hex digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;
    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let good = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(NoFingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// A message without what differs from one occurrence to the next: quoted texts are `<text>`, addresses `<url>`, paths `<path>`,
/// ids `<id>` and numbers `<n>`; any white space is one space.
pub fn normalised(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut rest = &message[..end];
    let mut out = String::with_capacity(rest.len());
    // A kind of quote that has no partner in the rest is not looked for again, so that the whole stays linear.
    let mut lonely = [false; 3];
    let mut before: Option<char> = None;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let quote = ['"', '\'', '`'].iter().position(|q| *q == first && !before.is_some_and(char::is_alphanumeric));
        if let Some(kind) = quote.filter(|kind| !lonely[*kind]) {
            if let Some(close) = after.find(first) {
                out.push_str("<text>");
                (before, rest) = (Some(first), &after[close + first.len_utf8()..]);
                continue;
            }
            lonely[kind] = true;
        }
        if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let whole = &rest[..length];
            let word = whole.trim_end_matches(['.', ',', ':', ';', '?', '!']);
            word_into(word, &mut out);
            out.push_str(&whole[word.len()..]);
            (before, rest) = (whole.chars().next_back(), &rest[length..]);
            continue;
        }
        if !first.is_whitespace() {
            out.push(first);
        } else if !out.is_empty() && !out.ends_with(' ') {
            out.push(' ');
        }
        (before, rest) = (Some(first), after);
    }
    out.truncate(out.trim_end().len());
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-./:\\@%?=&#+~,;!$".contains(c)
}

/// One word, as what it is.
fn word_into(word: &str, out: &mut String) {
    let slashes = word.bytes().filter(|b| matches!(b, b'/' | b'\\')).count();
    let rooted =
        word.starts_with(['/', '\\']) || word.starts_with("./") || word.starts_with("../") || word.starts_with("~/");
    if word.contains("://") {
        return out.push_str("<url>");
    }
    if slashes > 1 || (slashes == 1 && rooted && word.len() > 1) {
        return out.push_str("<path>");
    }
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        if let Some(length) = uuid(rest) {
            out.push_str("<id>");
            rest = &rest[length..];
        } else if first.is_alphanumeric() {
            let length = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            if is_id(&rest[..length]) {
                out.push_str("<id>");
                rest = &rest[length..];
            } else {
                rest = part_into(rest, length, out);
            }
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
}

/// Letters as they are, and numbers, with what separates their parts, as `<n>`. Returns what follows.
fn part_into<'a>(text: &'a str, length: usize, out: &mut String) -> &'a str {
    let mut place = 0;
    while place < length {
        let rest = &text[place..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()).min(length - place);
            out.push_str(&rest[..letters]);
            place += letters;
            continue;
        }
        out.push_str("<n>");
        place += digits;
        // `10.0.0.1:6379` and `1,000.5` are one number each.
        while let Some(more) = continued(&text[place..]) {
            place += more;
        }
    }
    &text[place..]
}

/// How much of `text` goes on with a number: a separator and digits.
fn continued(text: &str) -> Option<usize> {
    let tail = text.strip_prefix(['.', ',', ':'])?;
    let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
    (digits > 0).then_some(1 + digits)
}

/// Whether a word of letters and digits is an id: long hex with a digit and a letter in it, `0x…`, or letters and digits mixed.
fn is_id(word: &str) -> bool {
    let digit = |b: &u8| b.is_ascii_digit();
    if let Some(hex) = word.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    if word.len() < ID_CHARS || !word.is_ascii() || word.as_bytes().iter().all(digit) {
        return false;
    }
    let hex = word.bytes().all(|b| b.is_ascii_hexdigit()) && word.as_bytes().iter().any(digit);
    let changes = word.as_bytes().windows(2).filter(|pair| digit(&pair[0]) != digit(&pair[1])).count();
    hex || changes >= ID_CHANGES
}

/// The length of the UUID that `text` begins with.
fn uuid(text: &str) -> Option<usize> {
    const LENGTH: usize = 36;
    let bytes = text.as_bytes().get(..LENGTH)?;
    let good = bytes.iter().enumerate().all(|(place, byte)| match place {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    let ends = text[good.then_some(LENGTH)?..].chars().next().is_none_or(|c| !c.is_alphanumeric());
    ends.then_some(LENGTH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stepfleet_protocol::failure::Category;

    use super::*;

    #[test]
    fn what_differs_from_one_occurrence_to_the_next_is_taken_out() {
        let table = [
            ("connection refused", "connection refused"),
            ("HTTP 503 from  upstream\n after 1.5s", "HTTP <n> from upstream after <n>s"),
            ("order 4711 is unknown.", "order <n> is unknown."),
            ("dial 10.0.0.7:6379: i/o timeout", "dial <n>: i/o timeout"),
            ("GET https://bank.example/pay?id=7: 502", "GET <url>: <n>"),
            ("cannot open /var/lib/x/17.json, giving up", "cannot open <path>, giving up"),
            ("C:\\data\\7.csv is missing", "<path> is missing"),
            ("no such file: 'in.csv'", "no such file: <text>"),
            ("can't parse \"x\" of `y`", "can't parse <text> of <text>"),
            ("it isn't 'open", "it isn't 'open"),
            ("run 019a3f2e-1c2d-7abc-8def-0123456789ab ended", "run <id> ended"),
            ("commit deadbeef0 at 0x7ffe", "commit <id> at <id>"),
            ("token aZ3kP9xQ refused by utf8 parser", "token <id> refused by utf<n> parser"),
            ("read/write failed, exit_3", "read/write failed, exit_<n>"),
            ("2026-11-28T03:40:11Z late", "<n>-<n>-<n>T<n>Z late"),
            ("  ", ""),
            ("größe 7 für ünïcode", "größe <n> für ünïcode"),
        ];
        for (message, wanted) in table {
            assert_eq!(normalised(message), wanted, "{message}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_same_in_every_version() {
        let of = |handler, category, code: Option<&str>, message| {
            let mut failure = Failure::new(category, message);
            failure.code = code.map(str::to_owned);
            Fingerprint::of(handler, &failure).to_string()
        };
        let golden = [
            of("http", Category::Transient, Some("http_503"), "HTTP 503 from upstream after 17 ms"),
            of("http", Category::Transient, Some("http_503"), "HTTP 502 from upstream after 1 ms"),
            of("exec", Category::Permanent, None, "exit 3"),
            of("exec", Category::Permanent, Some(""), "exit 4"),
            of("exec", Category::Data, None, "exit 3"),
        ];
        assert_eq!(
            golden,
            ["bf6db00452e29b3c", "bf6db00452e29b3c", "01b691e5c0eb4b7c", "01b691e5c0eb4b7c", "4800e7b2c7a348ef"]
        );
    }

    #[test]
    fn it_is_written_as_sixteen_hex_digits_and_read_back() {
        let print = Fingerprint(0xab);
        assert_eq!(print.to_string(), "00000000000000ab");
        assert_eq!("00000000000000ab".parse(), Ok(print));
        for bad in ["", "ab", "00000000000000ag", "+0000000000000ab", "00000000000000abc"] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NoFingerprint), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_normalised_without_panic(message: String, mixed in "[a-f0-9 '\"`/:.x-]{0,200}") {
            let _ = (normalised(&message), normalised(&mixed));
        }

        #[test]
        fn other_digits_make_no_other_group(message in "[a-zA-Z0-9 '\"`/:.,_-]{0,120}", digits: [u8; 16]) {
            let mut next = digits.iter().cycle();
            let changed: String = message
                .chars()
                .map(|c| if c.is_ascii_digit() { char::from(b'0' + next.next().expect("a cycle") % 10) } else { c })
                .collect();
            // `0x` is a word of its own and not a matter of digits.
            prop_assume!(!message.contains('x') && !message.contains('X'));
            prop_assert_eq!(normalised(&message), normalised(&changed));
        }
    }
}
