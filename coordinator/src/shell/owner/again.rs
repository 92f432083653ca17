//! What may have been decided before: commands that are sent again, and runs that were cancelled before they were known.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::{
    codec,
    id::{CommandId, RunId},
    message::Reply,
};

use super::{
    super::intake::{Item, What},
    Owner, OwnerError,
};
use crate::{
    mutants::mutant,
    store::{link::Link, reply},
};

impl<L: Link> Owner<L> {
    /// Looks for tombstones of runs that were sent before, perhaps, and are not known.
    pub(super) async fn look_for_tombstones(&mut self, items: &[Item]) -> Result<(), OwnerError> {
        const PER_TRIP: usize = 500;
        let again = items.iter().filter(|item| matches!(item.what, What::New { .. }) && item.looks_back());
        let unknown = again.map(|item| item.run).filter(|run| !self.core.cache.runs.contains_key(run));
        let runs: Vec<RunId> = unknown.collect();
        for part in runs.chunks(PER_TRIP) {
            let mut pipe = redis::pipe();
            for run in part {
                pipe.cmd("EXISTS").arg(self.partition.keys.tombstone(run));
            }
            let replies = self.partition.load(&pipe).await?;
            let buried = part.iter().zip(&replies).filter(|(_, reply)| reply::number(reply) == Some(1));
            self.core.staged.tombstones.extend(buried.map(|(run, _)| *run));
        }
        Ok(())
    }

    /// A command that was sent before and has an answer is not decided again: its answer is announced again.
    pub(super) async fn repeat_answers(&mut self, items: &mut Vec<Item>) -> Result<(), OwnerError> {
        let again: BTreeSet<CommandId> = items.iter().filter_map(Item::sent_before).collect();
        if again.is_empty() || mutant("command_decided_twice") {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for id in &again {
            pipe.cmd("GET").arg(self.partition.keys.reply(id));
        }
        let replies = self.partition.load(&pipe).await?;
        let stored = replies.iter().filter_map(reply::bytes).filter_map(|b| codec::unpack::<Reply>(b).ok());
        let stored: BTreeMap<CommandId, Reply> = stored.map(|reply| (reply.id, reply)).collect();
        items.retain(|item| item.sent_before().is_none_or(|id| !stored.contains_key(&id)));
        self.core.staged.answers.extend(stored.into_iter().map(|(id, reply)| (id, reply.answers)));
        Ok(())
    }
}
