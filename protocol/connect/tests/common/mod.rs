//! Real servers for these tests: children of the test, on free ports, in folders of their own, gone when dropped.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use stepfleet_connect::{Redis, Settings};

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// One server process.
pub(crate) struct Server {
    pub(crate) port: u16,
    folder: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts a server with these extra arguments and waits until it answers.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("stepfleet-connect-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { port: free_port(), folder, arguments, child: None };
        server.up().await;
        server
    }

    /// Starts it again on the same port.
    pub(crate) async fn up(&mut self) {
        let program = program();
        let child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(&self.folder)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", program.display()));
        self.child = Some(child);
        until("the server answers", || async { self.connection_or_none().await.is_some() }).await;
    }

    /// Kills it with -9.
    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("our own child can be killed");
        }
    }

    /// Stops the process: connections to it are made, and nothing is answered.
    pub(crate) fn freeze(&self) {
        let child = self.child.as_ref().expect("it runs");
        let stopped = Command::new("kill").arg("-STOP").arg(child.id().to_string()).status();
        assert!(stopped.is_ok_and(|status| status.success()), "our own child can be stopped");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn redis(&self) -> Redis {
        Redis::connect(Settings::parse(&self.url()).expect("our URL")).await.expect("our server answers")
    }

    /// A connection of the plain crate, for what a test does to a server behind our back.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.connection_or_none().await.expect("our server answers")
    }

    async fn connection_or_none(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.url()).expect("our URL");
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("PING").query_async::<String>(&mut connection).await.ok()?;
        Some(connection)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A Cluster of three primaries, a third of the slots each.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port"];
            let bus = free_port().to_string();
            nodes.push(Server::start(&[&arguments[..], &[bus.as_str()]].concat()).await);
        }
        let cluster = Self { nodes };
        cluster.form().await;
        cluster
    }

    async fn form(&self) {
        for (server, (first, last)) in self.nodes.iter().zip([(0, 5461), (5462, 10922), (10923, 16383)]) {
            let mut connection = server.connection().await;
            command(&mut connection, &["CLUSTER", "ADDSLOTSRANGE", &format!("{first}"), &format!("{last}")]).await;
            for other in self.nodes.iter().filter(|other| other.port != server.port) {
                let bus = other.arguments.last().expect("the port of the bus comes last");
                command(&mut connection, &["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), bus]).await;
            }
        }
        self.settle().await;
    }

    /// Waits until every node sees all three and all slots.
    pub(crate) async fn settle(&self) {
        for server in &self.nodes {
            until("the cluster is whole", || async {
                let mut connection = server.connection().await;
                let state: String =
                    redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.expect("CLUSTER INFO");
                ["cluster_state:ok", "cluster_known_nodes:3", "cluster_size:3"].iter().all(|part| state.contains(part))
            })
            .await;
        }
    }

    /// Gives an empty slot to another node.
    pub(crate) async fn move_slot(&mut self, slot: u16, from: u16, to: u16) {
        let (mut source, mut target) = (self.node(from).connection().await, self.node(to).connection().await);
        let id: String = redis::cmd("CLUSTER").arg("MYID").query_async(&mut target).await.expect("CLUSTER MYID");
        for connection in [&mut target, &mut source] {
            command(connection, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]).await;
        }
        for server in &self.nodes {
            until("all nodes know the slot's new place", || async {
                let mut connection = server.connection().await;
                let slots: String =
                    redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await.expect("CLUSTER NODES");
                let line = slots.lines().find(|line| line.starts_with(&id)).expect("the node is known");
                line.split_whitespace().any(|part| part == slot.to_string())
            })
            .await;
        }
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    pub(crate) async fn redis(&self) -> Redis {
        Redis::connect(Settings::parse(&self.url()).expect("our URL")).await.expect("our cluster answers")
    }

    /// The server with this port.
    pub(crate) fn node(&mut self, port: u16) -> &mut Server {
        self.nodes.iter_mut().find(|node| node.port == port).expect("a node of this cluster")
    }
}

/// Sends one command and expects it to succeed.
pub(crate) async fn command(connection: &mut MultiplexedConnection, words: &[&str]) -> redis::Value {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(connection).await.unwrap_or_else(|error| panic!("`{}`: {error}", words.join(" ")))
}

/// Waits for a condition, 20 s at most.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("STEPFLEET_TEST_SERVER") {
        return path.into();
    }
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    let folders: Vec<_> = on_path.chain([here]).collect();
    let candidates = ["valkey-server", "redis-server"];
    candidates.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file()).expect(
        "no Redis or Valkey server for the tests; hint: set STEPFLEET_TEST_SERVER, or put valkey-server or redis-server on PATH",
    )
}
