//! Whether a run with a transition in progress has a work item in the list of its partition.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use stepfleet_protocol::id::{PartitionId, RunId};

use super::{Auditor, Place, Subject};
use crate::store::{link::Dial, record, reply};

/// Work items that one look reads: about 100 KiB. Of a longer list nothing can be said: it moves between two reads.
const ITEMS_MAX: usize = 5_000;

impl<D: Dial> Auditor<D> {
    /// Those of these runs that have no work item.
    pub(super) async fn missing_work(&mut self, due: &[Subject]) -> Vec<Subject> {
        let lacks = |subject: &&Subject| self.suspects.get(subject).is_some_and(|s| s.place == Place::Work);
        let wanted: Vec<Subject> = due.iter().filter(lacks).copied().collect();
        let partitions: BTreeSet<PartitionId> = wanted.iter().map(|subject| subject.run.partition()).collect();
        let mut found = BTreeMap::new();
        for partition in partitions {
            if let Some(runs) = self.runs_with_work(partition).await {
                found.insert(partition, runs);
            }
        }
        let gone =
            |subject: &Subject| found.get(&subject.run.partition()).is_some_and(|runs| !runs.contains(&subject.run));
        wanted.into_iter().filter(gone).collect()
    }

    async fn runs_with_work(&mut self, partition: PartitionId) -> Option<HashSet<RunId>> {
        let key = self.keys.partition(partition).todo();
        let mut range = redis::cmd("LRANGE");
        range.arg(&key).arg(0).arg(ITEMS_MAX);
        let found = self.links.one(&key, range).await.ok()?;
        let items = reply::array(&found)?;
        if items.len() > ITEMS_MAX {
            return None;
        }
        // One that cannot be read is of a newer program, and may be of any run.
        items.iter().map(|item| Some(record::unpack_work(reply::bytes(item)?)?.run)).collect()
    }
}
