//! Log entries from reports: who shares an entry, and how an entry becomes commands.

use std::sync::Arc;

use bytes::Bytes;
use redis::Pipeline;
use stepfleet_protocol::{
    codec,
    id::{JobId, PartitionId, WorkerId},
    keys::Keys,
    message::{Body, JobRef, JobResult, LogEntry, Outcome, Results, Started},
    value::Payload,
};

use crate::{
    kit::{Report, Unreadable},
    limits::{ENTRY_BYTES_MAX, ENTRY_RESULTS_MAX},
};

/// About what a result takes beside its payload.
const RESULT_BYTES: usize = 200;

/// One XADD, with the values that it names. Written whole or not at all, and again when in doubt.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) partition: PartitionId,
    stream: String,
    fields: Vec<(&'static str, Vec<u8>)>,
    values: Vec<(String, Bytes)>,
    /// The jobs whose results it holds.
    pub(super) jobs: Vec<JobId>,
    /// Size of fields and values.
    pub(super) bytes: usize,
}

impl Entry {
    fn new(partition: PartitionId, stream: String, fields: Vec<(&'static str, Vec<u8>)>) -> Self {
        let bytes = fields.iter().map(|(_, bytes)| bytes.len()).sum();
        Self { partition, stream, fields, values: Vec::new(), jobs: Vec::new(), bytes }
    }

    fn logged(partition: PartitionId, keys: &Keys, body: Body) -> Self {
        let wire = codec::encode(&LogEntry::new(body));
        Self::new(partition, keys.partition(partition).log(), vec![(wire.field, wire.bytes)])
    }

    /// Appends the commands and returns how many they are. The last one's reply tells whether all was written.
    pub(super) fn command(&self, pipeline: &mut Pipeline) -> usize {
        if self.values.is_empty() {
            self.xadd(pipeline);
            return 1;
        }
        pipeline.cmd("MULTI");
        for (key, value) in &self.values {
            pipeline.cmd("SET").arg(key).arg(&value[..]);
        }
        self.xadd(pipeline);
        pipeline.cmd("EXEC");
        self.values.len() + 3
    }

    fn xadd(&self, pipeline: &mut Pipeline) {
        let command = pipeline.cmd("XADD").arg(&self.stream).arg("*");
        for (field, bytes) in &self.fields {
            command.arg(*field).arg(&bytes[..]);
        }
    }
}

/// The entries of one partition's reports: first what was started, then what became of jobs, in their order.
pub(super) fn entries(partition: PartitionId, reports: Vec<Report>, keys: &Keys, worker: &WorkerId) -> Vec<Arc<Entry>> {
    let mut entries = Vec::new();
    let mut started: Vec<(JobRef, u64)> = Vec::new();
    let mut batch = Batch::default();
    for report in reports {
        match report {
            Report::Result { result, value, .. } => {
                if batch.is_full() {
                    entries.push(std::mem::take(&mut batch).entry(partition, keys, worker));
                }
                batch.add(result, value);
            }
            Report::Started { job, running_ms, .. } => started.push((job, running_ms)),
            Report::Unreadable(unreadable) => entries.push(quarantined(unreadable, keys, worker)),
        }
    }
    if !batch.results.is_empty() {
        entries.push(batch.entry(partition, keys, worker));
    }
    let chunks = started.chunks(ENTRY_RESULTS_MAX).map(|jobs| {
        let body = Body::Started(Started { worker: worker.clone(), jobs: jobs.to_vec() });
        Entry::logged(partition, keys, body)
    });
    chunks.chain(entries).map(Arc::new).collect()
}

#[derive(Default)]
struct Batch {
    results: Vec<JobResult>,
    values: Vec<(JobId, Bytes)>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.results.len() >= ENTRY_RESULTS_MAX || self.bytes >= ENTRY_BYTES_MAX
    }

    fn add(&mut self, result: JobResult, value: Option<Bytes>) {
        self.bytes += RESULT_BYTES + payload_bytes(&result.outcome) + value.as_ref().map_or(0, Bytes::len);
        if let Some(value) = value {
            self.values.push((result.of.job, value));
        }
        self.results.push(result);
    }

    fn entry(self, partition: PartitionId, keys: &Keys, worker: &WorkerId) -> Entry {
        let jobs = self.results.iter().map(|result| result.of.job).collect();
        let body = Body::Results(Results { worker: worker.clone(), results: self.results });
        let mut entry = Entry::logged(partition, keys, body);
        let of = keys.partition(partition);
        entry.bytes += self.values.iter().map(|(_, value)| value.len()).sum::<usize>();
        entry.values = self.values.into_iter().map(|(job, value)| (of.value(job), value)).collect();
        entry.jobs = jobs;
        entry
    }
}

fn payload_bytes(outcome: &Outcome) -> usize {
    let inline = |payload: &Payload| match payload {
        Payload::Inline(bytes) => bytes.len(),
        Payload::Ref(_) => 0,
    };
    match outcome {
        Outcome::Completed(output) => output.as_ref().map_or(0, inline),
        Outcome::Failed(failure) => {
            let causes: usize = failure.causes.iter().map(String::len).sum();
            failure.message.len() + causes + failure.detail.as_ref().map_or(0, inline)
        }
        Outcome::Returned(_) | Outcome::Cancelled => 0,
    }
}

/// What names no job goes to the partition's quarantine; whoever clears that acks it.
fn quarantined(unreadable: Unreadable, keys: &Keys, worker: &WorkerId) -> Entry {
    let fields = vec![
        ("from", unreadable.stream.into_bytes()),
        ("entry", unreadable.entry.to_string().into_bytes()),
        ("worker", worker.as_str().as_bytes().to_vec()),
        ("why", unreadable.why.into_bytes()),
        (codec::FIELD_PLAIN, unreadable.bytes),
    ];
    Entry::new(unreadable.partition, keys.partition(unreadable.partition).quarantine(), fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepfleet_protocol::{
        id::{RunId, StreamId},
        name::Name,
    };

    fn reference(n: u32) -> JobRef {
        JobRef {
            job: JobId { n, ..JobId::default() },
            run: RunId::new(PartitionId(1), 1, 1),
            index: n,
            queue: Name::new("q").expect("a legal name"),
            entry: StreamId::ZERO,
        }
    }

    fn result(n: u32, bytes: usize) -> Report {
        let outcome = Outcome::Completed(Some(Payload::Inline(vec![1; bytes].into())));
        let result = JobResult { of: reference(n), run_ms: 0, outcome, gate: None };
        Report::Result { partition: PartitionId(1), result, value: None }
    }

    fn jobs_of(reports: Vec<Report>) -> Vec<usize> {
        let worker = WorkerId::new(&Name::new("w").expect("a legal name"), 1);
        entries(PartitionId(1), reports, &Keys::default(), &worker).iter().map(|entry| entry.jobs.len()).collect()
    }

    #[test]
    fn results_share_entries_up_to_their_limits() {
        assert_eq!(jobs_of((0..300).map(|n| result(n, 10)).collect()), [128, 128, 44]);
        assert_eq!(jobs_of((0..3).map(|n| result(n, ENTRY_BYTES_MAX)).collect()), [1, 1, 1]);
        assert_eq!(jobs_of(Vec::new()), [0; 0]);
    }

    #[test]
    fn what_was_started_stands_before_its_result() {
        let started = Report::Started { partition: PartitionId(1), job: reference(0), running_ms: 1 };
        assert_eq!(jobs_of(vec![result(0, 1), started]), [0, 1]);
    }
}
