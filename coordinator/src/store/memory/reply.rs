//! The shapes of replies, and the words a server uses to refuse.
//!
//! Shapes are those of RESP2 as the client crate reads them: maps are flat arrays, scores are bulk strings, a missing value
//! is nil. A refusal is the exact line a server sends, without the leading dash.

use redis::Value;

/// An error line of the server, `CODE text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

/// What a command answers.
pub(super) type Reply = Result<Value, Refusal>;

impl Refusal {
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }

    pub(super) fn wrong_type() -> Self {
        Self::new("WRONGTYPE Operation against a key holding the wrong kind of value")
    }

    pub(super) fn syntax() -> Self {
        Self::new("ERR syntax error")
    }

    pub(super) fn not_an_integer() -> Self {
        Self::new("ERR value is not an integer or out of range")
    }

    pub(super) fn not_a_float() -> Self {
        Self::new("ERR value is not a valid float")
    }

    pub(super) fn out_of_memory() -> Self {
        Self::new("OOM command not allowed when used memory > 'maxmemory'.")
    }

    /// The value the client crate makes of this line.
    pub(super) fn into_value(self) -> Value {
        let line = format!("-{}\r\n", self.0.replace(['\r', '\n'], " "));
        redis::parse_redis_value(line.as_bytes()).expect("an error line is valid RESP")
    }
}

/// A reply as a plain value, an error in its place.
pub(super) fn settle(reply: Reply) -> Value {
    reply.unwrap_or_else(Refusal::into_value)
}

pub(super) fn bulk(bytes: impl Into<Vec<u8>>) -> Value {
    Value::BulkString(bytes.into())
}

pub(super) fn bulk_or_nil(bytes: Option<&Vec<u8>>) -> Value {
    bytes.map_or(Value::Nil, |bytes| bulk(bytes.clone()))
}

pub(super) fn int(count: usize) -> Value {
    Value::Int(i64::try_from(count).expect("a count fits 63 bits"))
}

pub(super) fn yes(flag: bool) -> Value {
    Value::Int(i64::from(flag))
}

/// The argument as the upper-case word that options are compared with.
pub(super) fn word(arg: &[u8]) -> String {
    String::from_utf8_lossy(arg).to_ascii_uppercase()
}

/// A signed integer in the strict form that servers accept: no plus sign, no blanks, no leading zeros.
pub(super) fn parse_int(arg: &[u8]) -> Result<i64, Refusal> {
    let text = std::str::from_utf8(arg).map_err(|_| Refusal::not_an_integer())?;
    let number: i64 = text.parse().map_err(|_| Refusal::not_an_integer())?;
    if number.to_string() == text { Ok(number) } else { Err(Refusal::not_an_integer()) }
}

/// A score; `inf`, `+inf` and `-inf` are allowed, NaN is not.
pub(super) fn parse_score(arg: &[u8]) -> Result<f64, Refusal> {
    let text = std::str::from_utf8(arg).map_err(|_| Refusal::not_a_float())?;
    match text.parse::<f64>() {
        Ok(score) if !score.is_nan() => Ok(score),
        _ => Err(Refusal::not_a_float()),
    }
}

/// A score as the server prints it: integers without a point, the shortest digits that read back otherwise.
pub(super) fn score_text(score: f64) -> String {
    const EXACT: f64 = 4_503_599_627_370_496.0;
    if score.is_infinite() {
        return if score > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if score == 0.0 {
        return "0".into();
    }
    if score.trunc() == score && score.abs() < EXACT {
        return format!("{score:.0}");
    }
    let scientific = format!("{:e}", score.abs());
    let (mantissa, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a decimal exponent");
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let sign = if score < 0.0 { "-" } else { "" };
    format!("{sign}{}", place_point(&digits, exponent))
}

/// Writes `d.ddd * 10^exponent` plainly where that is short, else with an exponent.
fn place_point(digits: &str, exponent: i32) -> String {
    let count = i32::try_from(digits.len()).expect("a double has at most 17 digits");
    let tail = exponent - (count - 1);
    if tail >= 0 && exponent.abs() < count + 7 {
        return format!("{digits}{}", "0".repeat(usize::try_from(tail).expect("checked above")));
    }
    if tail < 0 && (tail > -7 || exponent.abs() < 4) {
        let point = count + tail;
        return match usize::try_from(point) {
            Ok(at) if at > 0 => format!("{}.{}", &digits[..at], &digits[at..]),
            _ => format!("0.{}{digits}", "0".repeat(usize::try_from(-point).unwrap_or(0))),
        };
    }
    let (first, rest) = digits.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    format!("{first}{point}{rest}e{exponent:+}")
}

/// `start..=stop` of a server's index range over `len` items, negative counted from the end; `None` is empty.
pub(super) fn index_range(start: i64, stop: i64, len: usize) -> Option<std::ops::RangeInclusive<usize>> {
    let len = i64::try_from(len).expect("a length fits 63 bits");
    let from = if start < 0 { (start + len).max(0) } else { start };
    let to = if stop < 0 { stop + len } else { stop }.min(len - 1);
    if from > to || from >= len {
        return None;
    }
    Some(usize::try_from(from).ok()?..=usize::try_from(to).ok()?)
}

#[cfg(test)]
mod tests {
    use super::score_text;

    /// What Redis from 7.2 and Valkey print; older ones write 17 digits where the shortest form is not exact.
    #[test]
    fn scores_are_written_as_a_server_writes_them() {
        let table = [
            (0.0, "0"),
            (-0.0, "0"),
            (1_767_225_600_123.0, "1767225600123"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (2.71, "2.71"),
            (0.001, "0.001"),
            (1e-5, "0.00001"),
            (0.000_012_34, "1.234e-5"),
            (1e-7, "1e-7"),
            (123_456_789_012_345_678.0, "123456789012345680"),
            (1e20, "1e+20"),
            (1e22, "1e+22"),
            (f64::INFINITY, "inf"),
        ];
        for (score, text) in table {
            assert_eq!(score_text(score), text);
        }
    }
}
