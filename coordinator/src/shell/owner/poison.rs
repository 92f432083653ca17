//! What cannot be decided: it is quarantined with its bytes, its run is held, and the partition goes on.
//!
//! A panic ends the reign, because nothing of its batch may be committed. The next owner knows the item, if it is known, and
//! goes another way; else batches are halved until the item is alone.

use std::collections::{BTreeMap, BTreeSet};

use stepfleet_protocol::{
    failure::cut,
    id::{CommandId, RunId, StreamId},
    limits::ERROR_TEXT_BYTES_MAX,
    message::{Answer, Command, Verb},
    state::State,
};
use uuid::Uuid;

use super::{
    super::{
        cache::BrokenRun,
        core::{Blame, Core, Poison},
        intake::{Item, Malformed, Origin, Place, What},
    },
    BATCH_ITEMS_MAX, Owner, OwnerError,
};
use crate::{
    machine::{
        decision::{Transition, Why},
        event::Event,
    },
    mutants::mutant,
    store::{
        history,
        link::Link,
        record::{self, RecordError},
    },
};

/// Runs that are not there and that a reign tells of, so that a fail-over which took back many does not fill the server.
const STRANGERS_MAX: usize = 1_000;

/// What outlives an owner that ended in doubt.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Items that no batch may decide.
    pub poison: BTreeSet<Place>,
    /// Items whose run is held before they are decided, so that nothing is dispatched by them.
    pub held: BTreeSet<Place>,
    /// Items of a batch, halved each time the server refuses a commit; 0 for the normal limit.
    pub batch_items: usize,
    /// The last batch, if no smaller one could tell its items apart: it was one item, or the parts of one log entry.
    pub last_alone: Vec<Place>,
}

impl Memory {
    /// The server refused a commit, or something panicked: the next batches are half as large, until what cannot be borne is
    /// alone, and is poison.
    pub fn halve(&mut self) {
        let size = if self.batch_items == 0 { BATCH_ITEMS_MAX } else { self.batch_items };
        if self.last_alone.is_empty() {
            self.batch_items = (size / 2).max(1);
        } else {
            self.poison.extend(self.last_alone.drain(..));
            self.batch_items = 0;
        }
    }

    /// Learns from the end of a reign how the next one has to go on.
    pub fn learn(&mut self, error: &OwnerError) {
        match error {
            OwnerError::Poison(Poison { item, by: Blame::Rule }) => drop(self.poison.insert(*item)),
            OwnerError::Poison(Poison { item, by: Blame::Input }) => {
                // To hold its run was no help: then it goes undecided.
                if !self.held.insert(*item) {
                    self.poison.insert(*item);
                }
            }
            OwnerError::Panicked => self.halve(),
            OwnerError::Turn(refused) if refused.blames_the_commit() => self.halve(),
            OwnerError::Turn(_) | OwnerError::Newer(_) => {}
        }
    }

    /// The items of a batch that no smaller batch could tell apart; none if a smaller one could.
    pub(super) fn alone(&self, items: &[Item]) -> Vec<Place> {
        let entry = |item: &Item| if let Origin::Entry(id, _) = item.origin { Some(id) } else { None };
        let alone = match items {
            [] => false,
            [_] => true,
            [first, rest @ ..] => {
                self.batch_items == 1 && entry(first).is_some() && rest.iter().all(|item| entry(item) == entry(first))
            }
        };
        if alone { items.iter().map(Item::place).collect() } else { Vec::new() }
    }

    /// Forgets items that a commit has passed by: those that look the same later are others.
    pub(super) fn forget(&mut self, items: impl Iterator<Item = Place>) {
        for item in items {
            self.poison.remove(&item);
            self.held.remove(&item);
        }
    }
}

impl<L: Link> Owner<L> {
    /// Loads what the items are about. Those about a run or plan that is broken are quarantined: a report is acked and changes
    /// nothing, a wish is refused.
    pub(super) async fn bring(
        &mut self,
        items: &mut Vec<Item>,
        malformed: &mut Vec<Malformed>,
    ) -> Result<(), OwnerError> {
        let (runs, plans) = Core::wanted(items);
        let Self { partition, core, .. } = self;
        let broken_plans = core.cache.load_plans(partition, plans).await?;
        let broken_runs = core.cache.load_runs(partition, runs).await?;
        if !broken_plans.is_empty() {
            let hit = |item: &&Item| matches!(&item.what, What::New { new, .. } if broken_plans.contains(&new.plan));
            self.memory.poison.extend(items.iter().filter(hit).map(Item::place));
        }
        let mut broken = BTreeMap::new();
        for run in broken_runs {
            if let RecordError::Newer { version, .. } = run.error {
                return Err(OwnerError::Newer(version));
            }
            self.suspend_stored(&run);
            broken.insert(run.id, run.error);
        }
        if broken.is_empty() {
            return Ok(());
        }
        // They are there, and told of below.
        self.core.strangers.extend(broken.keys().copied());
        items.retain(|item| {
            let Some(error) = broken.get(&item.run) else { return true };
            if self.core.forget_job(&item.what) {
                return false;
            }
            malformed.push(quarantined(item, &format!("run {}: {error}", item.run)));
            self.refuse(item);
            item.command().is_none()
        });
        Ok(())
    }

