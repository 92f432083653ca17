//! Servers that do not reach each other, while every program reaches all of them: a replica without its primary, and a
//! primary that does not know that another has taken its place.

use anyhow::Context as _;
use rand::seq::IndexedRandom as _;

use crate::chaos::effects::now_ns;
use crate::chaos::hosts::Hosts;
use crate::chaos::inject::Went;
use crate::chaos::servers::{Servers, Topology};
use crate::chaos::world::World;

/// How long programs have to settle on either side before the sides meet again, at least.
const APART: std::ops::Range<f64> = 4.0..8.0;

impl World {
    /// Cuts a replica off from its primary for some seconds. Nobody takes the primary for dead.
    pub(super) async fn cut_replica(&mut self) -> anyhow::Result<Went> {
        let (primary, hold) = (self.primary().await?, self.seconds(APART));
        let replica = self.servers.replica_of(primary).await?;
        let wires = vec![(primary, self.server_ip(replica)), (replica, self.server_ip(primary))];
        let began_ns = now_ns();
        self.wires(&wires, false)?;
        tokio::time::sleep(hold).await;
        self.wires(&wires, true)?;
        self.servers.heal().await?;
        let what = format!("server {replica} from its primary {primary}, for {} ms", hold.as_millis());
        self.everywhere(what, began_ns, now_ns()).await
    }

    /// Cuts a primary off from all that would tell it that it is none any more, until another has taken its place, and
    /// some seconds longer. Programs that run stay with it as long as it answers; a coordinator and a worker that come
    /// new find the other one.
    pub(super) async fn split_brain(&mut self) -> anyhow::Result<Went> {
        let (place, hold) = (self.primary().await?, self.seconds(APART));
        let others: Vec<usize> = (0..self.servers.all().len()).filter(|other| *other != place).collect();
        let mine = self.server_ip(place);
        let mut wires: Vec<(usize, String)> = others.iter().map(|other| (*other, mine.clone())).collect();
        wires.extend(others.iter().map(|other| (place, self.server_ip(*other))));
        if let (Servers::Sentinel(_), Some(hosts)) = (&self.servers, &self.hosts) {
            // That is where the Sentinels are.
            wires.push((place, hosts.center()));
        }
        let began_ns = now_ns();
        self.wires(&wires, false)?;
        let failed_over = self.servers.until_failed_over(place).await;
        let mut newcomers = Vec::new();
        if failed_over.is_ok() {
            for slots in [&mut self.coordinators, &mut self.workers] {
                let places: Vec<usize> = (0..slots.len()).collect();
                let slot = &mut slots[*places.choose(&mut self.random).context("there are programs")?];
                slot.kill()?;
                slot.start(false)?;
                newcomers.push(slot.name().to_owned());
            }
        }
        tokio::time::sleep(hold).await;
        self.wires(&wires, true)?;
        let apart_ms = (now_ns() - began_ns) / 1_000_000;
        failed_over?;
        self.servers.heal().await?;
        let what = format!("server {place} by itself for {apart_ms} ms; {} came new", newcomers.join(" and "));
        self.everywhere(what, began_ns, now_ns()).await
    }

    /// Joins or cuts the way from each of these servers to an address.
    fn wires(&self, wires: &[(usize, String)], join: bool) -> anyhow::Result<()> {
        let hosts = self.hosts.as_ref().context("there are no hosts")?;
        for (place, to) in wires {
            let host = host_of(hosts, &self.server_ip(*place))?;
            if join { hosts.unblock(host, to)? } else { hosts.block(host, to)? }
        }
        Ok(())
    }

    fn server_ip(&self, place: usize) -> String {
        self.servers.all()[place].ip().to_owned()
    }
}

/// How many servers of a topology have a host of their own; a single one has nobody to be cut off from.
#[must_use]
pub(super) fn hosts_for(topology: Topology) -> usize {
    match topology {
        Topology::Single => 0,
        Topology::Sentinel => 2,
        Topology::Cluster => 6,
    }
}

fn host_of(hosts: &Hosts, ip: &str) -> anyhow::Result<usize> {
    (0..hosts.count()).find(|host| hosts.address(*host) == ip).with_context(|| format!("no host has {ip}"))
}
