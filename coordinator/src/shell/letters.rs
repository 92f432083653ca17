//! Dead letters on their way into a commit: a new one gets the input of its job and its group, one that is closed leaves its
//! group. What is read for it is read when the commit before has applied, so that the index and the stream never part.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
    message::Job,
    value::Input,
};

use super::{core::Core, inputs::poison, intake::Place, owner::OwnerError};
use crate::{
    machine::{decision::Letter, fingerprint::Fingerprint},
    mutants::mutant,
    store::{
        link::Link,
        partition::{Partition, TurnError},
        record::{DeadLetter, VERSION},
        reply::{self, Fields},
    },
};

/// Letters that are read together: each is a message of some 10 KiB at most, but for rare ones.
const LETTERS_PER_READ: usize = 100;

/// Makes the letters that the batch has decided.
///
/// # Errors
/// The trip's, or the item whose letter made this panic; then nothing of this batch may be committed.
pub(super) async fn open<L: Link>(core: &mut Core, partition: &mut Partition<L>) -> Result<(), OwnerError> {
    let mut letters = std::mem::take(&mut core.staged.letters);
    while !letters.is_empty() {
        let part: Vec<(Place, Letter)> = letters.drain(..letters.len().min(LETTERS_PER_READ)).collect();
        let read = load(core, partition, &part).await?;
        for ((of, letter), (input, returns)) in part.into_iter().zip(read) {
            let done = catch_unwind(AssertUnwindSafe(|| stage(core, of.1, letter, input, returns)));
            done.map_err(|_| poison(of))?;
        }
    }
    Ok(())
}

/// The inputs that the jobs of these letters were done with, which their stream entries still hold, and how many letters each
/// step has had.
async fn load<L: Link>(
    core: &Core,
    partition: &mut Partition<L>,
    letters: &[(Place, Letter)],
) -> Result<Vec<(Option<Input>, u32)>, TurnError> {
    let mut pipe = redis::pipe();
    for ((_, run), letter) in letters {
        pipe.cmd("HGET").arg(partition.keys.letter_counts(run)).arg(letter.index);
        if let Some(of) = &letter.of {
            let (key, entry) = (partition.keys.jobs(&of.queue), of.entry.to_string());
            pipe.cmd("XRANGE").arg(key).arg(&entry).arg(&entry);
        }
    }
    let mut replies = partition.load(&pipe).await?.into_iter();
    let mut out = Vec::with_capacity(letters.len());
    for ((_, run), letter) in letters {
        let stored = replies.next().as_ref().and_then(reply::number).unwrap_or(0) as u32;
        // A step that came back in this very batch.
        let staged = core.staged.commit.letter_index.counted.iter().filter(|c| **c == (*run, letter.index)).count();
        let entry = if letter.of.is_some() { replies.next().map(reply::entries) } else { None };
        let job = entry.as_deref().and_then(<[_]>::first).and_then(|(_, fields)| decode::<Job>(fields));
        out.push((job.map(|job| job.input), stored + staged as u32));
    }
    Ok(out)
}

fn decode<T: serde::de::DeserializeOwned>(fields: &Fields) -> Option<T> {
    let (field, bytes) = fields.first()?;
    codec::decode(field, bytes).ok()
}

