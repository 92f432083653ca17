//! How a message becomes the fields of a stream entry: MessagePack named maps, compressed above a threshold.
//!
//! An entry carries one field: `m` with the MessagePack bytes, or `z` with the same bytes as one lz4 block behind their
//! length (u32, little-endian). Readers accept both, whatever the length.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::limits::COMPRESS_ABOVE_BYTES;

/// The version of messages that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;

/// Field of plain messages.
pub const FIELD_PLAIN: &str = "m";
/// Field of compressed messages.
pub const FIELD_LZ4: &str = "z";

/// No message or value nests deeper: deeper bytes would overflow the stack, which no caller could catch.
const DEPTH_MAX: usize = 128;
/// No message unpacks to more than this.
const UNPACKED_BYTES_MAX: u32 = 64 << 20;
/// No byte of an lz4 block stands for more than this.
const LZ4_RATIO_MAX: usize = 255;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is of a newer version: it must not be skipped by this program.
    #[error("message of version {0}, newer than {VERSION}: this program must be upgraded")]
    Newer(u8),
    /// The bytes are no message of any version.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// A message as the field of a stream entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// [`FIELD_PLAIN`] or [`FIELD_LZ4`].
    pub field: &'static str,
    /// The bytes of the field.
    pub bytes: Vec<u8>,
}

/// The plain MessagePack bytes of a message or a value: a named map, as every reader expects.
pub fn pack<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    value
        .serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map())
        .expect("our types have string keys and known lengths, and a vector takes every byte");
    out
}

/// Reads plain MessagePack bytes.
///
/// # Errors
/// [`DecodeError::Malformed`] with the decoder's reason; bytes that nest deeper than 128 levels are malformed too.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    read(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut reader)
}

/// Encodes a message for a stream, compressed above [`COMPRESS_ABOVE_BYTES`] where that makes it smaller.
pub fn encode<T: Serialize>(message: &T) -> Wire {
    let plain = pack(message);
    if plain.len() > COMPRESS_ABOVE_BYTES {
        let packed = compress(&plain);
        if packed.len() < plain.len() {
            return Wire { field: FIELD_LZ4, bytes: packed };
        }
    }
    Wire { field: FIELD_PLAIN, bytes: plain }
}

/// Decodes the field of a stream entry.
///
/// # Errors
/// [`DecodeError::Newer`] when the message says so, else [`DecodeError::Malformed`].
pub fn decode<T: DeserializeOwned>(field: &[u8], bytes: &[u8]) -> Result<T, DecodeError> {
    if field == FIELD_PLAIN.as_bytes() {
        decode_plain(bytes)
    } else if field == FIELD_LZ4.as_bytes() {
        decode_plain(&decompress(bytes)?)
    } else {
        let found = String::from_utf8_lossy(&field[..field.len().min(20)]).into_owned();
        Err(DecodeError::Malformed(format!("unknown field `{found}`: allowed are `m` and `z`")))
    }
}

fn decode_plain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u8,
    }
    // A struct may also be read from an array: random bytes would pass for a newer message, which nobody may skip.
    let is_map = bytes.first().is_some_and(|tag| matches!(tag, 0x80..=0x8f | 0xde | 0xdf));
    if !is_map {
        return Err(DecodeError::Malformed("a message is a map".into()));
    }
    // Every writer of ours puts the version first, so that a message is read once.
    if let [_, 0xa1, b'v', version @ 0..=0x7f, ..] = bytes {
        return match read::<T>(bytes) {
            _ if *version > VERSION => Err(DecodeError::Newer(*version)),
            Ok(message) => Ok(message),
            Err(e) => Err(DecodeError::Malformed(e.to_string())),
        };
    }
    let reason = match read::<T>(bytes) {
        Ok(message) => match read::<Versioned>(bytes) {
            Ok(Versioned { v }) if v > VERSION => return Err(DecodeError::Newer(v)),
            Ok(_) => return Ok(message),
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    };
    match read::<Versioned>(bytes) {
        Ok(Versioned { v }) if v > VERSION => Err(DecodeError::Newer(v)),
        _ => Err(DecodeError::Malformed(reason)),
    }
}

/// One lz4 block behind its length.
pub fn compress(plain: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress_prepend_size(plain)
}

/// The reverse of [`compress`].
///
/// # Errors
/// [`DecodeError::Malformed`] when the block is broken or claims more than 64 MiB, or more than a block of its size can hold.
pub fn decompress(packed: &[u8]) -> Result<Bytes, DecodeError> {
    let claimed = packed.get(..4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
    match claimed {
        // The memory is taken before the block is read.
        Some(bytes) if bytes <= UNPACKED_BYTES_MAX && bytes as usize <= packed.len().saturating_mul(LZ4_RATIO_MAX) => {
            lz4_flex::block::decompress_size_prepended(packed)
                .map(Bytes::from)
                .map_err(|e| DecodeError::Malformed(format!("lz4: {e}")))
        }
        _ => Err(DecodeError::Malformed("lz4: impossible length".into())),
    }
}
