//! Groups of dead letters: what failed in the same way, over all partitions.
//!
//! Counts come from the index, which is exact. What else is said of a group, its workflows and workers, comes from a sample of
//! its letters. A filter that looks inside of letters counts what it finds among the newest of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::Cmd;
use stepfleet_protocol::{
    id::PartitionId,
    keys::{PartitionKeys, slot},
};

use super::{super::client::Client, ClientError, PlacedId, count};
use crate::{
    machine::fingerprint::Fingerprint,
    store::{
        commit::letter_id,
        letters::{Filter, decode},
        record::DeadLetter,
        reply,
    },
};

/// Groups of one partition that are looked at, the ones with the latest letters.
const GROUPS_MAX: usize = 1_000;
/// Letters that are looked at for one group, and for all groups of one page.
const SAMPLE_MAX: usize = 200;
const SAMPLES_MAX: usize = 2_000;
/// Letters that are looked at where a filter looks inside of them.
const SCAN_MAX: usize = 5_000;
/// Letters of one read.
const PER_READ: usize = 100;

/// Letters that failed in the same way.
#[derive(Debug)]
pub struct Group {
    /// What they have in common.
    pub fingerprint: Fingerprint,
    /// How many are open.
    pub count: u64,
    /// When the first of them came, in Unix milliseconds of the server.
    pub first_ms: u64,
    /// When the last one came.
    pub last_ms: u64,
    /// Some of them, the newest first; never empty.
    pub sample: Vec<(PlacedId, DeadLetter)>,
}

/// A page of groups, the largest first.
#[derive(Debug, Default)]
pub struct Groups {
    /// The groups.
    pub groups: Vec<Group>,
    /// Where the next page begins; none at the end.
    pub next: Option<GroupCursor>,
    /// Not everything was looked at: there are more groups or letters than one answer looks at.
    pub is_partial: bool,
}

/// A place among the groups: `<count>-<fingerprint>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupCursor {
    count: u64,
    fingerprint: Fingerprint,
}

impl std::fmt::Display for GroupCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.count, self.fingerprint)
    }
}

impl std::str::FromStr for GroupCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (count, fingerprint) = text.split_once('-').ok_or(())?;
        Ok(Self { count: count.parse().map_err(|_| ())?, fingerprint: fingerprint.parse().map_err(|_| ())? })
    }
}

/// A group as the index has it.
#[derive(Debug, Default, Clone)]
struct Indexed {
    count: u64,
    first_ms: u64,
    last_ms: u64,
}

