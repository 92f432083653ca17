//! Where the chunks of a history are kept: those of a small run in fields of its own hash, so that it costs neither a key nor
//! a command more; the rest appended to a string of its own.
//!
//! A field of more than 64 bytes, or more than 128 of them, would make Redis turn the compact hash into one five times as
//! large (`hash-max-listpack-value`, `hash-max-listpack-entries`), so only short chunks of short runs go there. Once there is a
//! string all later chunks go there: the history is the fields in order, then the string. Older programs write to the string alone.

use bytes::Bytes;

use super::commit::HashFields;
use crate::machine::run::{HISTORY_APART, Run};

/// Chunks that a run's hash takes.
pub const CHUNKS_MAX: u8 = 32;
/// Longest chunk that a run's hash takes, in bytes.
const CHUNK_BYTES_MAX: usize = 64;
/// Steps of a run whose hash takes chunks: with them, the record and the trace context there are less than 128 fields.
const STEPS_MAX: usize = 80;
/// The field of the chunk with this number.
pub fn field(chunk: u8) -> String {
    format!("h{chunk}")
}

/// Finds a place for the next chunk of a run: puts it among the fields of its hash, or gives it back for the string.
pub fn place(run: &mut Run, chunk: Vec<u8>, fields: &mut HashFields) -> Option<Vec<u8>> {
    let small = run.steps().len() <= STEPS_MAX && chunk.len() <= CHUNK_BYTES_MAX;
    if small && run.history_chunks < CHUNKS_MAX {
        fields.push((field(run.history_chunks).into_bytes(), chunk));
        run.history_chunks += 1;
        return None;
    }
    run.history_chunks = HISTORY_APART;
    Some(chunk)
}

/// How many chunks a stored run has in its hash, or that all new ones go to the string: there is one, or should be.
pub fn chunks_of(fields: &[(Bytes, Bytes)], has_string: bool) -> u8 {
    let has = |chunk: u8| fields.iter().any(|(name, _)| name == field(chunk).as_bytes());
    if has_string || !has(0) {
        return HISTORY_APART;
    }
    (1..CHUNKS_MAX).find(|chunk| !has(*chunk)).unwrap_or(CHUNKS_MAX)
}

/// The whole history of a run: what its hash holds of it, then the string.
pub fn whole(fields: &[(Bytes, Bytes)], string: Option<&[u8]>) -> Vec<u8> {
    let of_field = |name: String| fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, chunk)| chunk);
    let mut all: Vec<u8> = (0..CHUNKS_MAX).map_while(|chunk| of_field(field(chunk))).flatten().copied().collect();
    all.extend_from_slice(string.unwrap_or_default());
    all
}

#[cfg(test)]
mod tests {
    use stepfleet_protocol::workflow::Workflow;

    use super::*;
    use crate::machine::plan::Plan;

    fn run(steps: usize) -> Run {
        let steps: serde_json::Map<String, serde_json::Value> =
            (0..steps).map(|i| (format!("s{i}"), serde_json::json!({ "handler": "h" }))).collect();
        let workflow: Workflow =
            serde_json::from_value(serde_json::json!({ "workflow": "w", "steps": steps })).expect("a legal workflow");
        let id = stepfleet_protocol::id::RunId::new(stepfleet_protocol::id::PartitionId(0), 1, 7);
        Run::new(id, Plan::compile("00".into(), &workflow).into())
    }

    /// What comes of chunks of these lengths: the stored fields, the string.
    fn kept(run: &mut Run, lengths: &[usize]) -> (Vec<(Bytes, Bytes)>, Vec<u8>) {
        let (mut fields, mut string) = (Vec::new(), Vec::new());
        for (n, length) in lengths.iter().enumerate() {
            string.extend(place(run, vec![n as u8; *length], &mut fields).into_iter().flatten());
        }
        (fields.into_iter().map(|(field, chunk)| (field.into(), chunk.into())).collect(), string)
    }

    #[test]
    fn the_history_is_the_same_wherever_its_chunks_are() {
        let few: Vec<usize> = vec![20; 12];
        let many: Vec<usize> = vec![60; 100];
        let mixed = vec![20, 64, 65, 20, 20];
        let long_first = vec![200, 20, 20];
        for (steps, lengths) in [(10, &few), (10, &many), (10, &mixed), (10, &long_first), (81, &few)] {
            let mut of = run(steps);
            let (fields, string) = kept(&mut of, lengths);
            let expected: Vec<u8> = lengths.iter().enumerate().flat_map(|(n, l)| vec![n as u8; *l]).collect();
            assert_eq!(whole(&fields, Some(&string)), expected, "{lengths:?}");
            assert_eq!(
                chunks_of(&fields, !string.is_empty()),
                of.history_chunks,
                "{lengths:?}: the next owner goes on at the same place"
            );
            assert!(fields.iter().all(|(_, chunk)| chunk.len() <= 64) && fields.len() <= 32, "the hash stays compact");
        }
        assert_eq!(chunks_of(&[], true), HISTORY_APART, "an older program kept everything in the string");
        let (fields, _) = kept(&mut run(10), &few);
        assert_eq!(chunks_of(&fields, true), HISTORY_APART, "an older program went on with the run in the string");
    }
}
