//! Values between a handler's types and Redis: the JSON data model as MessagePack named maps.
//!
//! Types are written and read in their human-readable form, as JSON would have them: a UUID or a time is a text.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// MessagePack of `null`.
const NIL: u8 = 0xc0;

/// Writes a value.
///
/// # Errors
/// When the type refuses to be written.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, rmp_serde::encode::Error> {
    let mut out = Vec::new();
    value.serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map().with_human_readable())?;
    Ok(out.into())
}

/// Reads a value; no bytes are `null`. Bytes behind the value are an error.
///
/// # Errors
/// When the bytes are no value of the type.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let bytes = if bytes.is_empty() { &[NIL] } else { bytes };
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    T::deserialize(&mut reader)
}

/// Whether these bytes are `null`.
pub(crate) fn is_null(bytes: &[u8]) -> bool {
    matches!(bytes, [] | [NIL])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn types_cross_as_json_would_have_them() {
        let id = uuid::Uuid::nil();
        let bytes = write(&id).expect("a UUID can be written");
        assert_eq!(read::<Value>(&bytes).ok(), Some(json!("00000000-0000-0000-0000-000000000000")));
        assert_eq!(read::<uuid::Uuid>(&bytes).ok(), Some(id));
        let tree = json!({"a": [1, -2, 1.5, null, true], "b": {"c": "ä"}});
        assert_eq!(read::<Value>(&write(&tree).expect("JSON can be written")).ok(), Some(tree));
    }

    #[test]
    fn nothing_reads_as_null() {
        assert_eq!(read::<Option<u8>>(&[]).ok(), Some(None));
        assert_eq!(read::<Value>(&[]).ok(), Some(Value::Null));
        assert!(read::<()>(&[]).is_ok());
        assert!(is_null(&write(&()).expect("a unit can be written")));
        assert!(read::<u8>(&[]).is_err());
    }
}
