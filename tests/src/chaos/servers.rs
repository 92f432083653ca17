//! The servers of a test: one, a primary with its replica and Sentinels, or a Cluster of three with three replicas.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::cluster::ClusterOptions;
use crate::server_options::Place;
use crate::{Cluster, Fsync, Sentinel, Server, ServerOptions, sentinel, wait};

/// Silence after which a Cluster node counts as failing.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// After how long it is looked again whether one has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// A replica that said nothing for so long does not count for `min-replicas-to-write`.
const MAX_LAG_SECONDS: &str = "3";
/// How long servers may take to agree again.
const AGREE: Duration = Duration::from_secs(90);

/// What a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server that syncs its append-only file before every reply: what was acknowledged is durable.
    Single,
    /// A primary and a replica that follows it asynchronously, with three Sentinels.
    Sentinel,
    /// Three primaries with a replica each, asynchronous too.
    Cluster,
}

impl Topology {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Single, Self::Sentinel, Self::Cluster];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }
}

impl FromStr for Topology {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|topology| topology.as_str() == text);
        found.with_context(|| format!("unknown topology `{text}`: allowed are single, sentinel, cluster, all"))
    }
}

/// The running servers.
#[derive(Debug)]
pub enum Servers {
    /// One.
    Single(Box<Server>),
    /// A pair.
    Sentinel(Box<Sentinel>),
    /// Six.
    Cluster(Cluster),
}

impl Servers {
    /// Starts them, at `ip` beside the loopback and with their folders within `disk`, if these are given, those with data
    /// on `places` as long as there are any. A primary with fewer than `min_replicas` that follow refuses writes.
    ///
    /// # Errors
    /// They do not come up.
    pub async fn start(
        topology: Topology,
        ip: Option<&str>,
        places: Vec<Place>,
        disk: Option<&Path>,
        min_replicas: u32,
    ) -> anyhow::Result<Self> {
        let fsync = if topology == Topology::Single { Fsync::Always } else { Fsync::EverySecond };
        let mut server = ServerOptions::new().append_only(fsync).places(places);
        if min_replicas > 0 && topology != Topology::Single {
            let writes = min_replicas.to_string();
            server = server.setting("min-replicas-to-write", &writes).setting("min-replicas-max-lag", MAX_LAG_SECONDS);
        }
        if let Some(ip) = ip {
            server = server.ip(ip);
        }
        if let Some(disk) = disk {
            server = server.within(disk);
        }
        Ok(match topology {
            Topology::Single => Self::Single(Box::new(server.start().await?)),
            Topology::Sentinel => Self::Sentinel(Box::new(Sentinel::launch(3, server).await?)),
            Topology::Cluster => Self::Cluster(
                Cluster::launch(ClusterOptions { primaries: 3, replicas_each: 1, node_timeout: NODE_TIMEOUT, server })
                    .await?,
            ),
        })
    }

    /// Where programs connect to, unless they have a link of their own.
    #[must_use]
    pub fn url(&self) -> String {
        let joined = |scheme: &str, servers: &[Server]| {
            let hosts: Vec<String> = servers.iter().map(Server::address).collect();
            format!("{scheme}://{}", hosts.join(","))
        };
        match self {
            Self::Single(server) => server.url(),
            Self::Sentinel(pair) => format!("{}/{}", joined("redis-sentinel", pair.sentinels()), sentinel::NAME),
            Self::Cluster(cluster) => joined("redis-cluster", cluster.nodes()),
        }
    }

