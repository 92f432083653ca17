//! A primary with a replica, watched by Sentinels.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::server_options::Role;
use crate::{Server, ServerOptions, wait};

/// The name under which the Sentinels know the primary.
pub const NAME: &str = "stepfleet";
/// After how long of silence a Sentinel takes the primary for dead. It must be well above the period of the pings: a
/// Sentinel starts to count when it is told of a primary but pings it only one period later, so with equal times it
/// takes each new primary for dead and fails back.
const DOWN_AFTER: Duration = Duration::from_secs(2);
/// How long forming or a fail-over may take on a busy machine; Sentinels retry a lost election after some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Two servers, one of them the primary, and the Sentinels that watch them. Dropping it ends all.
#[derive(Debug)]
pub struct Sentinel {
    servers: [Server; 2],
    sentinels: Vec<Server>,
}

impl Sentinel {
    /// Starts a primary, its replica and `sentinels` Sentinels, and waits until all know each other.
    ///
    /// # Errors
    /// As [`Sentinel::launch`].
    pub async fn start(sentinels: usize) -> anyhow::Result<Self> {
        Self::launch(sentinels, ServerOptions::new()).await
    }

    /// The same, with options for the two servers.
    ///
    /// # Errors
    /// A process does not come up, or they do not know each other within a minute.
    pub async fn launch(sentinels: usize, server: ServerOptions) -> anyhow::Result<Self> {
        let primary = server.clone().start().await?;
        let ip = server.ip.clone();
        let replica = server.setting("replicaof", &format!("{} {}", primary.ip(), primary.port())).start().await?;
        wait::until(DEADLINE, "the replica to follow", async || {
            let info = replication(&replica).await?;
            ensure!(info.contains("master_link_status:up"), "it says\n{info}");
            Ok(())
        })
        .await?;
        let role = Role::Sentinel {
            name: NAME.into(),
            primary: (primary.ip().into(), primary.port()),
            quorum: sentinels / 2 + 1,
            down_after: DOWN_AFTER,
        };
        let mut options = ServerOptions::new().role(role);
        options.ip = ip;
        let starts = (0..sentinels).map(|_| options.clone().start());
        let sentinels = futures::future::try_join_all(starts).await?;
        for sentinel in &sentinels {
            quicken(sentinel).await?;
        }
        let all = Self { servers: [primary, replica], sentinels };
        all.wait_until_all_know_each_other().await?;
        Ok(all)
    }

    /// The two servers: the first was the primary at the start.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// One of the two servers, to kill, pause or restart it.
    pub fn server_mut(&mut self, place: usize) -> &mut Server {
        &mut self.servers[place]
    }

    /// The Sentinels.
    #[must_use]
    pub fn sentinels(&self) -> &[Server] {
        &self.sentinels
    }

    /// The URLs of the Sentinels.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::url).collect()
    }

    /// The place in [`Sentinel::servers`] of what the first Sentinel takes for the primary.
    ///
    /// # Errors
    /// The Sentinel does not answer, or names a server that is not ours.
    pub async fn primary(&self) -> anyhow::Result<usize> {
        self.primary_by(self.sentinels.first().context("there is a Sentinel")?).await
    }

    /// Kills the primary (-9) and waits until every Sentinel names the other server and that one is a primary. Returns the
    /// place of the new primary; the old one stays stopped until it is restarted.
    ///
    /// # Errors
    /// No fail-over within a minute, or the other server is not running.
    pub async fn fail_over(&mut self) -> anyhow::Result<usize> {
        let old = self.primary().await?;
        let new = 1 - old;
        ensure!(self.servers[new].pid().is_some(), "there is no running server to fail over to");
        self.servers[old].kill_9()?;
        wait::until(DEADLINE, "the fail-over", async || {
            for sentinel in &self.sentinels {
                ensure!(self.primary_by(sentinel).await? == new, "{} still names the old one", sentinel.address());
            }
            let info = replication(&self.servers[new]).await?;
            ensure!(info.contains("role:master"), "the new primary says\n{info}");
            Ok(new)
        })
        .await
    }

    async fn primary_by(&self, sentinel: &Server) -> anyhow::Result<usize> {
        let mut connection = sentinel.connection().await?;
        let (_, port): (String, u16) =
            redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(NAME).query_async(&mut connection).await?;
        self.servers
            .iter()
            .position(|server| server.port() == port)
            .with_context(|| format!("a Sentinel names port {port}, which is neither server"))
    }

    async fn wait_until_all_know_each_other(&self) -> anyhow::Result<()> {
        let known = format!("slaves=1,sentinels={}", self.sentinels.len());
        for sentinel in &self.sentinels {
            wait::until(DEADLINE, "the Sentinels to know each other", async || {
                let mut connection = sentinel.connection().await?;
                let info: String = redis::cmd("INFO").arg("sentinel").query_async(&mut connection).await?;
                ensure!(info.contains(&known) && info.contains("status=ok"), "{} says\n{info}", sentinel.address());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// Makes a Sentinel ping four times and look twice a second, instead of once a second and every ten.
async fn quicken(sentinel: &Server) -> anyhow::Result<()> {
    let mut connection = sentinel.connection().await?;
    let command = ["DEBUG", "PING-PERIOD", "250", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "500"];
    Ok(redis::cmd("SENTINEL").arg(&command).query_async(&mut connection).await?)
}

async fn replication(server: &Server) -> anyhow::Result<String> {
    let mut connection = server.connection().await?;
    Ok(redis::cmd("INFO").arg("replication").query_async(&mut connection).await?)
}
