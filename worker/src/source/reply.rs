//! Reading the replies of XREADGROUP.

use redis::Value;
use stepfleet_protocol::id::StreamId;

use super::plan::{Read, Streams};

/// One entry of a job stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Position of its stream.
    pub(super) stream: usize,
    pub(super) id: StreamId,
    /// The name and the bytes of its first field; empty if the entry was deleted.
    pub(super) field: Vec<u8>,
    pub(super) bytes: Vec<u8>,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    Entries(Vec<Entry>),
    /// A stream or its group is missing.
    NoGroup,
    /// The slot of the stream is on its way to another node, or is there already.
    Away(String),
    /// The server did not do it.
    Refused(String),
}

/// Reads one reply. The streams of the reply come in the order of the command.
pub(super) fn read(reply: Value, read: &Read, streams: &Streams) -> Got {
    let rows = match reply {
        Value::Nil => return Got::Entries(Vec::new()),
        Value::Array(rows) => rows,
        Value::ServerError(error) if error.code() == "NOGROUP" => return Got::NoGroup,
        Value::ServerError(error) if is_away(&error) => return Got::Away(error.to_string()),
        Value::ServerError(error) => return Got::Refused(error.to_string()),
        other => return Got::Refused(format!("XREADGROUP answered {other:?}")),
    };
    let mut entries = Vec::new();
    let mut named = read.streams.iter().copied();
    for row in rows {
        let Some((key, list)) = pair(row) else { continue };
        let (Value::BulkString(key), Value::Array(list)) = (key, list) else { continue };
        let Some(stream) = named.find(|at| streams.all()[*at].key.as_bytes() == key) else { continue };
        entries.extend(list.into_iter().filter_map(|entry| entry_of(stream, entry)));
    }
    Got::Entries(entries)
}

/// Whether the server refused a key because its slot is moving or has moved.
pub(super) fn is_away(error: &redis::ServerError) -> bool {
    matches!(error.code(), "ASK" | "MOVED" | "TRYAGAIN")
}

fn pair(value: Value) -> Option<(Value, Value)> {
    match value {
        Value::Array(both) => <[Value; 2]>::try_from(both).ok().map(|[first, second]| (first, second)),
        _ => None,
    }
}

fn entry_of(stream: usize, value: Value) -> Option<Entry> {
    let (Value::BulkString(id), fields) = pair(value)? else { return None };
    let id = StreamId::from_reply(&id)?;
    let mut fields = match fields {
        Value::Array(fields) => fields,
        _ => Vec::new(),
    }
    .into_iter();
    let mut text = || match fields.next() {
        Some(Value::BulkString(bytes)) => bytes,
        _ => Vec::new(),
    };
    let (field, bytes) = (text(), text());
    Some(Entry { stream, id, field, bytes })
}
