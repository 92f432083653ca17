//! A real server and the memory twin side by side, and the comparison of their replies.

use anyhow::{Context, bail};
use redis::Value;
use redis::aio::ConnectionLike;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use stepfleet_coordinator::store::link::{Dial, Link};
use stepfleet_coordinator::store::memory::{Clock, MemoryLink, MemoryServer};

/// A server of this test's own, ended with it.
struct Server {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> anyhow::Result<std::path::PathBuf> {
    if let Some(path) = std::env::var_os("STEPFLEET_TEST_SERVER") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places =
        std::env::split_paths(&path).flat_map(|folder| ["valkey-server", "redis-server"].map(|name| folder.join(name)));
    places.find(|place| place.is_file()).context(
        "this test needs a real server: install `valkey-server` or `redis-server`, or set STEPFLEET_TEST_SERVER to one",
    )
}

async fn start() -> anyhow::Result<(Server, redis::Client)> {
    let folder = tempfile::tempdir()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let program = program()?;
    let child = Command::new(&program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let server = Server { child, _folder: folder };
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while client.get_multiplexed_async_connection().await.is_err() {
        if std::time::Instant::now() > deadline {
            bail!("`{}` does not answer on port {port}", program.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((server, client))
}

/// Both sides, with two connections each.
pub(super) struct Pair {
    _server: Server,
    real: [redis::aio::MultiplexedConnection; 2],
    twin: [MemoryLink; 2],
    pub(super) twin_server: MemoryServer,
    /// The commands that each connection has in its queue.
    queued: [Vec<String>; 2],
    inside: [bool; 2],
}

impl Pair {
    pub(super) async fn open() -> anyhow::Result<Self> {
        let (server, client) = start().await?;
        let wait = Duration::from_secs(20);
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(wait));
        let real = [
            client.get_multiplexed_async_connection_with_config(&config).await?,
            client.get_multiplexed_async_connection_with_config(&config).await?,
        ];
        let twin_server = MemoryServer::new(Clock::default());
        let twin = [twin_server.dial().dial(0, wait).await?, twin_server.dial().dial(0, wait).await?];
        Ok(Self { _server: server, real, twin, twin_server, queued: Default::default(), inside: [false; 2] })
    }

    /// Leaves both sides empty and no connection inside MULTI.
    pub(super) async fn reset(&mut self) -> anyhow::Result<()> {
        for connection in 0..2 {
            self.both(connection, "DISCARD").await?;
            self.both(connection, "UNWATCH").await?;
        }
        self.both(0, "FLUSHALL").await?;
        (self.queued, self.inside) = Default::default();
        Ok(())
    }

    /// One line to both sides, and what they answer.
    pub(super) async fn both(&mut self, connection: usize, line: &str) -> anyhow::Result<(Value, Value)> {
        let (mut real, mut twin) = self.pipeline(connection, line).await?;
        Ok((real.remove(0), twin.remove(0)))
    }

    /// Several lines, separated by `;`, in one write.
    pub(super) async fn pipeline(
        &mut self,
        connection: usize,
        lines: &str,
    ) -> anyhow::Result<(Vec<Value>, Vec<Value>)> {
        let mut pipe = redis::Pipeline::new();
        for line in lines.split(';') {
            let mut cmd = redis::Cmd::new();
            line.split_whitespace().for_each(|word| {
                cmd.arg(word);
            });
            pipe.add_command(cmd);
        }
        let real = self.real[connection].req_packed_commands(&pipe, 0, pipe.len()).await?;
        Ok((real, self.twin[connection].trip(&pipe).await?))
    }

    /// Sends one line to both and compares. MULTI and WATCH inside MULTI are left out: only some versions let the
    /// transaction fail because of them.
    pub(super) async fn check(&mut self, connection: usize, line: &str) -> anyhow::Result<()> {
        if self.inside[connection] && (line == "MULTI" || line.starts_with("WATCH")) {
            return Ok(());
        }
        let (real, twin) = self.both(connection, line).await?;
        match line {
            "MULTI" => self.inside[connection] = true,
            "EXEC" | "DISCARD" => self.inside[connection] = false,
            _ => {}
        }
        if twin == Value::SimpleString("QUEUED".into()) {
            self.queued[connection].push(line.to_owned());
        }
        let queue =
            if ["EXEC", "DISCARD"].contains(&line) { std::mem::take(&mut self.queued[connection]) } else { Vec::new() };
        let (level_real, level_twin) = (level(line, &queue, real.clone()), level(line, &queue, twin.clone()));
        if level_real != level_twin {
            bail!("`{line}` on connection {connection}:\n  real {real:?}\n  twin {twin:?}\n  queue {queue:?}");
        }
        Ok(())
    }
}

/// Takes out what may differ.
fn level(line: &str, queue: &[String], value: Value) -> Value {
    let words: Vec<&str> = line.split_whitespace().collect();
    match value {
        Value::ServerError(error) => Value::SimpleString(format!("error {}", error.code())),
        Value::Array(items) if words[0] == "EXEC" => {
            assert_eq!(items.len(), queue.len(), "EXEC answers every queued command");
            Value::Array(items.into_iter().zip(queue).map(|(item, line)| level(line, &[], item)).collect())
        }
        Value::Array(items) => Value::Array(level_items(&words, items)),
        Value::Int(left) if words[0] == "PTTL" && left > 0 => Value::Int(1),
        other => other,
    }
}

fn level_items(words: &[&str], mut items: Vec<Value>) -> Vec<Value> {
    let elapsed = |value: &mut Value| {
        if let Value::Int(ms) = value {
            *ms = (*ms).min(0);
        }
    };
    match words {
        ["SMEMBERS" | "KEYS", ..] => items.sort_by_key(|item| format!("{item:?}")),
        ["HGETALL", ..] => {
            let mut pairs: Vec<Vec<Value>> = items.chunks(2).map(<[Value]>::to_vec).collect();
            pairs.sort_by_key(|pair| format!("{pair:?}"));
            items = pairs.concat();
        }
        // Rows of id, consumer, idle time, deliveries.
        ["XPENDING", _, _, _, ..] => items.iter_mut().for_each(|row| {
            if let Value::Array(row) = row {
                elapsed(&mut row[2]);
            }
        }),
        // Names and counts; what follows differs between versions.
        ["XINFO", "CONSUMERS", ..] => items.iter_mut().for_each(|row| {
            if let Value::Array(row) = row {
                row.truncate(4);
            }
        }),
        // Without entries-read and lag: where entries that a group has not read are trimmed, servers only estimate them, each
        // version in its own way. Nobody here trims such entries; the conformance suite compares what owners count.
        ["XINFO", "GROUPS", ..] => items.iter_mut().for_each(|row| {
            if let Value::Array(row) = row {
                row.truncate(8);
            }
        }),
        ["XINFO", "STREAM", ..] => {
            items.drain(2..6);
        }
        _ => {}
    }
    items
}
