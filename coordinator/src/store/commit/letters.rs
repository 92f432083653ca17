//! The index of dead letters: what a commit changes of it. A letter is in the index exactly while it is in the stream, but for
//! those that an older version wrote, which are in the stream only.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::id::{RunId, StreamId};

use super::Commands;
use crate::machine::fingerprint::Fingerprint;

/// Members of one command.
const MEMBERS: usize = 500;

/// What changes of the index of dead letters.
#[derive(Debug, Default)]
pub struct LetterIndex {
    /// Letters that come, by group: when, and which.
    pub added: BTreeMap<Fingerprint, Vec<(u64, StreamId)>>,
    /// Letters that go, by group. One that comes and goes in the same commit is in both.
    pub removed: BTreeMap<Fingerprint, BTreeSet<StreamId>>,
    /// Groups without a letter after this commit.
    pub emptied: Vec<Fingerprint>,
    /// Steps that got a letter: counted, so that one that comes back again and again is known.
    pub counted: Vec<(RunId, u32)>,
}

/// A letter's id as a member of its group: in the order of the ids.
pub fn letter_member(id: StreamId) -> [u8; 16] {
    (u128::from(id.ms) << 64 | u128::from(id.seq)).to_be_bytes()
}

/// The id that a member is.
pub fn letter_id(member: &[u8]) -> Option<StreamId> {
    let number = u128::from_be_bytes(member.try_into().ok()?);
    Some(StreamId { ms: (number >> 64) as u64, seq: number as u64 })
}

impl LetterIndex {
    pub(super) fn write(&self, out: &mut Commands) {
        let groups = out.keys.letter_groups();
        for (group, letters) in &self.added {
            let key = out.keys.letters(group);
            for part in letters.chunks(MEMBERS) {
                let cmd = out.cmd("ZADD").arg(&key);
                for (at_ms, id) in part {
                    cmd.arg(*at_ms).arg(&letter_member(*id)[..]);
                }
            }
            let last = letters.iter().map(|(at_ms, _)| *at_ms).max().unwrap_or(0);
            out.cmd("ZADD").arg(&groups).arg(last).arg(group.to_string());
        }
        for (group, letters) in &self.removed {
            let key = out.keys.letters(group);
            let members: Vec<[u8; 16]> = letters.iter().map(|id| letter_member(*id)).collect();
            for part in members.chunks(MEMBERS) {
                let cmd = out.cmd("ZREM").arg(&key);
                for member in part {
                    cmd.arg(&member[..]);
                }
            }
        }
        for part in self.emptied.chunks(MEMBERS) {
            let names: Vec<String> = part.iter().map(ToString::to_string).collect();
            out.cmd("ZREM").arg(&groups).arg(names);
        }
        for (run, index) in &self.counted {
            let key = out.keys.letter_counts(run);
            out.cmd("HINCRBY").arg(key).arg(*index).arg(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_its_letter() {
        let ids = [StreamId { ms: 1, seq: u64::MAX }, StreamId { ms: 2, seq: 0 }, StreamId { ms: u64::MAX, seq: 7 }];
        assert!(ids.map(letter_member).is_sorted());
        assert!(ids.iter().all(|id| letter_id(&letter_member(*id)) == Some(*id)));
        assert_eq!(letter_id(b"short"), None);
    }
}