    pub(super) fn decide(&mut self, items: Vec<Item>, malformed: &mut Vec<Malformed>) -> Result<(), OwnerError> {
        self.done.items += items.len() as u64;
        for item in items {
            let place = item.place();
            let (poison, held) = (self.memory.poison.contains(&place), self.memory.held.contains(&place));
            if poison || held {
                self.avoided.push(place);
                self.pass_by(item, poison, malformed)?;
            } else {
                malformed.extend(self.stranger(&item));
                self.core.item(item).map_err(OwnerError::Poison)?;
            }
        }
        Ok(())
    }

    /// What is told of a result whose run is not there, once for each run and reign: a fail-over has taken an acknowledged
    /// run back, and this may be all that is left of it. The result itself is acked and changes nothing.
    fn stranger(&mut self, item: &Item) -> Option<Malformed> {
        let core = &mut self.core;
        let is_strange = matches!(item.what, What::Result { .. }) && !core.cache.runs.contains_key(&item.run);
        if !is_strange || core.strangers.len() >= STRANGERS_MAX || !core.strangers.insert(item.run) {
            return None;
        }
        let why = "is not there, and a worker did a job of it: a fail-over took it back, or retention has deleted it";
        Some(quarantined(item, &format!("run {} {why}", item.run)))
    }

    /// Quarantines an item and holds its run. What somebody reported is decided all the same, unless it is `poison`: a held
    /// run dispatches nothing, and nothing is lost. A wish is refused.
    fn pass_by(&mut self, item: Item, poison: bool, malformed: &mut Vec<Malformed>) -> Result<(), OwnerError> {
        let why = if poison { "no rule could decide it" } else { "the input of what follows could not be made" };
        malformed.push(quarantined(&item, why));
        self.core.at = item.place();
        self.suspend(item.run);
        self.refuse(&item);
        if poison || item.command().is_some() {
            return Ok(());
        }
        self.core.item(item).map_err(OwnerError::Poison)
    }

    /// Tells who wished for a quarantined item, if somebody did.
    fn refuse(&mut self, item: &Item) {
        if let Some(command) = item.command() {
            let message = "it could not be decided; it is quarantined".into();
            let refused = Answer::Refused { code: "undecidable".into(), message };
            self.core.staged.answers.entry(command).or_default().push(refused);
        }
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
            campaign: None,
        };
        if self.core.cache.runs.contains_key(&run) {
            self.core.event(run, Event::Command(command));
        }
    }

    /// Holds a run that cannot be loaded, by its record alone, so that it does not look as if it went on.
    fn suspend_stored(&mut self, run: &BrokenRun) {
        let Some((was, packed)) = run.record.as_deref().and_then(record::suspend_packed) else { return };
        let held = Transition {
            step: None,
            from: was,
            to: State::Suspended,
            at_ms: self.core.now_ms,
            attempt: 0,
            why: Why::Quarantined,
            worker: None,
            actor: Some("stepfleet".into()),
            note: Some(run.error.to_string().into()),
        };
        let commit = &mut self.core.staged.commit;
        commit.hashes.push((run.id, 0, vec![(record::FIELD_RECORD.into(), packed)]));
        commit.history.push((run.id, history::pack(&[held])));
        commit.unlisted.entry(State::Processing).or_default().push(run.id);
        commit.listed.entry(State::Suspended).or_default().push((run.id.created_ms(), run.id));
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
            self.core.staged.commit.quarantined.extend((!mutant("garbage_not_kept")).then_some((bad.why, bad.bytes)));
        }
    }
}

/// An item for the quarantine, with what it says.
fn quarantined(item: &Item, why: &str) -> Malformed {
    let why = cut(format!("{why}: {:?}", item.what), ERROR_TEXT_BYTES_MAX);
    let id = if let Origin::Entry(id, _) = item.origin { id } else { StreamId::ZERO };
    Malformed { id, why, bytes: item.run.bytes().to_vec(), command: None }
}
