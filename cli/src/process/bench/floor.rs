//! The floor: the bare commands that any queue on streams needs, in batches, with no state at all.
//!
//! It is as quick as the server: a batch is one write and one answer, the next batch of jobs is read with the acks of the
//! one before, and a reader is told inside this process that a whole batch is there, so that none is read in parts.

use std::time::Instant;

use redis::streams::StreamReadReply;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::lab::Lab;
use super::probe::connection;

const BATCH: usize = 100;
/// Batches that a writer may be ahead of its reader.
const AHEAD: usize = 16;
const PAYLOAD: [u8; 100] = [b'x'; 100];

/// Jobs a second through a job stream and a result stream: XADD, XREADGROUP and one XACK a batch of 100 for each, trimmed.
pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let batches = lab.args.floor_jobs.div_ceil(BATCH);
    lab.probe.flush().await?;
    for stream in ["jobs", "results"] {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(stream).arg("g").arg(0).arg("MKSTREAM");
        create.query_async::<()>(&mut lab.probe.connection).await?;
    }
    let before = lab.probe.server().await?;
    let began = Instant::now();
    let ((job, jobs), (result, results)) = (channel(AHEAD), channel(AHEAD));
    let produced = tokio::spawn(produce(lab.url.clone(), batches, job));
    let worked = tokio::spawn(consume(lab.url.clone(), "jobs", jobs, Some(("results", result))));
    consume(lab.url.clone(), "results", results, None).await?;
    produced.await??;
    worked.await??;
    let took = began.elapsed().as_secs_f64();
    let after = lab.probe.server().await?;
    let jobs = (batches * BATCH) as f64;
    lab.report.put("floor.jobs_per_s", jobs / took);
    lab.report.put("floor.redis_us_per_job", (after.cpu_s - before.cpu_s) * 1e6 / jobs);
    lab.report.put("floor.redis_commands_per_job", (after.commands - before.commands) / jobs);
    Ok(())
}

async fn produce(url: String, batches: usize, told: Sender<()>) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    for _ in 0..batches {
        let mut pipe = redis::pipe();
        for _ in 0..BATCH {
            pipe.cmd("XADD").arg("jobs").arg("*").arg("d").arg(&PAYLOAD[..]).ignore();
        }
        pipe.query_async::<()>(&mut connection).await?;
        told.send(()).await?;
    }
    Ok(())
}

/// Reads each batch that it is told of, passes it on if there is a stream to pass it to, acks and trims it.
async fn consume(
    url: String,
    from: &str,
    mut told: Receiver<()>,
    to: Option<(&str, Sender<()>)>,
) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    let mut done: Vec<String> = Vec::new();
    loop {
        let more = told.recv().await.is_some();
        let mut pipe = redis::pipe();
        if let Some((to, _)) = &to {
            for id in &done {
                pipe.cmd("XADD").arg(to).arg("*").arg("id").arg(id).arg("d").arg(&PAYLOAD[..]).ignore();
            }
        }
        if let Some(last) = done.last() {
            pipe.cmd("XACK").arg(from).arg("g").arg(&done).ignore();
            pipe.cmd("XTRIM").arg(from).arg("MINID").arg("~").arg(last).ignore();
        }
        if more {
            pipe.cmd("XREADGROUP").arg("GROUP").arg("g").arg("c").arg("COUNT").arg(BATCH).arg("STREAMS");
            pipe.arg(from).arg(">");
        }
        let read: Vec<Option<StreamReadReply>> = pipe.query_async(&mut connection).await?;
        if let Some((_, next)) = to.as_ref().filter(|_| !done.is_empty()) {
            next.send(()).await?;
        }
        if !more {
            return Ok(());
        }
        let entries = read.into_iter().flatten().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        done = entries.map(|entry| entry.id).collect();
    }
}