impl Client {
    /// At most `limit` groups behind `after`, the largest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letter_groups(
        &self,
        filter: &Filter,
        after: Option<GroupCursor>,
        limit: usize,
    ) -> Result<Groups, ClientError> {
        let only_groups = Filter { fingerprint: None, ..filter.clone() }.is_empty();
        let (mut groups, is_partial) =
            if only_groups { self.indexed(filter.fingerprint).await? } else { self.scanned(filter).await? };
        let place = |group: &Group| (std::cmp::Reverse(group.count), group.fingerprint);
        groups.sort_by_key(place);
        if let Some(after) = after {
            groups.retain(|group| place(group) > (std::cmp::Reverse(after.count), after.fingerprint));
        }
        let more = groups.len() > limit;
        groups.truncate(limit);
        let last = groups.last().filter(|_| more);
        let next = last.map(|group| GroupCursor { count: group.count, fingerprint: group.fingerprint });
        if only_groups {
            self.sample(&mut groups).await?;
        }
        // The last letter of a group may have been closed meanwhile.
        groups.retain(|group| !group.sample.is_empty());
        Ok(Groups { groups, next, is_partial })
    }

    /// The groups of the index, without samples.
    async fn indexed(&self, only: Option<Fingerprint>) -> Result<(Vec<Group>, bool), ClientError> {
        let partitions = self.all_partitions().await?;
        let newest = |p: &PartitionId| {
            let mut cmd = redis::cmd("ZREVRANGE");
            cmd.arg(self.keys.partition(*p).letter_groups()).arg(0).arg(GROUPS_MAX - 1).arg("WITHSCORES");
            (slot(*p), cmd)
        };
        let replies = self.ask_all(partitions.iter().map(newest).collect()).await?;
        let (mut found, mut is_partial) = (Vec::new(), false);
        for (partition, value) in partitions.into_iter().zip(&replies) {
            let items = reply::array(value).unwrap_or_default();
            is_partial |= items.len() / 2 >= GROUPS_MAX;
            for pair in items.chunks_exact(2) {
                let group = reply::text(&pair[0]).and_then(|text| text.parse::<Fingerprint>().ok());
                let last_ms = reply::score(&pair[1]).unwrap_or(0);
                let group = group.filter(|group| only.is_none_or(|only| only == *group));
                found.extend(group.map(|group| (partition, group, last_ms)));
            }
        }
        let counts = found.iter().map(|(p, group, _)| (slot(*p), of(self.keys.partition(*p), "ZCARD", *group)));
        let counts = self.ask_all(counts.collect()).await?;
        let firsts = found.iter().map(|(p, group, _)| {
            let mut cmd = of(self.keys.partition(*p), "ZRANGE", *group);
            cmd.arg(0).arg(0).arg("WITHSCORES");
            (slot(*p), cmd)
        });
        let firsts = self.ask_all(firsts.collect()).await?;
        let mut groups: BTreeMap<Fingerprint, Indexed> = BTreeMap::new();
        for (((_, group, last_ms), letters), first) in found.into_iter().zip(&counts).zip(&firsts) {
            let letters = count(Some(letters));
            if letters == 0 {
                continue;
            }
            let first_ms = reply::array(first).and_then(|pair| pair.get(1)).and_then(reply::score).unwrap_or(last_ms);
            let indexed = groups.entry(group).or_insert(Indexed { first_ms: u64::MAX, ..Indexed::default() });
            indexed.count += letters;
            indexed.first_ms = indexed.first_ms.min(first_ms);
            indexed.last_ms = indexed.last_ms.max(last_ms);
        }
        let group = |(fingerprint, i): (Fingerprint, Indexed)| {
            let Indexed { count, first_ms, last_ms, .. } = i;
            Group { fingerprint, count, first_ms, last_ms, sample: Vec::new() }
        };
        Ok((groups.into_iter().map(group).collect(), is_partial))
    }

    /// Reads some of the letters of these groups, the newest first.
    async fn sample(&self, groups: &mut [Group]) -> Result<(), ClientError> {
        let each = (SAMPLES_MAX / groups.len().max(1)).clamp(1, SAMPLE_MAX);
        let partitions = self.all_partitions().await?;
        for group in groups {
            let newest = partitions.iter().map(|p| {
                let mut cmd = of(self.keys.partition(*p), "ZREVRANGE", group.fingerprint);
                cmd.arg(0).arg(each - 1);
                (slot(*p), cmd)
            });
            let found = self.ask_all(newest.collect()).await?;
            let mut ids: Vec<PlacedId> = Vec::new();
            for (partition, value) in partitions.iter().zip(&found) {
                let members = reply::array(value).unwrap_or_default().iter().filter_map(reply::bytes);
                ids.extend(members.filter_map(letter_id).map(|entry| PlacedId { entry, partition: *partition }));
            }
            ids.sort_by_key(|id| std::cmp::Reverse(*id));
            ids.truncate(each);
            group.sample = self.letters_of(&ids).await?;
        }
        Ok(())
    }

    /// The letters with these ids, without those that are closed or cannot be read.
    async fn letters_of(&self, ids: &[PlacedId]) -> Result<Vec<(PlacedId, DeadLetter)>, ClientError> {
        let mut out = Vec::with_capacity(ids.len());
        for part in ids.chunks(PER_READ) {
            let read = |id: &PlacedId| {
                let (mut cmd, entry) = (redis::cmd("XRANGE"), id.entry.to_string());
                cmd.arg(self.keys.partition(id.partition).dead()).arg(&entry).arg(&entry);
                (slot(id.partition), cmd)
            };
            let found = self.ask_all(part.iter().map(read).collect()).await?;
            for (id, value) in part.iter().zip(found) {
                let letter = reply::entries(value).first().and_then(|(_, fields)| decode(fields));
                out.extend(letter.map(|letter| (*id, letter)));
            }
        }
        Ok(out)
    }

    /// The groups of the newest letters that the filter lets through.
    async fn scanned(&self, filter: &Filter) -> Result<(Vec<Group>, bool), ClientError> {
        let now_ms = self.server_time_ms().await?;
        let (mut groups, mut after, mut looked): (HashMap<Fingerprint, Group>, _, _) = (HashMap::new(), None, 0);
        loop {
            let found = self.merged(PartitionKeys::dead, after, PER_READ).await?;
            let more = found.len() == PER_READ;
            looked += found.len();
            for (id, fields) in found {
                after = Some(id);
                let Some(letter) = decode(&fields).filter(|l| filter.takes(now_ms, id, l)) else { continue };
                let Some(fingerprint) = letter.group() else { continue };
                let (at_ms, sample) = (letter.at_ms, Vec::new());
                let fresh = Group { fingerprint, count: 0, first_ms: at_ms, last_ms: at_ms, sample };
                let group = groups.entry(fingerprint).or_insert(fresh);
                group.count += 1;
                group.first_ms = group.first_ms.min(at_ms);
                group.last_ms = group.last_ms.max(at_ms);
                if group.sample.len() < SAMPLE_MAX {
                    group.sample.push((id, letter));
                }
            }
            if !more || looked >= SCAN_MAX {
                return Ok((groups.into_values().collect(), more));
            }
        }
    }
}

impl Group {
    /// What `read` says of the letters of the sample, each once.
    pub fn facet(&self, read: impl Fn(&DeadLetter) -> Option<String>) -> Vec<String> {
        let all: BTreeSet<String> = self.sample.iter().filter_map(|(_, letter)| read(letter)).collect();
        all.into_iter().collect()
    }
}

fn of(keys: PartitionKeys, command: &str, group: Fingerprint) -> Cmd {
    let mut cmd = redis::cmd(command);
    cmd.arg(keys.letters(group));
    cmd
}
