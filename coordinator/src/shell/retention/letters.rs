//! Dead letters beyond age or number, the oldest first. The step of one that goes forgets it, so that a replay that comes
//! too late is refused; `runs retry` needs no letter.

use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
    limits::CHUNK_STEPS,
};

use super::{
    super::{core::Touched, letters},
    Sweep,
};
use crate::store::{
    link::Link,
    partition::TurnError,
    record::{self, DeadLetter},
    reply::{self, Fields},
};

/// Letters that are read at once. One may be large: every attempt of its budget, and an input.
const LETTERS_PER_TRIP: u64 = 20;
/// Bytes of letters that one look reads, about.
const LETTER_BYTES: usize = 1 << 20;

impl<L: Link> Sweep<'_, L> {
    /// Stages the deletion of letters.
    pub(super) async fn letters(&mut self) -> Result<(), TurnError> {
        let key = self.partition.keys.dead();
        let mut pipe = redis::pipe();
        pipe.cmd("XLEN").arg(&key);
        let count = self.partition.load(&pipe).await?.first().and_then(reply::number).unwrap_or(0) as u64;
        // Those that this very batch closes are there still.
        let open = count.saturating_sub(self.core.staged.commit.letters_closed.len() as u64);
        let mut beyond = open.saturating_sub(self.retention.letters_max);
        // The last millisecond that is too old; without a sequence an end takes in all of it.
        let too_old = self.now_ms.saturating_sub(self.retention.letters_ms).saturating_sub(1).to_string();
        let (mut from, mut bytes) = (String::from("-"), 0);
        loop {
            // More than what remains may be wanted, but no more than that is old.
            let (to, at_once) = match beyond {
                0 => (too_old.as_str(), LETTERS_PER_TRIP),
                _ => ("+", beyond.min(LETTERS_PER_TRIP)),
            };
            let mut pipe = redis::pipe();
            pipe.cmd("XRANGE").arg(&key).arg(&from).arg(to).arg("COUNT").arg(at_once);
            let found = self.partition.load(&pipe).await?.into_iter().next().map(reply::entries).unwrap_or_default();
            let Some((last, _)) = found.last() else { return Ok(()) };
            if self.is_full() || bytes > LETTER_BYTES {
                self.out.more = true;
                return Ok(());
            }
            from = format!("({last}");
            bytes += found.iter().flat_map(|(_, fields)| fields).map(|(_, bytes)| bytes.len()).sum::<usize>();
            beyond = beyond.saturating_sub(self.delete_letters(found).await?);
        }
    }

    /// Stages the deletion of these letters, but for those that the batch closes anyway. Returns how many that is.
    async fn delete_letters(&mut self, found: Vec<(StreamId, Fields)>) -> Result<u64, TurnError> {
        let before = self.out.expired.letters;
        let (mut unloaded, mut closed) = (Vec::new(), Vec::new());
        for (id, fields) in found {
            if self.core.staged.commit.letters_closed.contains(&id) {
                continue;
            }
            self.out.expired.letters += 1;
            // One that cannot be read has no step that could be told.
            let letter = fields.first().and_then(|(field, bytes)| codec::decode::<DeadLetter>(field, bytes).ok());
            closed.push((id, letter.as_ref().and_then(|letter| letter.fingerprint)));
            let Some(letter) = letter else { continue };
            let Some(run) = self.core.cache.runs.get_mut(&letter.run) else {
                unloaded.push((id, letter.run, letter.index));
                continue;
            };
            let state = run.state;
            if run.expire_letter(letter.index, id) {
                let touched = Touched { was: Some(state), ..Touched::default() };
                self.core.staged.touched.entry(letter.run).or_insert(touched);
            }
        }
        letters::close_known(self.core, self.partition, closed).await?;
        self.forget_letters(unloaded).await?;
        Ok(self.out.expired.letters - before)
    }

    /// The same for runs that are not in mind: a whole one is not loaded for this.
    async fn forget_letters(&mut self, letters: Vec<(StreamId, RunId, u32)>) -> Result<(), TurnError> {
        if letters.is_empty() {
            return Ok(());
        }
        let keys = &self.partition.keys;
        let mut pipe = redis::pipe();
        for (_, run, index) in &letters {
            let chunk = index / CHUNK_STEPS;
            let key = if chunk == 0 { keys.run(run) } else { keys.chunk(run, chunk) };
            pipe.cmd("HGET").arg(key).arg(*index);
        }
        for ((id, run, index), value) in letters.into_iter().zip(self.partition.load(&pipe).await?) {
            let step = reply::bytes(&value).and_then(|bytes| record::unpack_step(bytes).ok());
            // A run that this commit deletes is written first and deleted after: see `Commit::write`.
            if let Some(mut step) = step.filter(|step| step.letter == Some(id)) {
                step.letter = None;
                let field = (index.to_string().into_bytes(), record::pack_step(&step));
                self.core.staged.commit.hashes.push((run, index / CHUNK_STEPS, vec![field]));
            }
        }
        Ok(())
    }
}
