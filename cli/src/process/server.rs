//! A Valkey or Redis of our own, as a child with a data folder. It never outlives this program, however that ends.

use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::failure::Failure;

/// The programs that will do, the best first.
const PROGRAMS: [&str; 2] = ["valkey-server", "redis-server"];
/// How long the server may take to load its data and answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to write its data and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two tries to reach it.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// Ends the server when this program is gone: its stdin closes then, whatever ended it.
const WATCHDOG: &str = "read -r _; kill \"$1\"";

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// None where there is no shell, as in an image: the end of its container ends the server.
    watchdog: Option<Child>,
    /// Its port on 127.0.0.1.
    pub(super) port: u16,
    /// The program.
    pub(super) program: PathBuf,
}

/// The server program: the one given, else the first found on the PATH or in `.tools` here or above.
///
/// # Errors
/// There is none; the text says how to get one.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        let missing = || Failure::usage(format!("no server program at `{}`", path.display()));
        return path.is_file().then(|| path.to_owned()).ok_or_else(missing);
    }
    let mut folders: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    if let Ok(here) = std::env::current_dir() {
        folders.extend(here.ancestors().map(|folder| folder.join(".tools")));
    }
    let found =
        PROGRAMS.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()));
    found.ok_or_else(|| {
        Failure::usage("no `valkey-server` and no `redis-server` on the PATH or in `.tools`").hint(
            "install valkey or redis (7.0 or newer), or run `make setup` in the project, or name one with --server",
        )
    })
}

impl Server {
    /// Starts the program on a free loopback port with an append-only file in `folder`, and waits until it answers.
    ///
    /// # Errors
    /// It ends at once, or does not answer in time; its log is named.
    pub(super) async fn start(program: PathBuf, folder: &Path) -> Result<Self, Failure> {
        let log = folder.join("server.log");
        let fault = |what: &str, error: &dyn std::fmt::Display| {
            Failure::failed(format!("{what} `{}`: {error}", program.display())).hint(format!("see `{}`", log.display()))
        };
        let port = free_port().map_err(|error| fault("no free port for", &error))?;
        let out = File::create(&log).map_err(|error| fault("cannot write the log of", &error))?;
        let err = out.try_clone().map_err(|error| fault("cannot write the log of", &error))?;
        let mut command = std::process::Command::new(&program);
        command.args(arguments(port, folder)).stdin(Stdio::null()).stdout(out).stderr(err);
        // A group of its own, as Ctrl-C is for the workers first.
        command.process_group(0);
        let child = Command::from(command).kill_on_drop(true).spawn();
        let mut child = child.map_err(|error| fault("cannot start", &error))?;
        let pid = child.id().unwrap_or_default().to_string();
        let mut watchdog = std::process::Command::new("sh");
        watchdog.args(["-c", WATCHDOG, "sh", &pid]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        watchdog.process_group(0);
        let watchdog = match Command::from(watchdog).kill_on_drop(true).spawn() {
            Ok(watchdog) => Some(watchdog),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(fault("cannot watch", &error)),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !answers(port).await {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(fault("the server ended at once", &status));
            }
            if Instant::now() > deadline {
                return Err(fault("no answer within 60 s from", &port));
            }
            sleep(TRY_EVERY).await;
        }
        Ok(Self { child, watchdog, port, program })
    }

    /// Waits until the server ends by itself, which it should not.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Lets it write its data and end.
    pub(super) async fn stop(mut self) {
        // First, so that it cannot hit another process with the same id later.
        if let Some(watchdog) = &mut self.watchdog {
            let _ = watchdog.kill().await;
        }
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn arguments(port: u16, folder: &Path) -> Vec<OsString> {
    let port = port.to_string();
    let mut arguments: Vec<OsString> = [
        ["--port", &port],
        ["--bind", "127.0.0.1"],
        ["--appendonly", "yes"],
        ["--appendfsync", "everysec"],
        ["--save", ""],
        ["--maxmemory-policy", "noeviction"],
        ["--daemonize", "no"],
    ]
    .into_iter()
    .flatten()
    .map(OsString::from)
    .collect();
    arguments.extend(["--dir".into(), folder.into()]);
    arguments
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether it answers PING, and has loaded its data.
async fn answers(port: u16) -> bool {
    let Ok(client) = ::redis::Client::open(format!("redis://127.0.0.1:{port}")) else { return false };
    let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
    ::redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
}
