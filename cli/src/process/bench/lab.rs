//! A server, what is measured on it, and the fleets that are started on it.

use std::time::Duration;

use anyhow::ensure;
use stepfleet_protocol::keys::Keys;
use tokio::time::Instant;

use super::args::BenchArgs;
use super::probe::{Part, Probe, Server, all_keys, cpu_s, part};
use super::report::Report;

/// A fleet comes up within this time.
const UP: Duration = Duration::from_secs(20);

/// Everything that a section needs.
pub(super) struct Lab<'a> {
    /// How much of each section.
    pub(super) args: &'a BenchArgs,
    /// Where the server is.
    pub(super) url: String,
    /// Its port on 127.0.0.1.
    pub(super) port: u16,
    /// A look at the server.
    pub(super) probe: Probe,
    /// The figures so far.
    pub(super) report: Report,
}

/// Sizes of a fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Partitions.
    pub(super) partitions: u16,
    /// Worker processes.
    pub(super) workers: usize,
    /// Slots of each.
    pub(super) slots: usize,
}

/// One coordinator process and some worker processes. They end when this value goes.
pub(super) struct Fleet {
    /// The coordinator.
    pub(super) coordinator: Part,
    workers: Vec<Part>,
}

/// What everybody has used so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// The server.
    pub(super) server: Server,
    /// CPU seconds of the coordinator.
    pub(super) coordinator_s: f64,
    /// CPU seconds of all workers.
    pub(super) workers_s: f64,
}

impl Lab<'_> {
    /// The sizes that were asked for: one worker.
    pub(super) fn size(&self) -> Size {
        Size { partitions: self.args.partitions, workers: 1, slots: self.args.slots }
    }

    /// Empties the server and starts a fleet on it that reaches it at `url`. Returns when it is ready.
    ///
    /// # Errors
    /// A part does not come up.
    pub(super) async fn fleet(&mut self, url: &str, size: Size) -> anyhow::Result<Fleet> {
        self.probe.flush().await?;
        self.start(url, size).await
    }

    /// As [`Self::fleet`], on what is in the server.
    ///
    /// # Errors
    /// A part does not come up.
    pub(super) async fn start(&mut self, url: &str, size: Size) -> anyhow::Result<Fleet> {
        let mut fleet = Fleet { coordinator: coordinator(url, size.partitions)?, workers: Vec::new() };
        for number in 0..size.workers {
            fleet.workers.push(worker(url, number, size.slots)?);
        }
        self.ready(size.partitions, size.workers).await?;
        Ok(fleet)
    }

    /// Waits until a coordinator has its partitions and so many workers are registered and see them.
    ///
    /// # Errors
    /// It takes too long.
    pub(super) async fn ready(&mut self, partitions: u16, workers: usize) -> anyhow::Result<()> {
        let heads: Vec<String> = all_keys(partitions).map(|keys| keys.head()).collect();
        let deadline = Instant::now() + UP;
        loop {
            let owned: usize = redis::cmd("EXISTS").arg(&heads).query_async(&mut self.probe.connection).await?;
            if owned == heads.len() && self.probe.count(&Keys::default().workers()).await? >= workers {
                // A worker finds the partitions with its next look.
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the fleet did not come up within {} s", UP.as_secs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the fleet and the server have used so far.
    pub(super) async fn usage(&mut self, fleet: &Fleet) -> anyhow::Result<Usage> {
        Ok(Usage {
            server: self.probe.server().await?,
            coordinator_s: cpu_s(fleet.coordinator.pid)?,
            workers_s: fleet.workers.iter().map(|worker| cpu_s(worker.pid)).sum::<anyhow::Result<f64>>()?,
        })
    }

    /// Waits until so many runs are completed.
    ///
    /// # Errors
    /// It takes longer than four minutes and a millisecond for each run and step.
    pub(super) async fn all_completed(&mut self, partitions: u16, runs: usize, steps: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(240) + Duration::from_millis((runs * steps) as u64);
        loop {
            let done = self.probe.completed(partitions).await?;
            if done >= runs {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "only {done} of {runs} runs were completed in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Fleet {
    /// Starts one more worker.
    pub(super) fn add_worker(&mut self, url: &str, slots: usize) -> anyhow::Result<()> {
        self.workers.push(worker(url, self.workers.len(), slots)?);
        Ok(())
    }
}

/// A coordinator of so many partitions.
fn coordinator(url: &str, partitions: u16) -> anyhow::Result<Part> {
    let (partitions, listen) = (partitions.to_string(), format!("127.0.0.1:{}", free_port()?));
    let mut part = part(url, &["coordinator", "--partitions", &partitions, "--listen", &listen, "--name", "bench"])?;
    part.api = format!("http://{listen}/api/v1");
    Ok(part)
}

/// A worker with the stock handlers.
fn worker(url: &str, number: usize, slots: usize) -> anyhow::Result<Part> {
    let (slots, name) = (slots.to_string(), format!("bench-{number}"));
    part(url, &["worker", "--concurrency", &slots, "--queue", "default", "--name", &name])
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
