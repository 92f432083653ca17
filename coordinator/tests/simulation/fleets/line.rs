//! One connection of a client or worker, opened again when lost, and what they send over it.

use std::time::Duration;

use redis::{Pipeline, Value};
use stepfleet_coordinator::{
    machine::{decision::Transition, run::Step},
    store::{
        history, kept,
        link::{Dial, Link, LinkError},
        record::{self, RunRecord},
        reply,
    },
};
use stepfleet_protocol::{
    codec,
    id::{RunId, StreamId},
    keys::PartitionKeys,
    limits::CHUNK_STEPS,
    message::{Body, LogEntry},
};

/// See the module.
pub(crate) struct Line<D: Dial> {
    dial: D,
    link: Option<D::Link>,
}

/// What is stored of a run.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: RunRecord,
    pub(crate) steps: std::collections::BTreeMap<u32, Step>,
    /// The bytes of its history.
    pub(crate) packed: Vec<u8>,
    pub(crate) history: Vec<Transition>,
}

impl<D: Dial> Line<D> {
    pub(crate) fn new(dial: D) -> Self {
        Self { dial, link: None }
    }

    /// One trip, with a new connection after a lost one.
    pub(crate) async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(self.dial.dial(0, Duration::from_secs(2)).await?),
        };
        let replies = link.trip(pipe).await;
        if replies.is_err() {
            self.link = None;
        }
        replies
    }

    /// One command; a refusal is an error.
    pub(crate) async fn one(&mut self, cmd: redis::Cmd) -> Result<Value, LinkError> {
        let mut pipe = redis::pipe();
        pipe.add_command(cmd);
        let value = self.trip(&pipe).await?.swap_remove(0);
        reply::error(&value).map_or(Ok(value), |text| Err(LinkError::Lost(text)))
    }

    /// Appends an entry to the log.
    pub(crate) async fn append(&mut self, keys: &PartitionKeys, body: Body) -> Result<StreamId, LinkError> {
        let wire = codec::encode(&LogEntry::new(body));
        let mut add = redis::cmd("XADD");
        add.arg(keys.log()).arg("*").arg(wire.field).arg(wire.bytes);
        let added = self.one(add).await?;
        reply::text(&added).and_then(|id| id.parse().ok()).ok_or_else(|| LinkError::Lost("no id".into()))
    }

    /// Reads all of a run.
    pub(crate) async fn stored(&mut self, keys: &PartitionKeys, run: RunId) -> Result<Option<Stored>, LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(keys.run(&run)).cmd("GET").arg(keys.history(&run));
        for chunk in 1..4 {
            pipe.cmd("HGETALL").arg(keys.chunk(&run, chunk));
        }
        let mut replies = self.trip(&pipe).await?;
        let chunks: Vec<Value> = replies.split_off(2);
        let string = replies.pop();
        let fields = reply::pairs(replies.swap_remove(0));
        let packed = kept::whole(&fields, string.as_ref().and_then(reply::bytes));
        let found = fields.iter().find(|(field, _)| field == record::FIELD_RECORD.as_bytes());
        let Some((_, bytes)) = found else { return Ok(None) };
        let record = record::unpack_run(bytes).map_err(|e| LinkError::Lost(e.to_string()))?;
        let of_chunks = chunks.into_iter().flat_map(reply::pairs);
        let step = |(field, value): (bytes::Bytes, bytes::Bytes)| {
            let index = std::str::from_utf8(&field).ok()?.parse().ok()?;
            Some((index, record::unpack_step(&value).ok()?))
        };
        let steps = fields.clone().into_iter().chain(of_chunks).filter_map(step).collect();
        const { assert!(CHUNK_STEPS >= 100, "three chunks are more than any workflow here has") };
        Ok(Some(Stored { record, steps, history: history::unpack(&packed), packed }))
    }
}
