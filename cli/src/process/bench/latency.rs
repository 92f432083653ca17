//! Latency on an idle fleet: one run at a time, a worker in this process whose handler stamps the time.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use redis::streams::{StreamRangeReply, StreamReadReply};
use stepfleet_coordinator::{
    shell::core::Outbox,
    store::{history, workflows::Stored},
};
use stepfleet_protocol::{codec, id::RunId, state::State};
use stepfleet_worker::{Attempt, Failure, Worker};
use tokio::sync::mpsc;

use super::graphs::chain;
use super::lab::{Lab, Size};
use super::load::{client, how, wanted};
use super::probe::{all_keys, connection};

/// Runs that open connections and warm caches, and do not count.
const WARM_UP: usize = 20;

pub(super) async fn measure(lab: &mut Lab<'_>) -> anyhow::Result<()> {
    let url = lab.url.clone();
    // One partition: the outbox that is followed is that of its only one.
    let _fleet = lab.fleet(&url, Size { partitions: 1, workers: 0, slots: 0 }).await?;
    let (stamps, mut stamped) = mpsc::unbounded_channel();
    let worker = Worker::builder().redis(&url).name("stamp").queue("default").concurrency(16);
    let worker = worker.handler("stamp", move |_: Attempt, (): ()| {
        let sent = stamps.send(Instant::now());
        async move { sent.map_err(|_| Failure::permanent("the benchmark is over")) }
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.build()?.run_until(async {
        let _ = stopped.await;
    }));
    lab.ready(1, 1).await?;
    let client = client(&url).await?;
    let mut ends = Ends::follow(&url).await?;
    for steps in [1, 10] {
        let stored = std::sync::Arc::new(Stored::new(&chain(steps, "stamp")?));
        let (mut start, mut between, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..lab.args.idle + WARM_UP {
            let began = Instant::now();
            let how = how();
            let (taken, end) = tokio::join!(client.submit(wanted(&stored, None), &how), ends.next());
            let (taken, ended) = (taken?, end?);
            anyhow::ensure!(taken.run == ended.0, "another run ended");
            let mut times = Vec::with_capacity(steps);
            while times.len() < steps {
                times.push(stamped.recv().await.context("the worker is gone")?);
            }
            if n >= WARM_UP {
                let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
                start.push(ms(began, times[0]));
                between.extend(times.windows(2).map(|w| ms(w[0], w[1])));
                whole.push(ms(began, ended.1));
            }
        }
        if steps == 1 {
            lab.report.put_times("latency.submit_to_start_ms", start);
            lab.report.put_times("latency.one_step_ms", whole);
        } else {
            lab.report.put_times("latency.step_to_step_ms", between);
            lab.report.put_times("latency.chain10_ms", whole);
        }
    }
    drop(stop);
    tokio::time::timeout(Duration::from_secs(30), worker).await???;
    Ok(())
}

/// The ends of runs, as the outbox tells them.
pub(super) struct Ends {
    connection: redis::aio::MultiplexedConnection,
    from: String,
    found: std::collections::VecDeque<(RunId, Instant)>,
}

impl Ends {
    /// From now on: what ended before is not told.
    ///
    /// # Errors
    /// The server is gone.
    pub(super) async fn follow(url: &str) -> anyhow::Result<Self> {
        let mut connection = connection(url).await?;
        let keys = all_keys(1).next().context("one partition")?;
        let mut last = redis::cmd("XREVRANGE");
        last.arg(keys.events()).arg("+").arg("-").arg("COUNT").arg(1);
        // Not `$`, which would begin with the first read, after what is submitted before that.
        let last: StreamRangeReply = last.query_async(&mut connection).await?;
        let from = last.ids.into_iter().next().map_or_else(|| "0".to_owned(), |entry| entry.id);
        Ok(Self { connection, from, found: Default::default() })
    }

    /// The next end: the run, and when it was read.
    pub(super) async fn next(&mut self) -> anyhow::Result<(RunId, Instant)> {
        let keys = all_keys(1).next().context("one partition")?;
        loop {
            if let Some(end) = self.found.pop_front() {
                return Ok(end);
            }
            let mut read = redis::cmd("XREAD");
            read.arg("BLOCK").arg(10_000).arg("STREAMS").arg(keys.events()).arg(&self.from);
            let reply: Option<StreamReadReply> = read.query_async(&mut self.connection).await?;
            let now = Instant::now();
            let entries = reply.context("no run ended within 10 s")?.keys.into_iter().flat_map(|k| k.ids);
            for entry in entries {
                let outbox = [codec::FIELD_PLAIN, codec::FIELD_LZ4].into_iter().find_map(|field| {
                    let bytes: Vec<u8> = entry.get(field)?;
                    Some(codec::decode::<Outbox>(field.as_bytes(), &bytes))
                });
                let outbox = outbox.context("an outbox entry")??;
                self.from = entry.id;
                let ends = |packed: &Bytes| {
                    history::unpack(packed).iter().any(|t| t.step.is_none() && t.to == State::Completed)
                };
                self.found.extend(outbox.runs.iter().filter(|(_, packed)| ends(packed)).map(|(run, _)| (*run, now)));
            }
        }
    }
}
