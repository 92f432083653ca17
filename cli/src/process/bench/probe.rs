//! Looking at processes and at the server, and starting the fleet under test.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use redis::aio::MultiplexedConnection;
use stepfleet_connect::{Redis, Settings};
use stepfleet_protocol::{
    id::PartitionId,
    keys::{Keys, PartitionKeys},
    state::State,
};
use tokio::process::{Child, Command};

/// A connection for looking.
pub(super) struct Probe {
    /// For INFO and counts.
    pub(super) connection: MultiplexedConnection,
}

/// What the server has done so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    /// CPU seconds.
    pub(super) cpu_s: f64,
    /// Commands executed.
    pub(super) commands: f64,
    /// Memory in use.
    pub(super) memory_bytes: f64,
    /// Calls, and microseconds inside them, by command. Parsing, replying and the append-only file are not in them.
    pub(super) by_command: BTreeMap<String, (f64, f64)>,
}

impl Probe {
    pub(super) async fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { connection: connection(url).await? })
    }

    /// The server's name, version and allocator: a build with another allocator is up to three times slower.
    pub(super) async fn description(&mut self) -> anyhow::Result<String> {
        let info: String = redis::cmd("INFO").arg("everything").query_async(&mut self.connection).await?;
        let text = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let name = text("server_name").unwrap_or("redis");
        let version = text("valkey_version").or(text("redis_version")).unwrap_or("?");
        Ok(format!("{name} {version} ({})", text("mem_allocator").unwrap_or("?")))
    }

    /// What the server has used so far.
    pub(super) async fn server(&mut self) -> anyhow::Result<Server> {
        let info: String = redis::cmd("INFO").arg("everything").query_async(&mut self.connection).await?;
        Ok(Server {
            // Finer than the ticks of /proc.
            cpu_s: field(&info, "used_cpu_user")? + field(&info, "used_cpu_sys")?,
            commands: field(&info, "total_commands_processed")?,
            memory_bytes: field(&info, "used_memory")?,
            by_command: info.lines().filter_map(command_line).collect(),
        })
    }

    /// Changes a setting of the server.
    pub(super) async fn set(&mut self, setting: &str, value: &str) -> anyhow::Result<()> {
        let mut set = redis::cmd("CONFIG");
        Ok(set.arg("SET").arg(setting).arg(value).query_async(&mut self.connection).await?)
    }

    /// Empties the server.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        Ok(redis::cmd("FLUSHALL").query_async(&mut self.connection).await?)
    }

    /// Runs that are completed in any partition.
    pub(super) async fn completed(&mut self, partitions: u16) -> anyhow::Result<usize> {
        let mut sum = 0;
        for keys in all_keys(partitions) {
            sum += self.count(&keys.runs(State::Completed)).await?;
        }
        Ok(sum)
    }

    /// Members of a sorted set.
    pub(super) async fn count(&mut self, key: &str) -> anyhow::Result<usize> {
        Ok(redis::cmd("ZCARD").arg(key).query_async(&mut self.connection).await?)
    }
}

/// A number of INFO.
fn field(info: &str, name: &str) -> anyhow::Result<f64> {
    let line = info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no `{name}` in INFO"))?.trim().parse()?)
}

/// A line such as `cmdstat_xadd:calls=3,usec=12,usec_per_call=4.00`.
fn command_line(line: &str) -> Option<(String, (f64, f64))> {
    let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
    let number = |key: &str| rest.split(',').find_map(|part| part.trim().strip_prefix(key)?.parse::<f64>().ok());
    Some((name.replace('|', "_"), (number("calls=")?, number("usec=")?)))
}

/// Keys of each partition.
pub(super) fn all_keys(partitions: u16) -> impl Iterator<Item = PartitionKeys> {
    (0..partitions).map(|p| Keys::default().partition(PartitionId(p)))
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
    /// Where its API is; empty for a worker.
    pub(super) api: String,
}

/// Starts `stepfleet` with `args` on the server.
pub(super) fn part(url: &str, args: &[&str]) -> anyhow::Result<Part> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).args(["--redis", url]).env("STEPFLEET_LOG", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let child = command.spawn()?;
    let pid = child.id().context("just started")?;
    Ok(Part { _child: child, pid, api: String::new() })
}
