//! Ids: of partitions, runs, commands, jobs, reigns, stream entries and workers.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::limits::PARTITIONS_MAX;

/// An id that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad {kind} `{found}`: allowed is {allowed}")]
pub struct IdError {
    /// Which kind of id.
    pub kind: &'static str,
    /// What was found, cut to a printable length.
    pub found: String,
    /// What is allowed.
    pub allowed: &'static str,
}

fn bad(kind: &'static str, found: &str, allowed: &'static str) -> IdError {
    IdError { kind, found: found.chars().take(80).collect(), allowed }
}

/// A partition: `0..4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run: a `UUIDv7` (RFC 9562) whose 12 bits of `rand_a` carry the partition, so that an id routes itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// Makes an id from the partition, the time in Unix milliseconds (48 bits are kept) and 62 random bits.
    pub fn new(partition: PartitionId, unix_ms: u64, random: u64) -> Self {
        debug_assert!(partition.0 < PARTITIONS_MAX, "a partition fits 12 bits");
        let high = (unix_ms << 16) | 0x7000 | u64::from(partition.0 & 0x0fff);
        let low = (random & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
        Self(Uuid::from_u64_pair(high, low))
    }

    /// The partition that owns the run.
    pub fn partition(&self) -> PartitionId {
        PartitionId((self.0.as_u64_pair().0 & 0x0fff) as u16)
    }

    /// When the id was made, in Unix milliseconds of the maker's clock.
    pub fn created_ms(&self) -> u64 {
        self.0.as_u64_pair().0 >> 16
    }

    /// The 16 bytes.
    pub fn bytes(&self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// From 16 bytes; `None` when they are not a `UUIDv7`.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let uuid = Uuid::from_slice(bytes).ok()?;
        (uuid.get_version_num() == 7).then_some(Self(uuid))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let uuid = Uuid::try_parse(text).map_err(|_| bad("run id", text, "a UUID of version 7"))?;
        Self::from_bytes(uuid.as_bytes()).ok_or_else(|| bad("run id", text, "a UUID of version 7"))
    }
}

/// A command, made by the client: the same id gets the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub Uuid);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fence of an owner's commits, `counter-random64`. The random part is what fences, so that a rolled-back or
/// twice-used counter is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Reign {
    /// Grows by one with every new owner.
    pub counter: u64,
    /// Unique for ever.
    pub random: u64,
}

impl fmt::Display for Reign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.counter, self.random)
    }
}

impl FromStr for Reign {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let read = || {
            let (counter, random) = text.split_once('-')?;
            Some(Self { counter: counter.parse().ok()?, random: u64::from_str_radix(random, 16).ok()? })
        };
        read().ok_or_else(|| bad("reign", text, "`counter-random64`"))
    }
}

/// One attempt of one step, `reign.seq.n`: the n-th job of commit `seq` of a reign. Unique for ever, and the fence of
/// results. Workers treat it as opaque text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct JobId {
    /// The reign that dispatched it.
    pub reign: Reign,
    /// The commit that dispatched it.
    pub seq: u64,
    /// Which job of that commit.
    pub n: u32,
}

impl JobId {
    /// Bytes of the packed form.
    pub const PACKED_BYTES: usize = 28;

    /// The packed form: reign counter, reign random, seq, n, big-endian.
    pub fn pack(&self) -> [u8; Self::PACKED_BYTES] {
        let mut out = [0; Self::PACKED_BYTES];
        out[..8].copy_from_slice(&self.reign.counter.to_be_bytes());
        out[8..16].copy_from_slice(&self.reign.random.to_be_bytes());
        out[16..24].copy_from_slice(&self.seq.to_be_bytes());
        out[24..].copy_from_slice(&self.n.to_be_bytes());
        out
    }

    /// Reads the packed form; `None` when the length is wrong.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::PACKED_BYTES] = bytes.try_into().ok()?;
        let long = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let n = u32::from_be_bytes(bytes[24..].try_into().expect("four bytes"));
        Some(Self { reign: Reign { counter: long(0), random: long(8) }, seq: long(16), n })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.reign, self.seq, self.n)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let read = || {
            let mut parts = text.split('.');
            let reign = parts.next()?.parse().ok()?;
            let (seq, n) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            parts.next().is_none().then_some(Self { reign, seq, n })
        };
        read().ok_or_else(|| bad("job id", text, "`reign.seq.n`"))
    }
}

/// The id of a stream entry, `ms-seq`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Unix milliseconds of the server.
    pub ms: u64,
    /// Order inside a millisecond.
    pub seq: u64,
}

impl StreamId {
    /// Before every entry.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// The next id.
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }

    /// Reads `ms-seq` from a reply.
    pub fn from_reply(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for StreamId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let read = || {
            let (ms, seq) = text.split_once('-')?;
            Some(Self { ms: ms.parse().ok()?, seq: seq.parse().ok()? })
        };
        read().ok_or_else(|| bad("stream id", text, "`milliseconds-sequence`"))
    }
}

/// A worker process: its name, `@`, and a boot id that the library makes, so that a restarted pod never keeps a dead
/// one's jobs alive. It is the consumer name on every job stream.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// From the worker's name and a boot number (48 bits are kept).
    pub fn new(name: &crate::name::Name, boot: u64) -> Self {
        Self(format!("{name}@{:012x}", boot & 0xffff_ffff_ffff).into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WorkerId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let good = text.split_once('@').is_some_and(|(name, boot)| {
            crate::name::Name::new(name).is_ok() && boot.len() == 12 && boot.bytes().all(|b| b.is_ascii_hexdigit())
        });
        if good { Ok(Self(text.into())) } else { Err(bad("worker id", text, "`name@` and 12 hex digits")) }
    }
}

macro_rules! serde_as_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Reign, JobId, StreamId, WorkerId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_routes_itself_and_keeps_its_time() {
        let id = RunId::new(PartitionId(4095), 1_800_000_000_123, u64::MAX);
        assert_eq!((id.partition(), id.created_ms()), (PartitionId(4095), 1_800_000_000_123));
        assert_eq!(id.to_string().parse::<RunId>(), Ok(id));
        assert_eq!(RunId::from_bytes(&id.bytes()), Some(id));
        assert!("00000000-0000-4000-8000-000000000000".parse::<RunId>().is_err(), "version 4 is refused");
    }

    #[test]
    fn ids_of_a_later_millisecond_sort_later() {
        let a = RunId::new(PartitionId(7), 1_000, u64::MAX);
        let b = RunId::new(PartitionId(7), 1_001, 0);
        assert!(a < b && a.to_string() < b.to_string());
    }

    #[test]
    fn texts_of_ids_read_back() {
        let job = JobId { reign: Reign { counter: 7, random: 0xabc }, seq: 12, n: 3 };
        assert_eq!(job.to_string(), "7-0000000000000abc.12.3");
        assert_eq!(job.to_string().parse(), Ok(job));
        assert_eq!(JobId::unpack(&job.pack()), Some(job));
        let entry = StreamId { ms: 5, seq: 9 };
        assert_eq!(entry.to_string().parse(), Ok(entry));
        let worker = WorkerId::new(&crate::name::Name::new("w-1").expect("a legal name"), 0xfeed);
        assert_eq!(worker.as_str(), "w-1@00000000feed");
        assert_eq!(worker.as_str().parse(), Ok(worker));
        for text in ["", "1", "1-", "x-1", "1-1.2", "1-1.2.3.4", "1-1.2.x"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        assert!("nobody".parse::<WorkerId>().is_err());
    }
}
