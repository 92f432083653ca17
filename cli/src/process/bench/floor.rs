//! The floor: the bare commands that any queue on streams needs, in batches, with no state at all.

use std::time::Instant;

use redis::streams::StreamReadReply;

use super::probe::{Probe, connection};

const BATCH: usize = 100;
const PAYLOAD: [u8; 100] = [b'x'; 100];

/// Jobs a second through a job stream and a result stream: XADD, XREADGROUP and one XACK a batch of 100 for each, trimmed.
pub(super) async fn jobs_per_s(url: &str, probe: &mut Probe, jobs: usize) -> anyhow::Result<f64> {
    probe.flush().await?;
    for stream in ["jobs", "results"] {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(stream).arg("g").arg(0).arg("MKSTREAM");
        create.query_async::<()>(&mut probe.connection).await?;
    }
    let began = Instant::now();
    let produced = tokio::spawn(produce(url.to_string(), jobs));
    let worked = tokio::spawn(consume(url.to_string(), "jobs", Some("results"), jobs));
    consume(url.to_string(), "results", None, jobs).await?;
    produced.await??;
    worked.await??;
    Ok(jobs as f64 / began.elapsed().as_secs_f64())
}

async fn produce(url: String, jobs: usize) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    for _ in 0..jobs / BATCH {
        let mut pipe = redis::pipe();
        for _ in 0..BATCH {
            pipe.cmd("XADD").arg("jobs").arg("*").arg("d").arg(&PAYLOAD[..]).ignore();
        }
        pipe.query_async::<()>(&mut connection).await?;
    }
    Ok(())
}

async fn consume(url: String, from: &str, to: Option<&str>, jobs: usize) -> anyhow::Result<()> {
    let mut connection = connection(&url).await?;
    let mut done = 0;
    while done < jobs {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP")
            .arg("g")
            .arg("c")
            .arg("COUNT")
            .arg(BATCH)
            .arg("BLOCK")
            .arg(1_000)
            .arg("STREAMS")
            .arg(from)
            .arg(">");
        let Some(reply) = read.query_async::<Option<StreamReadReply>>(&mut connection).await? else { continue };
        let ids: Vec<String> = reply.keys.into_iter().flat_map(|k| k.ids).map(|e| e.id).collect();
        let Some(last) = ids.last() else { continue };
        let mut pipe = redis::pipe();
        if let Some(to) = to {
            for id in &ids {
                pipe.cmd("XADD").arg(to).arg("*").arg("id").arg(id).arg("d").arg(&PAYLOAD[..]).ignore();
            }
        }
        pipe.cmd("XACK").arg(from).arg("g").arg(&ids).ignore();
        pipe.cmd("XTRIM").arg(from).arg("MINID").arg("~").arg(last).ignore();
        pipe.query_async::<()>(&mut connection).await?;
        done += ids.len();
    }
    Ok(())
}
