//! Latency on an idle fleet: one run at a time, a worker in this process whose handler stamps the time.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use redis::streams::StreamReadReply;
use stepfleet_coordinator::{
    shell::core::Outbox,
    store::{history, workflows::Stored},
};
use stepfleet_protocol::{codec, id::RunId, state::State};
use stepfleet_worker::{Attempt, Failure, Worker};
use tokio::sync::mpsc;

use super::BenchArgs;
use super::load::{chain, client, how};
use super::probe::{Probe, all_keys, connection, coordinator, ready};
use super::report::Report;

/// Median and 99th percentile of milliseconds.
fn put(report: &mut Report, name: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |share: f64| ms.get(((ms.len() as f64 * share) as usize).min(ms.len().saturating_sub(1))).copied();
    report.put(&format!("latency.{name}.p50"), at(0.5).unwrap_or(f64::NAN));
    report.put(&format!("latency.{name}.p99"), at(0.99).unwrap_or(f64::NAN));
}

pub(super) async fn measure(args: &BenchArgs, url: &str, probe: &mut Probe, report: &mut Report) -> anyhow::Result<()> {
    probe.flush().await?;
    // One partition: the outbox that is followed is that of its only one.
    let _coordinator = coordinator(url, 1)?;
    let (stamps, mut stamped) = mpsc::unbounded_channel();
    let worker = Worker::builder().redis(url).name("stamp").queue("default").concurrency(16);
    let worker = worker.handler("stamp", move |_: Attempt, (): ()| {
        let sent = stamps.send(Instant::now());
        async move { sent.map_err(|_| Failure::permanent("the benchmark is over")) }
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.build()?.run_until(async {
        let _ = stopped.await;
    }));
    ready(probe, 1, true).await?;
    let client = client(url).await?;
    let mut ends = Ends::follow(url).await?;
    for steps in [1, 10] {
        let stored = std::sync::Arc::new(Stored::new(&chain(steps, "stamp")?));
        let (mut start, mut between, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..args.idle + 20 {
            let wanted = stepfleet_coordinator::store::submit::Wanted {
                workflow: stored.clone(),
                input: None,
                traceparent: None,
                idempotency: None,
            };
            let began = Instant::now();
            let how = how();
            let (taken, end) = tokio::join!(client.submit(wanted, &how), ends.next());
            let (taken, ended) = (taken?, end?);
            anyhow::ensure!(taken.run == ended.0, "another run ended");
            let mut times = Vec::with_capacity(steps);
            while times.len() < steps {
                times.push(stamped.recv().await.context("the worker is gone")?);
            }
            // The first runs open connections and warm caches.
            if n >= 20 {
                let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
                start.push(ms(began, times[0]));
                between.extend(times.windows(2).map(|w| ms(w[0], w[1])));
                whole.push(ms(began, ended.1));
            }
        }
        if steps == 1 {
            put(report, "submit_to_start_ms", start);
            put(report, "one_step_ms", whole);
        } else {
            put(report, "step_to_step_ms", between);
            put(report, "chain10_ms", whole);
        }
    }
    drop(stop);
    tokio::time::timeout(Duration::from_secs(30), worker).await???;
    Ok(())
}

/// The ends of runs, as the outbox tells them.
struct Ends {
    connection: redis::aio::MultiplexedConnection,
    from: String,
    found: std::collections::VecDeque<(RunId, Instant)>,
}

impl Ends {
    async fn follow(url: &str) -> anyhow::Result<Self> {
        Ok(Self { connection: connection(url).await?, from: "$".into(), found: Default::default() })
    }

    async fn next(&mut self) -> anyhow::Result<(RunId, Instant)> {
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
                let bytes: Vec<u8> = entry.get("m").context("an outbox entry")?;
                self.from = entry.id;
                let outbox: Outbox = codec::unpack(&bytes)?;
                let ends = |packed: &Bytes| {
                    history::unpack(packed).iter().any(|t| t.step.is_none() && t.to == State::Completed)
                };
                self.found.extend(outbox.runs.iter().filter(|(_, packed)| ends(packed)).map(|(run, _)| (*run, now)));
            }
        }
    }
}