fn stage(core: &mut Core, id: RunId, letter: Letter, input: Option<Input>, returns: u32) {
    let run = &core.cache.runs[&id];
    let step = &run.plan.steps[letter.index as usize];
    // One that stands for another has come no second time.
    let returns = returns.saturating_sub(u32::from(letter.instead_of.is_some()));
    let fingerprint = letter.attempts.last().map(|last| Fingerprint::of(step.handler.as_str(), &last.failure));
    let dead = DeadLetter {
        v: VERSION,
        run: id,
        workflow: run.plan.workflow.clone(),
        version: run.version,
        step: step.name.clone(),
        index: letter.index,
        generation: run.step(letter.index).generation,
        handler: step.handler.clone(),
        queue: step.queue.clone(),
        cause: letter.cause,
        category: letter.category,
        attempts: letter.attempts,
        input,
        at_ms: core.now_ms,
        fingerprint,
        returns,
    };
    let commit = &mut core.staged.commit;
    commit.letters.extend((!mutant("dead_letter_not_written")).then(|| (letter.id, codec::encode(&dead))));
    match (letter.instead_of, fingerprint) {
        (None, _) => {
            *commit.counters.entry("dead_letters").or_default() += 1;
            commit.letter_index.counted.push((id, letter.index));
        }
        // Its group cannot be read from the stream any more.
        (Some(lost), Some(group)) => drop(commit.letter_index.removed.entry(group).or_default().insert(lost)),
        (Some(_), None) => {}
    }
    if let Some(group) = fingerprint {
        commit.letter_index.added.entry(group).or_default().push((dead.at_ms, letter.id));
    }
}

/// Stages the end of letters whose groups are not known: they are read. A group that is empty then is no group any more.
///
/// # Errors
/// The trip's.
pub(super) async fn close<L: Link>(core: &mut Core, partition: &mut Partition<L>) -> Result<(), TurnError> {
    let closing = std::mem::take(&mut core.staged.closing);
    if closing.is_empty() {
        return Ok(());
    }
    let mut groups: BTreeMap<StreamId, Fingerprint> = BTreeMap::new();
    for (group, letters) in &core.staged.commit.letter_index.added {
        groups.extend(letters.iter().map(|(_, id)| (*id, *group)));
    }
    for part in closing.chunks(LETTERS_PER_READ) {
        let mut pipe = redis::pipe();
        for id in part {
            let id = id.to_string();
            pipe.cmd("XRANGE").arg(partition.keys.dead()).arg(&id).arg(&id);
        }
        let found = partition.load(&pipe).await?.into_iter().flat_map(reply::entries);
        let letters = found.filter_map(|(id, fields)| Some((id, decode::<DeadLetter>(&fields)?.fingerprint?)));
        groups.extend(letters);
    }
    let known = closing.into_iter().map(|id| (id, groups.get(&id).copied()));
    close_known(core, partition, known.collect()).await
}

/// Stages the end of letters, each with its group if it is in the index.
///
/// # Errors
/// The trip's.
pub(super) async fn close_known<L: Link>(
    core: &mut Core,
    partition: &mut Partition<L>,
    letters: Vec<(StreamId, Option<Fingerprint>)>,
) -> Result<(), TurnError> {
    let commit = &mut core.staged.commit;
    let mut concerned = BTreeSet::new();
    for (id, group) in letters {
        commit.letters_closed.push(id);
        if let Some(group) = group {
            commit.letter_index.removed.entry(group).or_default().insert(id);
            concerned.insert(group);
        }
    }
    if concerned.is_empty() {
        return Ok(());
    }
    let mut pipe = redis::pipe();
    for group in &concerned {
        pipe.cmd("ZCARD").arg(partition.keys.letters(group));
    }
    let counts = partition.load(&pipe).await?;
    let index = &mut core.staged.commit.letter_index;
    for (group, count) in concerned.into_iter().zip(counts) {
        let stored = reply::number(&count).unwrap_or(0) as usize;
        let (added, removed) = (index.added.get(&group), index.removed.get(&group));
        // One that goes may have been lost from the group before, and then says nothing of those that are there.
        let stays = |(_, id): &(u64, StreamId)| !removed.is_some_and(|removed| removed.contains(id));
        let keeps = added.is_some_and(|added| added.iter().any(stays));
        let (added, removed) = (added.map_or(0, Vec::len), removed.map_or(0, BTreeSet::len));
        if !keeps && removed >= stored + added && !index.emptied.contains(&group) {
            index.emptied.push(group);
        }
    }
    Ok(())
}
