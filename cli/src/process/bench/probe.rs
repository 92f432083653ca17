//! Looking at processes and at the server, and starting the fleet under test.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use redis::aio::MultiplexedConnection;
use stepfleet_connect::{Redis, Settings};
use stepfleet_protocol::{
    id::PartitionId,
    keys::{Keys, PartitionKeys},
};
use tokio::process::{Child, Command};

/// A connection for looking, and the server's process.
pub(super) struct Probe {
    /// For INFO and counts.
    pub(super) connection: MultiplexedConnection,
    server: u32,
}

/// What the server has done between two looks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Server {
    /// CPU seconds.
    pub(super) cpu_s: f64,
    /// Commands executed.
    pub(super) commands: f64,
    /// Memory in use.
    pub(super) memory_bytes: f64,
}

impl Probe {
    pub(super) async fn new(url: &str) -> anyhow::Result<Self> {
        let connection = connection(url).await?;
        let mut probe = Self { connection, server: 0 };
        probe.server = probe.info("process_id").await? as u32;
        Ok(probe)
    }

    async fn info(&mut self, name: &str) -> anyhow::Result<f64> {
        let info: String = redis::cmd("INFO").arg("everything").query_async(&mut self.connection).await?;
        let line = info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no `{name}` in INFO"))?.trim().parse()?)
    }

    /// What the server has used so far.
    pub(super) async fn server(&mut self) -> anyhow::Result<Server> {
        let commands = self.info("total_commands_processed").await?;
        let memory_bytes = self.info("used_memory").await?;
        Ok(Server { cpu_s: cpu_s(self.server)?, commands, memory_bytes })
    }

    /// Empties the server.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        Ok(redis::cmd("FLUSHALL").query_async(&mut self.connection).await?)
    }

    /// Members of a sorted set.
    pub(super) async fn count(&mut self, key: &str) -> anyhow::Result<usize> {
        Ok(redis::cmd("ZCARD").arg(key).query_async(&mut self.connection).await?)
    }
}

/// Keys of the only partition.
pub(super) fn keys() -> PartitionKeys {
    Keys::default().partition(PartitionId(0))
}

/// A connection that waits long.
pub(super) async fn connection(url: &str) -> anyhow::Result<MultiplexedConnection> {
    let info = redis::IntoConnectionInfo::into_connection_info(url)?;
    let info = info.set_tcp_settings(redis::io::tcp::TcpSettings::default().set_nodelay(true));
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    Ok(redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?)
}

/// The way to Redis that the product uses.
pub(super) async fn connect(url: &str) -> anyhow::Result<Redis> {
    Ok(Redis::connect(Settings::parse(url)?).await?)
}

/// CPU seconds of a process so far, from /proc, in ticks of 10 ms.
pub(super) fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind = stat.rfind(')').context("a stat line")?;
    let fields: Vec<&str> = stat[behind + 2..].split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Resident bytes of a process.
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: f64 = statm.split(' ').nth(1).context("a statm line")?.parse()?;
    Ok(pages * 4096.0)
}

/// A part of the fleet, as a process of this program. It ends when this value goes.
pub(super) struct Part {
    _child: Child,
    /// Its process id.
    pub(super) pid: u32,
}

/// Starts `stepfleet` with `args` on the server.
pub(super) fn part(url: &str, args: &[&str]) -> anyhow::Result<Part> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).args(["--redis", url]).env("STEPFLEET_LOG", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let child = command.spawn()?;
    let pid = child.id().context("just started")?;
    Ok(Part { _child: child, pid })
}

/// A coordinator with one partition.
pub(super) fn coordinator(url: &str) -> anyhow::Result<Part> {
    part(url, &["coordinator", "--partitions", "1", "--listen", "127.0.0.1:0", "--name", "bench"])
}

/// A worker with the stock handlers.
pub(super) fn worker(url: &str, slots: usize) -> anyhow::Result<Part> {
    part(url, &["worker", "--concurrency", &slots.to_string(), "--queue", "default", "--name", "bench"])
}

/// Waits until the coordinator has the partition, and a worker is registered if `with_worker`.
pub(super) async fn ready(probe: &mut Probe, with_worker: bool) -> anyhow::Result<()> {
    for _ in 0..1_000 {
        let owned: bool = redis::cmd("EXISTS").arg(keys().head()).query_async(&mut probe.connection).await?;
        let workers = probe.count(&Keys::default().workers()).await?;
        if owned && (workers > 0 || !with_worker) {
            // The worker finds the partition with its next look.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the fleet did not come up within 10 s")
}