    /// Servers that hold data.
    #[must_use]
    pub fn all(&self) -> &[Server] {
        match self {
            Self::Single(server) => std::slice::from_ref(server),
            Self::Sentinel(pair) => pair.servers(),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Those that watch the others.
    #[must_use]
    pub fn sentinels(&self) -> &[Server] {
        match self {
            Self::Single(_) | Self::Cluster(_) => &[],
            Self::Sentinel(pair) => pair.sentinels(),
        }
    }

    /// One of them, by its place in [`Servers::all`].
    pub fn at(&mut self, place: usize) -> &mut Server {
        match self {
            Self::Single(server) => server,
            Self::Sentinel(pair) => pair.server_mut(place),
            Self::Cluster(cluster) => cluster.node_mut(place),
        }
    }

    /// The places of the primaries.
    ///
    /// # Errors
    /// None is there.
    pub async fn primaries(&self) -> anyhow::Result<Vec<usize>> {
        if let Self::Sentinel(pair) = self {
            return Ok(vec![pair.primary().await?]);
        }
        let mut places = Vec::new();
        for (place, server) in self.all().iter().enumerate() {
            if role(server).await.is_ok_and(|role| role == "master") {
                places.push(place);
            }
        }
        ensure!(!places.is_empty(), "no server is a primary");
        Ok(places)
    }

    /// The place of the replica of a primary.
    ///
    /// # Errors
    /// It has none.
    pub async fn replica_of(&self, primary: usize) -> anyhow::Result<usize> {
        let line = format!("master_port:{}", self.all()[primary].port());
        for (place, server) in self.all().iter().enumerate() {
            if info(server, "replication").await.is_ok_and(|info| info.lines().any(|found| found == line)) {
                return Ok(place);
            }
        }
        bail!("server {primary} has no replica")
    }

    /// Whether a primary that is gone is replaced by its replica.
    #[must_use]
    pub fn fails_over(&self) -> bool {
        !matches!(self, Self::Single(_))
    }

    /// Waits until another than `place` does its work.
    ///
    /// # Errors
    /// That takes too long.
    pub async fn until_failed_over(&self, place: usize) -> anyhow::Result<()> {
        wait::until(AGREE, "the fail-over", async || {
            match self {
                Self::Single(_) => bail!("nobody can"),
                Self::Sentinel(pair) => ensure!(pair.primary().await? != place, "it is still the primary"),
                Self::Cluster(cluster) => {
                    let mut others = 0;
                    for (_, node) in cluster.nodes().iter().enumerate().filter(|(other, _)| *other != place) {
                        others += usize::from(role(node).await.is_ok_and(|role| role == "master"));
                    }
                    ensure!(others == 3, "{others} primaries");
                }
            }
            Ok(())
        })
        .await
    }

    /// Starts again what ended. One whose file cannot be read any more, as a full disk can leave it, begins empty
    /// behind the replica that took its place; a single server cannot.
    ///
    /// # Errors
    /// One does not come up.
    pub async fn revive(&mut self) -> anyhow::Result<()> {
        for place in 0..self.all().len() {
            if self.at(place).is_running()? {
                continue;
            }
            match self.at(place).restart().await {
                Err(error) if self.fails_over() => {
                    eprintln!("server {place} begins empty, as it does not start with its files: {error:#}");
                    self.until_failed_over(place).await?;
                    self.begin_empty(place).await?;
                }
                started => started?,
            }
        }
        Ok(())
    }

    /// Starts a server whose place was taken without its data.
    async fn begin_empty(&mut self, place: usize) -> anyhow::Result<()> {
        let folder = self.at(place).folder().to_owned();
        fs::remove_dir_all(folder.join("appendonlydir"))?;
        if let Self::Sentinel(pair) = self {
            // Until a Sentinel tells it otherwise it would be a primary, and an empty one. A Cluster node waits for the
            // others.
            let primary = &pair.servers()[1 - place];
            let mut settings = fs::OpenOptions::new().append(true).open(folder.join("server.conf"))?;
            writeln!(settings, "\nreplicaof {} {}", primary.ip(), primary.port())?;
        }
        self.at(place).restart().await
    }

    /// Starts again what ended, and waits until all agree. A server may end a moment after what made it end is over, so
    /// that is looked at again and again.
    ///
    /// # Errors
    /// They do not agree.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + AGREE;
        loop {
            self.revive().await?;
            match self.agree().await {
                Err(_) if Instant::now() < end => {}
                agreed => return agreed,
            }
        }
    }

    /// Waits a little until all agree.
    async fn agree(&self) -> anyhow::Result<()> {
        match self {
            Self::Single(_) => Ok(()),
            Self::Cluster(cluster) => cluster.wait_until_ok(LOOK_AGAIN).await,
            Self::Sentinel(pair) => {
                wait::until(LOOK_AGAIN, "the replica to follow", async || {
                    let primary = pair.primary().await?;
                    let info = info(&pair.servers()[1 - primary], "replication").await?;
                    ensure!(info.contains("master_link_status:up"), "{info}");
                    Ok(())
                })
                .await
            }
        }
    }
}

/// A section of INFO.
///
/// # Errors
/// No answer within two seconds.
pub(crate) async fn info(server: &Server, section: &str) -> anyhow::Result<String> {
    let ask = async {
        let mut connection = server.connection().await?;
        Ok::<String, anyhow::Error>(redis::cmd("INFO").arg(section).query_async(&mut connection).await?)
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.context("no answer")?
}

async fn role(server: &Server) -> anyhow::Result<String> {
    let info = info(server, "replication").await?;
    Ok(info.lines().find_map(|line| line.strip_prefix("role:")).context("no role")?.trim().to_owned())
}
