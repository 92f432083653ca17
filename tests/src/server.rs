//! One real server as a child.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, TlsCertificates};
use tempfile::TempDir;

use crate::child::Child;
use crate::server_options::{HARNESS_USER, Role, ServerOptions};
use crate::tls::Certificates;
use crate::{binary, port, wait};

/// How long a server may take to answer after its start; loading a large file on a busy machine takes a while.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a server may take to end after SIGTERM, syncing its file, before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How many times a port or an answer lost to another process is tried anew.
const START_ATTEMPTS: usize = 10;

/// A real server in a temporary folder of its own, on a free loopback port. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    child: Option<Child>,
    port: u16,
    bus_port: u16,
    certificates: Option<Certificates>,
    folder: TempDir,
}

impl Server {
    /// Starts one with the default options: nothing on disk, no password.
    ///
    /// # Errors
    /// As [`ServerOptions::start`].
    pub async fn start() -> anyhow::Result<Self> {
        Self::launch(ServerOptions::new()).await
    }

    /// What a server can be started with.
    #[must_use]
    pub fn options() -> ServerOptions {
        ServerOptions::new()
    }

    pub(crate) async fn launch(mut options: ServerOptions) -> anyhow::Result<Self> {
        options.take_place();
        let mut folder = tempfile::Builder::new();
        folder.prefix("stepfleet-server-");
        let folder = match &options.within {
            Some(within) => folder.tempdir_in(within)?,
            None => folder.tempdir()?,
        };
        let certificates = options.tls.then(|| Certificates::make(folder.path())).transpose()?;
        let mut server = Self { options, child: None, port: 0, bus_port: 0, certificates, folder };
        for attempt in 1.. {
            (server.port, server.bus_port) = (port::free(), port::free());
            let text =
                server.options.render(server.folder.path(), server.port, server.bus_port, server.certificates.as_ref());
            fs::write(server.folder.path().join("server.conf"), text)?;
            match server.run().await {
                Ok(()) => break,
                Err(error) if attempt == START_ATTEMPTS || !server.lost_its_port() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(server)
    }

    /// The address that it is known by.
    #[must_use]
    pub fn ip(&self) -> &str {
        self.options.ip.as_deref().unwrap_or("127.0.0.1")
    }

    /// The port, the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`, or with the address of the options.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.ip(), self.port)
    }

    pub(crate) fn bus_port(&self) -> u16 {
        self.bus_port
    }

    /// The URL without a user: `redis://…`, or `rediss://…` with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.address())
    }

    /// The URL for a user.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("{}://{user}:{password}@{}", self.scheme(), self.address())
    }

    fn scheme(&self) -> &'static str {
        if self.certificates.is_some() { "rediss" } else { "redis" }
    }

    /// The authority (PEM) that signed the server's certificate; `None` without TLS.
    #[must_use]
    pub fn ca_file(&self) -> Option<&Path> {
        self.certificates.as_ref().map(|files| files.authority.as_path())
    }

    /// The folder with its configuration, log and data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The id of the running process; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Whether its process runs; a paused one does, one that ended by itself does not.
    ///
    /// # Errors
    /// The system refuses to tell.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.ended()?.is_none(),
            None => false,
        })
    }

    /// A client that may do everything; it trusts the server's certificate.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn client(&self) -> anyhow::Result<Client> {
        if self.options.default_user_off {
            self.client_for(HARNESS_USER.0, HARNESS_USER.1)
        } else {
            self.client_at(self.url())
        }
    }

    /// A client that logs in as `user`.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn client_for(&self, user: &str, password: &str) -> anyhow::Result<Client> {
        self.client_at(self.url_for(user, password))
    }

    fn client_at(&self, url: String) -> anyhow::Result<Client> {
        let Some(ca_file) = self.ca_file() else { return Ok(Client::open(url)?) };
        let root_cert = Some(fs::read(ca_file)?);
        Ok(Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })?)
    }

    /// A new connection that may do everything.
    ///
    /// # Errors
    /// The server does not answer within 5 s.
    pub async fn connection(&self) -> anyhow::Result<MultiplexedConnection> {
        connect(&self.client()?).await
    }

    /// Kills it at once, as a crash would. Its data stay in its folder.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        self.child.take().context("the server is not running")?.kill_9()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it is gone; after 10 s it is killed, which is an error.
    ///
    /// # Errors
    /// It is not running or did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the server is not running")?;
        child.signal(Signal::SIGTERM)?;
        wait::until(STOP_DEADLINE, "the server to end", async || child.ended()?.map(drop).context("it still runs"))
            .await
    }

    /// Starts it again on the same port with the same data, stopping it first if it runs, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            self.stop().await?;
        }
        for attempt in 1.. {
            match self.run().await {
                Ok(()) => break,
                Err(error) if attempt == START_ATTEMPTS || !self.lost_its_port() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Freezes it (SIGSTOP): connections stay open, nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Thaws it (SIGCONT).
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.child.as_mut().context("the server is not running")?.signal(signal)?)
    }

    /// Its log so far; empty if there is none.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Starts the process with the configuration file as it is, and waits until that very process answers.
    async fn run(&mut self) -> anyhow::Result<()> {
        let log = self.folder.path().join("server.log");
        if log.exists() {
            fs::rename(&log, self.folder.path().join("server.log.before"))?;
        }
        let mut child = Child::spawn(self.command()?).context("start the server")?;
        let client = self.client()?;
        let mut gone = None;
        let answer = wait::until(START_DEADLINE, "the server to answer", async || {
            if let Some(status) = child.ended()? {
                // Nothing to wait for any more; the error is made outside.
                gone = Some(status);
                return Ok(());
            }
            ensure!(process_id(&client).await? == child.pid(), "another server answers on port {}", self.port);
            Ok(())
        })
        .await;
        if let Some(status) = gone {
            bail!("the server ended with {status} at its start; its log ends:\n{}", tail(&self.log()));
        }
        answer.with_context(|| format!("the server's log ends:\n{}", tail(&self.log())))?;
        self.child = Some(child);
        Ok(())
    }

    fn command(&self) -> anyhow::Result<Command> {
        let program = if self.options.tls { binary::server_tls()? } else { binary::server()? };
        let mut words = self.options.enter.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().context("there is a program")?);
        command.args(words).arg(self.config_file()).current_dir(self.folder.path());
        if matches!(self.options.role, Role::Sentinel { .. }) {
            command.arg("--sentinel");
        }
        // What goes wrong before the log is open is told on stdout.
        let early = fs::File::create(self.folder.path().join("early.log"))?;
        command.stdin(Stdio::null()).stderr(early.try_clone()?).stdout(early);
        Ok(command)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("server.conf")
    }

    /// Whether the last start failed because somebody else listened on one of its ports.
    fn lost_its_port(&self) -> bool {
        let early = fs::read_to_string(self.folder.path().join("early.log")).unwrap_or_default();
        [self.log(), early].iter().any(|text| text.contains("Address already in use"))
    }
}

/// Connects with time limits that a busy test machine keeps.
pub(crate) async fn connect(client: &Client) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(5)))
        .set_response_timeout(Some(Duration::from_secs(30)));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// The process id of the server that answers; an error while it loads its data.
async fn process_id(client: &Client) -> anyhow::Result<u32> {
    let mut connection = connect(client).await?;
    let _: String = redis::cmd("PING").query_async(&mut connection).await?;
    let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
    let id = info.lines().find_map(|line| line.strip_prefix("process_id:")).context("INFO names no process id")?;
    Ok(id.trim().parse()?)
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
