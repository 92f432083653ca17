//! Reading the replies of a server.

use bytes::Bytes;
use redis::Value;
use stepfleet_protocol::id::StreamId;

/// Fields of a stream entry, in their order.
pub type Fields = Vec<(Bytes, Bytes)>;

/// Text of a bulk, simple or verbatim string.
pub fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Bytes of a bulk string.
pub fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// A number, as integer or as text.
pub fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        other => text(other)?.parse().ok(),
    }
}

/// A score of a sorted set, as a whole number; none for a member that is not there.
pub fn score(value: &Value) -> Option<u64> {
    match value {
        Value::Double(score) => Some(*score as u64),
        other => text(other)?.parse::<f64>().ok().map(|score| score as u64),
    }
}

/// Elements of an array; a null is an empty one.
pub fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        Value::Nil => Some(&[]),
        _ => None,
    }
}

/// The text of an error reply.
pub fn error(value: &Value) -> Option<String> {
    match value {
        Value::ServerError(e) => Some(match e.details() {
            Some(details) => format!("{} {details}", e.code()),
            None => e.code().to_string(),
        }),
        _ => None,
    }
}

/// The value of `name` in a flat list of names and values, or in a map.
pub fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Map(pairs) => pairs.iter().find(|(k, _)| text(k) == Some(name)).map(|(_, v)| v),
        other => array(other)?.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name)).map(|pair| &pair[1]),
    }
}

/// Pairs of a flat list or a map.
pub fn pairs(value: Value) -> Vec<(Bytes, Bytes)> {
    let own = |value| match value {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        Value::SimpleString(text) => Some(Bytes::from(text)),
        _ => None,
    };
    match value {
        Value::Map(pairs) => pairs.into_iter().filter_map(|(k, v)| own(k).zip(own(v))).collect(),
        Value::Array(items) => {
            let mut out = Vec::with_capacity(items.len() / 2);
            let mut items = items.into_iter();
            while let (Some(k), Some(v)) = (items.next(), items.next()) {
                out.extend(own(k).zip(own(v)));
            }
            out
        }
        _ => Vec::new(),
    }
}

/// Entries of XRANGE: ids with fields.
pub fn entries(value: Value) -> Vec<(StreamId, Fields)> {
    let Value::Array(items) = value else { return Vec::new() };
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Value::Array(parts) = item else { continue };
        let mut parts = parts.into_iter();
        let id = parts.next().as_ref().and_then(bytes).and_then(StreamId::from_reply);
        if let (Some(id), Some(fields)) = (id, parts.next()) {
            out.push((id, pairs(fields)));
        }
    }
    out
}

/// Entries of an XREAD over one stream; a null reply has none.
pub fn read(value: Value) -> Vec<(StreamId, Fields)> {
    match value {
        Value::Array(streams) => match streams.into_iter().next() {
            Some(Value::Array(parts)) => parts.into_iter().nth(1).map(entries).unwrap_or_default(),
            _ => Vec::new(),
        },
        Value::Map(streams) => streams.into_iter().next().map(|(_, v)| entries(v)).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The group `name` in a reply to XINFO GROUPS.
pub fn group<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    array(value)?.iter().find(|g| field(g, "name").and_then(text) == Some(name))
}

/// Unix milliseconds of a TIME reply.
pub fn time_ms(value: &Value) -> Option<u64> {
    time_us(value).map(|us| us / 1_000)
}

/// Unix microseconds of a TIME reply.
pub fn time_us(value: &Value) -> Option<u64> {
    let [secs, micros] = array(value)? else { return None };
    let (secs, micros) = (u64::try_from(number(secs)?).ok()?, u64::try_from(number(micros)?).ok()?);
    Some(secs * 1_000_000 + micros)
}
