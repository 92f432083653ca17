//! The floor: the bare commands that any queue on streams needs, in batches, with no state at all.
//!
//! It is as quick as the server: several connections keep it busy, a batch is one write and one answer, the next batch is read
//! with the acks of the one before, and a reader is told inside this process that a whole batch is there, so that none is read
//! in parts.

use std::sync::Arc;
use std::time::Instant;

use redis::streams::StreamReadReply;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::lab::Lab;
use super::probe::connection;

const BATCH: usize = 100;
/// Connections that add jobs, as many that pass them on, and as many that take the results.
const LANES: usize = 4;
const PAYLOAD: [u8; 100] = [b'x'; 100];

/// Whole batches of a stream that nobody has read yet.
type Told = Arc<Semaphore>;

/// Jobs a second through a job stream and a result stream: XADD, XREADGROUP and one XACK a batch of 100 for each, trimmed.
pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let batches = lab.args.floor_jobs.div_ceil(BATCH * LANES);
    lab.probe.flush().await?;
    for stream in ["jobs", "results"] {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(stream).arg("g").arg(0).arg("MKSTREAM");
        create.query_async::<()>(&mut lab.probe.connection).await?;
    }
    let before = lab.probe.server().await?;
    let (began, mut lanes) = (Instant::now(), JoinSet::new());
    let (jobs, results) = (Told::new(Semaphore::new(0)), Told::new(Semaphore::new(0)));
    for _ in 0..LANES {
        let to_results = Some(("results", results.clone()));
        lanes.spawn(produce(lab.url.clone(), batches, jobs.clone()));
        lanes.spawn(consume(lab.url.clone(), batches, ("jobs", jobs.clone()), to_results));
        lanes.spawn(consume(lab.url.clone(), batches, ("results", results.clone()), None));
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    let took = began.elapsed().as_secs_f64();
    let after = lab.probe.server().await?;
    let jobs = (batches * BATCH * LANES) as f64;
    lab.report.put("floor.jobs_per_s", jobs / took);
    lab.report.put("floor.redis_us_per_job", (after.cpu_s - before.cpu_s) * 1e6 / jobs);
    lab.report.put("floor.redis_commands_per_job", (after.commands - before.commands) / jobs);
    Ok(())
}

async fn produce(url: String, batches: usize, told: Told) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    for _ in 0..batches {
        let mut pipe = redis::pipe();
        for _ in 0..BATCH {
            pipe.cmd("XADD").arg("jobs").arg("*").arg("d").arg(&PAYLOAD[..]).ignore();
        }
        pipe.query_async::<()>(&mut connection).await?;
        told.add_permits(1);
    }
    Ok(())
}

/// Reads so many batches, passes them on if there is a stream to pass them to, acks and trims them.
async fn consume(
    url: String,
    batches: usize,
    (from, told): (&str, Told),
    to: Option<(&str, Told)>,
) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    let mut done: Vec<String> = Vec::new();
    // Once more than there are batches: the last is passed on and acked then.
    for number in 0..=batches {
        let reads = number < batches;
        if reads {
            told.acquire().await?.forget();
        }
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
        if reads {
            pipe.cmd("XREADGROUP").arg("GROUP").arg("g").arg("c").arg("COUNT").arg(BATCH).arg("STREAMS");
            pipe.arg(from).arg(">");
        }
        let read: Vec<Option<StreamReadReply>> = pipe.query_async(&mut connection).await?;
        if let Some((_, next)) = to.as_ref().filter(|_| !done.is_empty()) {
            next.add_permits(1);
        }
        done = read.into_iter().flatten().flat_map(|reply| reply.keys).flat_map(|key| key.ids).map(|e| e.id).collect();
    }
    Ok(())
}
