//! What cannot be decided: it is quarantined with its bytes, its run is held, and the partition goes on.

use std::collections::BTreeSet;

use stepfleet_protocol::{
    id::{CommandId, RunId, StreamId},
    message::{Answer, Command, Verb},
};
use uuid::Uuid;

use super::{
    super::intake::{Item, Malformed, Origin},
    BATCH_ITEMS_MAX, Owner, OwnerError,
};
use crate::{machine::event::Event, store::link::Link};

/// What outlives an owner that ended in doubt.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Items that no batch may contain.
    pub poison: BTreeSet<(Origin, RunId)>,
    /// Items of a batch, halved each time the server refuses a commit; 0 for the normal limit.
    pub batch_items: usize,
    /// The origin of the only item of the last batch, if there was one.
    pub last_single: Option<(Origin, RunId)>,
}

impl Memory {
    /// The server refused a commit: the next batches are half as large, until the item that it cannot bear is alone, and
    /// is poison.
    pub fn halve(&mut self) {
        let size = if self.batch_items == 0 { BATCH_ITEMS_MAX } else { self.batch_items };
        match self.last_single.take() {
            Some(item) => {
                self.poison.insert(item);
                self.batch_items = 0;
            }
            None => self.batch_items = (size / 2).max(1),
        }
    }
}

impl<L: Link> Owner<L> {
    pub(super) fn decide(&mut self, items: Vec<Item>, malformed: &mut Vec<Malformed>) -> Result<(), OwnerError> {
        self.done.items += items.len() as u64;
        self.memory.last_single = match &items[..] {
            [only] => Some((only.origin, only.run)),
            _ => None,
        };
        for item in items {
            if !self.memory.poison.contains(&(item.origin, item.run)) {
                self.core.item(item).map_err(OwnerError::Poison)?;
                continue;
            }
            let why = format!("no rule could decide it: {:?}", item.what);
            let id = if let Origin::Entry(id, _) = item.origin { id } else { StreamId::ZERO };
            malformed.push(Malformed { id, why, bytes: item.run.bytes().to_vec(), command: None });
            if let Some(command) = item.command() {
                let message = "no rule could decide it; it is quarantined".into();
                let refused = Answer::Refused { code: "undecidable".into(), message };
                self.core.staged.answers.entry(command).or_default().push(refused);
            }
            self.suspend(item.run);
        }
        Ok(())
    }

    /// Holds a run about which something was quarantined, if it can be held.
    fn suspend(&mut self, run: RunId) {
        let command = Command {
            id: CommandId(Uuid::nil()),
            actor: "stepfleet".into(),
            run,
            reason: Some("an entry about it was quarantined".into()),
            verb: Verb::Suspend { now: false },
            again: false,
        };
        if self.core.cache.runs.contains_key(&run) {
            self.core.event(run, Event::Command(command));
        }
    }

    pub(super) fn quarantine(&mut self, malformed: Vec<Malformed>) {
        for bad in malformed {
            self.done.quarantined += 1;
            tracing::error!(entry = %bad.id, why = bad.why, "quarantined");
            *self.core.staged.commit.counters.entry("quarantined").or_default() += 1;
            if let Some(command) = bad.command {
                let refused = Answer::Refused { code: "too_many_parts".into(), message: bad.why.clone() };
                self.core.staged.answers.entry(command).or_default().push(refused);
            }
            self.core.staged.commit.quarantined.push((bad.why, bad.bytes));
        }
    }
}
