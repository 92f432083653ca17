//! A real server for one test: a child on a free port, in a folder of its own, gone when dropped.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// One server process.
pub(crate) struct Server {
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts a server that keeps what it is told over a kill.
    pub(crate) async fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// Starts a server with these arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { port: free_port(), folder, arguments, child: None };
        server.up().await;
        server
    }

    /// Starts it again on the same port.
    pub(crate) async fn up(&mut self) {
        let program = program();
        let child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", program.display()));
        self.child = Some(child);
        until("the server answers", async || self.connected().await.is_some()).await;
    }

    /// Kills it with -9.
    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait().map(|_| ())).expect("our own child can be killed");
        }
    }

    /// Stops the process: connections to it are made, and nothing is answered.
    pub(crate) fn freeze(&self) {
        let child = self.child.as_ref().expect("it runs");
        let stopped = Command::new("kill").arg("-STOP").arg(child.id().to_string()).status();
        assert!(stopped.is_ok_and(|status| status.success()), "our own child can be stopped");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.connected().await.expect("our server answers")
    }

    async fn connected(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.url()).expect("our URL");
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("PING").query_async::<String>(&mut connection).await.ok()?;
        Some(connection)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

/// A port that nobody has now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn program() -> PathBuf {
    let named = std::env::var_os("STEPFLEET_TEST_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || {
        std::env::split_paths(&path)
            .flat_map(|folder| ["valkey-server", "redis-server"].map(|name| folder.join(name)))
            .find(|file| file.is_file())
    };
    named.or_else(on_path).expect(
        "a server for the tests: install valkey-server or redis-server (7.0 or newer), \
         or name one with STEPFLEET_TEST_SERVER",
    )
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, so: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, so).await;
}

/// As [`until`], with patience of its own; the longer it is the less often is looked.
pub(crate) async fn until_within(patience: Duration, what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < patience, "waited {patience:?} in vain until {what}");
        tokio::time::sleep(patience / 6_000).await;
    }
}
