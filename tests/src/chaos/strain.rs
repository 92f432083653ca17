//! Faults of servers that run: no room on the disk, no memory left, every connection killed.

use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;

use crate::chaos::effects::now_ns;
use crate::chaos::inject::Went;
use crate::chaos::world::World;

/// Connections that a storm kills.
const STORM: usize = 1_000;
/// How long a storm may take.
const STORM_TIME: Duration = Duration::from_secs(10);

impl World {
    pub(super) async fn fill_disk(&mut self) -> anyhow::Result<Went> {
        let hold = self.seconds(3.0..6.0);
        let disk = self.disk.as_ref().context("there is no small disk")?;
        let began_ns = now_ns();
        disk.fill()?;
        tokio::time::sleep(hold).await;
        disk.free()?;
        let mut ended = 0;
        for place in 0..self.servers.all().len() {
            ended += usize::from(!self.servers.at(place).is_running()?);
        }
        self.servers.heal().await?;
        self.everywhere(format!("{ended} servers ended by it"), began_ns, now_ns()).await
    }

    pub(super) async fn fill_memory(&mut self) -> anyhow::Result<Went> {
        let (hold, began_ns) = (self.seconds(3.0..6.0), now_ns());
        let places = self.servers.primaries().await?;
        for place in &places {
            let server = &self.servers.all()[*place];
            let info = crate::chaos::servers::info(server, "memory").await?;
            let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("used memory")?;
            limit_memory(&mut server.connection().await?, used.trim().parse::<u64>()? / 20 * 19).await?;
        }
        tokio::time::sleep(hold).await;
        for place in &places {
            limit_memory(&mut self.servers.all()[*place].connection().await?, 0).await?;
        }
        self.everywhere(format!("{} servers", places.len()), began_ns, now_ns()).await
    }

    pub(super) async fn storm(&mut self) -> anyhow::Result<Went> {
        let began_ns = now_ns();
        let mut connections = Vec::new();
        for place in self.servers.primaries().await? {
            connections.push(self.servers.all()[place].connection().await?);
        }
        let end = tokio::time::Instant::now() + STORM_TIME;
        let mut killed = 0;
        while killed < STORM && tokio::time::Instant::now() < end {
            for connection in &mut connections {
                for kind in ["normal", "pubsub"] {
                    let mut kill = redis::cmd("CLIENT");
                    kill.arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes");
                    killed += kill.query_async::<usize>(connection).await?;
                }
            }
            // They have to come back before they can be killed again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.everywhere(format!("{killed} connections"), began_ns, now_ns()).await
    }
}

async fn limit_memory(connection: &mut MultiplexedConnection, bytes: u64) -> anyhow::Result<()> {
    let mut set = redis::cmd("CONFIG");
    Ok(set.arg("SET").arg("maxmemory").arg(bytes).query_async(connection).await?)
}
