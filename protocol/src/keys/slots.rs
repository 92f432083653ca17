//! Slots of Redis Cluster, and the hash tags of partitions.

use std::sync::LazyLock;

use crate::{id::PartitionId, limits::PARTITIONS_MAX};

/// Slots of a Redis Cluster.
pub const SLOTS: u16 = 16_384;

/// CRC16 (XMODEM), as Redis Cluster computes slots. Source: the Redis Cluster specification, appendix A.
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
        )
    })
}

/// The slot of a key, by its hash tag if it has one.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let inner = &key[open + 1..];
        inner.iter().position(|b| *b == b'}').filter(|len| *len > 0).map(|len| &inner[..len])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// The tags of all partitions, in their order.
static TAGS: LazyLock<Vec<Box<str>>> = LazyLock::new(|| {
    let count = usize::from(PARTITIONS_MAX);
    let stride = SLOTS / PARTITIONS_MAX;
    let mut by_slot: Vec<Option<Box<str>>> = vec![None; count];
    let mut left = count;
    let mut number = 0u64;
    while left > 0 {
        let text = base36(number);
        number += 1;
        let slot = crc16(text.as_bytes()) % SLOTS;
        let place = &mut by_slot[usize::from(slot / stride)];
        if slot.is_multiple_of(stride) && place.is_none() {
            *place = Some(text.into());
            left -= 1;
        }
    }
    let bits = PARTITIONS_MAX.trailing_zeros();
    let reversed = |p: usize| (p as u16).reverse_bits() >> (16 - bits);
    (0..count).map(|p| by_slot[usize::from(reversed(p))].clone().expect("every slot has a tag")).collect()
});

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.reverse();
    String::from_utf8(digits).expect("ASCII")
}

/// The slot of a partition.
pub fn slot(partition: PartitionId) -> u16 {
    slot_of(format!("{{{}}}", tag(partition)).as_bytes())
}

/// The hash tag of a partition.
///
/// # Panics
/// Beyond [`PARTITIONS_MAX`], which ids cannot express.
pub fn tag(partition: PartitionId) -> &'static str {
    &TAGS[usize::from(partition.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // CLUSTER KEYSLOT of a real server.
        assert_eq!((slot_of(b"foo"), slot_of(b"123456789"), slot_of(b"a{foo}b")), (12_182, 0x31c3, 12_182));
        assert_eq!(slot_of(b"{}foo"), crc16(b"{}foo") % SLOTS);
    }

    #[test]
    fn any_prefix_of_the_partitions_spreads_over_any_number_of_nodes() {
        for count in [8u16, 16, 64, 4096] {
            for nodes in 2..=count.min(12) {
                let mut per_node = vec![0u16; usize::from(nodes)];
                for p in 0..count {
                    let node = usize::from(slot(PartitionId(p))) * usize::from(nodes) / usize::from(SLOTS);
                    per_node[node] += 1;
                }
                let fair = count / nodes;
                assert!(per_node.iter().all(|n| *n >= fair.max(1) - 1 && *n >= 1), "{count} on {nodes}: {per_node:?}");
            }
        }
    }

    #[test]
    fn the_table_of_tags_never_changes() {
        let all = TAGS.join(",");
        assert_eq!((TAGS.len(), crc16(all.as_bytes())), (4096, 55_319));
        let first: Vec<&str> = (0..8).map(|p| tag(PartitionId(p))).collect();
        assert_eq!(first.join(" "), "1bz fjl 17p 356 5nw 7l1 h85 b3k");
    }
}
