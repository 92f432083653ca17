//! Dead letters get the input that their last job was done with.

use stepfleet_protocol::{codec, id::RunId, message::Job, value::Input};

use super::super::core::Core;
use crate::{
    machine::decision::Letter,
    store::{
        link::Link,
        partition::{Partition, TurnError},
        record::{DeadLetter, VERSION},
        reply,
    },
};

/// The inputs that the jobs of these letters were done with: their stream entries still hold them.
pub(super) async fn load_inputs<L: Link>(
    partition: &mut Partition<L>,
    letters: impl Iterator<Item = &Letter>,
) -> Result<Vec<Option<Input>>, TurnError> {
    let mut pipe = redis::pipe();
    let mut asked = Vec::new();
    for letter in letters {
        asked.push(letter.of.is_some());
        if let Some(of) = &letter.of {
            let (key, entry) = (partition.keys.jobs(&of.queue), of.entry.to_string());
            pipe.cmd("XRANGE").arg(key).arg(&entry).arg(&entry);
        }
    }
    let mut replies = if pipe.is_empty() { Vec::new() } else { partition.load(&pipe).await? }.into_iter();
    let input = |asked: bool| {
        let found = if asked { replies.next().map(reply::entries) } else { None }.unwrap_or_default();
        let (field, bytes) = found.first()?.1.first()?;
        codec::decode::<Job>(field, bytes).ok().map(|job| job.input)
    };
    Ok(asked.into_iter().map(input).collect())
}

pub(super) fn stage_letter(core: &mut Core, id: RunId, letter: Letter, input: Option<Input>) {
    let run = &core.cache.runs[&id];
    let step = &run.plan.steps[letter.index as usize];
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
    };
    *core.staged.commit.counters.entry("dead_letters").or_default() += 1;
    core.staged.commit.letters.push((letter.id, codec::encode(&dead)));
}
