//! The other side of a worker: dispatches jobs as an owner does, and reads the logs.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, Ordering},
};

use redis::{Value, aio::MultiplexedConnection};
use serde_json::Value as Json;
use stepfleet_protocol::{
    codec,
    id::{JobId, PartitionId, Reign, RunId, StreamId, WorkerId},
    keys::{Keys, PartitionKeys},
    message::{Body, Job, JobResult, LogEntry, Outcome},
    name::Name,
    value::{Input, Payload},
};
use stepfleet_worker::{Builder, Worker};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::server::{Server, until};

static JOBS: AtomicU32 = AtomicU32::new(1);

/// Dispatches and reads. Partitions are `0..partitions`.
pub(crate) struct Owner {
    pub(crate) connection: MultiplexedConnection,
    partitions: u16,
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a legal name")
}

pub(crate) fn keys(partition: u16) -> PartitionKeys {
    Keys::default().partition(PartitionId(partition))
}

/// A job for a handler, of the first partition.
pub(crate) fn job(handler: &str, input: Json) -> Job {
    let n = JOBS.fetch_add(1, Ordering::Relaxed);
    let input = match input {
        Json::Null => Input::None,
        input => Input::Whole(Payload::Inline(codec::pack(&input).into())),
    };
    Job {
        v: codec::VERSION,
        id: JobId { reign: Reign { counter: 1, random: 7 }, seq: 1, n },
        run: RunId::new(PartitionId(0), 1_000, u64::from(n)),
        workflow: name("flow"),
        step: name("step"),
        index: 0,
        generation: 1,
        attempt: 1,
        max_attempts: 3,
        handler: name(handler),
        timeout_ms: 60_000,
        input,
        traceparent: None,
        target: None,
        canary: false,
        undo: false,
    }
}

impl Owner {
    pub(crate) async fn new(server: &Server, partitions: u16) -> Self {
        let mut owner = Self { connection: server.connection().await, partitions };
        owner.ask(redis::cmd("HSET").arg(Keys::default().meta()).arg("partitions").arg(partitions)).await;
        owner
    }

    pub(crate) async fn ask(&mut self, command: &redis::Cmd) -> Value {
        command.query_async(&mut self.connection).await.expect("the server does it")
    }

    /// Puts a job on the stream of a queue.
    pub(crate) async fn dispatch(&mut self, partition: u16, queue: &str, job: &Job) -> StreamId {
        let wire = codec::encode(job);
        let stream = keys(partition).jobs(&name(queue));
        let id = self.ask(redis::cmd("XADD").arg(stream).arg("*").arg(wire.field).arg(&wire.bytes)).await;
        match id {
            Value::BulkString(id) => StreamId::from_reply(&id).expect("an id"),
            other => panic!("XADD answered {other:?}"),
        }
    }

    /// Every log entry so far.
    pub(crate) async fn log(&mut self, partition: u16) -> Vec<Body> {
        let rows: Vec<(String, HashMap<String, Vec<u8>>)> = redis::cmd("XRANGE")
            .arg(keys(partition).log())
            .arg("-")
            .arg("+")
            .query_async(&mut self.connection)
            .await
            .expect("the log can be read");
        let bodies = rows.into_iter().map(|(_, fields)| {
            let (field, bytes) = fields.into_iter().next().expect("a field");
            codec::decode::<LogEntry>(field.as_bytes(), &bytes).expect("a log entry").body
        });
        bodies.collect()
    }

    /// Every result so far, of all partitions.
    pub(crate) async fn results(&mut self) -> Vec<JobResult> {
        let mut all = Vec::new();
        for partition in 0..self.partitions {
            for body in self.log(partition).await {
                if let Body::Results(results) = body {
                    all.extend(results.results);
                }
            }
        }
        all
    }

    /// Waits for the result of a job.
    pub(crate) async fn result(&mut self, job: &Job) -> JobResult {
        let mut found = None;
        until("there is a result", async || {
            found = self.results().await.into_iter().find(|result| result.of.job == job.id);
            found.is_some()
        })
        .await;
        found.expect("it was found")
    }

    /// Dispatches to the queue `q` of the first partition and waits for the outcome.
    pub(crate) async fn outcome(&mut self, job: &Job) -> Outcome {
        self.dispatch(0, "q", job).await;
        self.result(job).await.outcome
    }

    /// Waits for as many results.
    pub(crate) async fn wait_for(&mut self, count: usize) -> Vec<JobResult> {
        let mut results = Vec::new();
        until("there are all results", async || {
            results = self.results().await;
            results.len() >= count
        })
        .await;
        results
    }

    /// The workers that are registered.
    pub(crate) async fn workers(&mut self) -> Vec<WorkerId> {
        let ids: Vec<String> = redis::cmd("ZRANGE")
            .arg(Keys::default().workers())
            .arg(0)
            .arg(-1)
            .query_async(&mut self.connection)
            .await
            .expect("the registry can be read");
        ids.iter().map(|id| id.parse().expect("a worker id")).collect()
    }

    /// Waits until a worker is registered.
    pub(crate) async fn worker(&mut self) -> WorkerId {
        let mut found = None;
        until("a worker beats", async || {
            found = self.workers().await.pop();
            found.is_some()
        })
        .await;
        found.expect("it was found")
    }
}

/// A worker that runs in this process until it is told to stop.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async {
                let _dropped_is_stopped = stopped.await;
            };
            worker.run_until(shutdown).await.expect("the worker runs");
        });
        Self { stop: Some(stop), task }
    }

    pub(crate) fn tell_to_drain(&mut self) {
        self.stop.take();
    }

    pub(crate) fn has_left(&self) -> bool {
        self.task.is_finished()
    }

    pub(crate) async fn left(mut self) {
        self.stop.take();
        self.task.await.expect("the worker ends in peace");
    }
}

/// A worker of the queue `q`, to be completed.
pub(crate) fn worker(server: &Server) -> Builder {
    Worker::builder().redis(&server.url()).name("w").queue("q").stock_handlers()
}

pub(crate) fn start(builder: Builder) -> Running {
    Running::start(builder.build().expect("a worker that is built right"))
}
