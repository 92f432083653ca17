//! A real server as a child of this program, ended with the last test that uses it.

use std::{
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// A server of this program's own.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

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

impl Server {
    /// The server that tests share.
    pub(crate) fn shared() -> anyhow::Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// A server for one test.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let program = program()?;
        let child = Command::new(&program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let server = Self { child, port, _folder: folder };
        let client = redis::Client::open(server.url())?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.get_connection().and_then(|mut c| redis::cmd("PING").query::<()>(&mut c)).is_err() {
            if Instant::now() > deadline {
                bail!("`{}` does not answer on port {port}", program.display());
            }
            std::thread::yield_now();
        }
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
