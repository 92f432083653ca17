//! One connection of a client or worker, opened again when lost, and what they send over it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
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
    id::{PartitionId, RunId, StreamId},
    keys::{PartitionKeys, slot},
    message::{Body, LogEntry},
};

/// Hashes of steps beside the run's own that the first read of a run asks for.
const CHUNKS_AT_ONCE: u32 = 3;

/// See the module.
pub(crate) struct Line<D: Dial> {
    dial: D,
    timeout: Duration,
    link: Option<D::Link>,
}

/// What is stored of a run.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: RunRecord,
    pub(crate) steps: BTreeMap<u32, Step>,
    /// The bytes of its history.
    pub(crate) packed: Vec<u8>,
    pub(crate) history: Vec<Transition>,
}

impl<D: Dial> Line<D> {
    pub(crate) fn new(dial: D) -> Self {
        Self::within(dial, Duration::from_secs(2))
    }

    /// One that waits so long for a reply.
    pub(crate) fn within(dial: D, timeout: Duration) -> Self {
        Self { dial, timeout, link: None }
    }

    /// One trip, with a new connection after a lost one.
    pub(crate) async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(self.dial.dial(slot(PartitionId(0)), self.timeout).await?),
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
        let mut chunk = 1;
        for _ in 0..CHUNKS_AT_ONCE {
            pipe.cmd("HGETALL").arg(keys.chunk(&run, chunk));
            chunk += 1;
        }
        let mut replies = self.trip(&pipe).await?;
        let mut last = reply::pairs(replies.pop().unwrap_or(Value::Nil));
        let chunks: Vec<Value> = replies.split_off(2);
        let string = replies.pop();
        let fields = reply::pairs(replies.swap_remove(0));
        let packed = kept::whole(&fields, string.as_ref().and_then(reply::bytes));
        let found = fields.iter().find(|(field, _)| field == record::FIELD_RECORD.as_bytes());
        let Some((_, bytes)) = found else { return Ok(None) };
        let record = record::unpack_run(bytes).map_err(|e| LinkError::Lost(e.to_string()))?;
        let mut steps = BTreeMap::new();
        read_steps(fields.into_iter().chain(chunks.into_iter().flat_map(reply::pairs)), &mut steps)?;
        // A wide run has its steps in many hashes.
        while !last.is_empty() {
            read_steps(last, &mut steps)?;
            let mut get = redis::cmd("HGETALL");
            get.arg(keys.chunk(&run, chunk));
            last = reply::pairs(self.one(get).await?);
            chunk += 1;
        }
        Ok(Some(Stored { record, steps, history: history::unpack(&packed), packed }))
    }
}

fn read_steps(
    fields: impl IntoIterator<Item = (Bytes, Bytes)>,
    steps: &mut BTreeMap<u32, Step>,
) -> Result<(), LinkError> {
    for (field, value) in fields {
        if let Some(index) = std::str::from_utf8(&field).ok().and_then(|text| text.parse().ok()) {
            steps.insert(index, record::unpack_step(&value).map_err(|e| LinkError::Lost(e.to_string()))?);
        }
    }
    Ok(())
}
