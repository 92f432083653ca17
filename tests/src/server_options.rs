//! What a test server is started with, and the configuration file that says so.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server::Server;
use crate::tls::Certificates;

/// When the append-only file is synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before every reply: what was answered survives kill -9 and a crash of the machine.
    Always,
    /// Once a second.
    EverySecond,
    /// When the operating system likes: survives kill -9, as the kernel has the bytes.
    No,
}

/// The user that the harness itself logs in as when the default user is off.
pub(crate) const HARNESS_USER: (&str, &str) = ("harness", "harness-secret");

#[derive(Debug, Clone, Default)]
pub(crate) enum Role {
    #[default]
    Single,
    /// A node of a Cluster, empty until the Cluster is formed.
    ClusterNode { node_timeout: Duration },
    /// A Sentinel that watches the primary of that address and port under that name.
    Sentinel { name: String, primary: (String, u16), quorum: usize, down_after: Duration },
}

/// A host for one server.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address.
    pub ip: String,
    /// The words before a program that make it run there.
    pub enter: Vec<String>,
}

/// Hosts that are free; all clones are the same.
pub(crate) type Places = Arc<Mutex<VecDeque<Place>>>;

/// What a [`Server`] is started with. The default keeps nothing on disk, needs no password and listens without TLS.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    append_only: Option<Fsync>,
    maxmemory_bytes: Option<u64>,
    users: Vec<(String, String, String)>,
    settings: Vec<(String, String)>,
    pub(crate) tls: bool,
    pub(crate) default_user_off: bool,
    pub(crate) role: Role,
    pub(crate) ip: Option<String>,
    pub(crate) places: Places,
    pub(crate) enter: Vec<String>,
    pub(crate) within: Option<PathBuf>,
}

impl ServerOptions {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps an append-only file, synced as `fsync` says; a restart loads it.
    #[must_use]
    pub fn append_only(mut self, fsync: Fsync) -> Self {
        self.append_only = Some(fsync);
        self
    }

    /// Limits the memory, with `maxmemory-policy noeviction`.
    #[must_use]
    pub fn maxmemory(mut self, bytes: u64) -> Self {
        self.maxmemory_bytes = Some(bytes);
        self
    }

    /// Listens with TLS only, with a certificate from [`Server::ca_file`].
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Adds a user. `rules` is the rest of an ACL line, like `~sf:* &sf:* +@all`.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str, rules: &str) -> Self {
        self.users.push((name.into(), password.into(), rules.into()));
        self
    }

    /// Refuses whoever does not log in as a user. The harness has one of its own.
    #[must_use]
    pub fn default_user_off(mut self) -> Self {
        self.default_user_off = true;
        self
    }

    /// Adds a line to the configuration file; it wins over what the harness chose.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Serves at this address too, which is the one that it is known by to others: for programs that do not share the
    /// loopback of the test.
    #[must_use]
    pub fn ip(mut self, address: &str) -> Self {
        self.ip = Some(address.into());
        self
    }

    /// Each server that is started with these options, or a clone of them, takes the next of these hosts; those for which
    /// none is left run where the test runs.
    #[must_use]
    pub fn places(mut self, places: impl IntoIterator<Item = Place>) -> Self {
        self.places = Arc::new(Mutex::new(places.into_iter().collect()));
        self
    }

    /// Takes the next host, if there is one.
    pub(crate) fn take_place(&mut self) {
        if let Some(place) = self.places.lock().expect("nobody panics with it").pop_front() {
            (self.ip, self.enter) = (Some(place.ip), place.enter);
        }
    }

    /// Makes its folder within this one, instead of where temporary folders are.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.within = Some(folder.into());
        self
    }

    pub(crate) fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// There is no server program, or it does not come up; the text holds the end of its log.
    pub async fn start(self) -> anyhow::Result<Server> {
        Server::launch(self).await
    }

    /// The configuration file. `bus_port` is used by a Cluster node only.
    pub(crate) fn render(&self, folder: &Path, port: u16, bus_port: u16, tls: Option<&Certificates>) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| writeln!(text, "{name} {value}").expect("a String takes everything");
        match &self.ip {
            Some(ip) => {
                line("bind", &format!("127.0.0.1 {ip}"));
                // Without a password it answers the loopback only, unless this is said.
                line("protected-mode", "no");
            }
            None => line("bind", "127.0.0.1"),
        }
        line("dir", &format!("{:?}", folder.display().to_string()));
        line("logfile", "server.log");
        if let Some(files) = tls {
            line("port", "0");
            line("tls-port", &port.to_string());
            line("tls-ca-cert-file", &format!("{:?}", files.authority.display().to_string()));
            line("tls-cert-file", &format!("{:?}", files.certificate.display().to_string()));
            line("tls-key-file", &format!("{:?}", files.key.display().to_string()));
            line("tls-auth-clients", "no");
        } else {
            line("port", &port.to_string());
        }
        match &self.role {
            Role::Single => self.render_data(&mut line),
            Role::ClusterNode { node_timeout } => {
                self.render_data(&mut line);
                line("cluster-enabled", "yes");
                line("cluster-port", &bus_port.to_string());
                line("cluster-node-timeout", &node_timeout.as_millis().to_string());
                line("cluster-replica-validity-factor", "0");
                if let Some(ip) = &self.ip {
                    line("cluster-announce-ip", ip);
                }
            }
            Role::Sentinel { name, primary: (ip, port), quorum, down_after } => {
                line("protected-mode", "no");
                line("sentinel", &format!("monitor {name} {ip} {port} {quorum}"));
                line("sentinel", &format!("down-after-milliseconds {name} {}", down_after.as_millis()));
                line("sentinel", &format!("failover-timeout {name} {}", (*down_after * 5).as_millis()));
            }
        }
        for (name, value) in &self.settings {
            line(name, value);
        }
        text
    }

    /// The part of a server that holds data.
    fn render_data(&self, line: &mut impl FnMut(&str, &str)) {
        line("save", "\"\"");
        line("enable-debug-command", "yes");
        line("repl-diskless-sync-delay", "0");
        line("maxmemory-policy", "noeviction");
        if let Some(fsync) = self.append_only {
            line("appendonly", "yes");
            line(
                "appendfsync",
                match fsync {
                    Fsync::Always => "always",
                    Fsync::EverySecond => "everysec",
                    Fsync::No => "no",
                },
            );
        }
        if let Some(bytes) = self.maxmemory_bytes {
            line("maxmemory", &bytes.to_string());
        }
        for (name, password, rules) in &self.users {
            line("user", &format!("{name} on >{password} {rules}"));
        }
        if self.default_user_off {
            let (name, password) = HARNESS_USER;
            line("user", &format!("{name} on >{password} ~* &* +@all"));
            line("user", "default off");
        }
    }
}
