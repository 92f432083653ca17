//! Everything that runs in a test: servers, programs, what was done to them and what they did.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::chaos::Plan;
use crate::chaos::disk::Disk;
use crate::chaos::effects::Effects;
use crate::chaos::faults::Kind;
use crate::chaos::hosts::Hosts;
use crate::chaos::link::Link;
use crate::chaos::programs::{Ground, Role, Slot};
use crate::chaos::servers::{Servers, Topology};
use crate::chaos::split::hosts_for;
use crate::lab::{Api, START};
use crate::server_options::Place;
use crate::wait;

/// Partitions of a test.
pub const PARTITIONS: u16 = 4;
/// MiB of the servers' disk. Their files are rewritten when they have 64 MiB.
const DISK_MEBIBYTES: u32 = 400;

/// A test that runs. Fields are dropped in this order: programs, servers, then what they stand on.
#[derive(Debug)]
pub struct World {
    /// Coordinators.
    pub coordinators: Vec<Slot>,
    /// Workers.
    pub workers: Vec<Slot>,
    /// Servers.
    pub servers: Servers,
    /// What handlers did.
    pub effects: Effects,
    /// What decides who is hit, and for how long.
    pub random: StdRng,
    /// The disk, if there is one.
    pub disk: Option<Disk>,
    /// The hosts, if there are any.
    pub hosts: Option<Arc<Hosts>>,
    /// The old version is another program.
    pub has_old: bool,
    /// Kinds of faults that are not possible here, and why.
    pub skipped: Vec<(Kind, String)>,
    _following: DropGuard,
}

impl World {
    /// Starts everything, and waits until every partition has an owner.
    ///
    /// # Errors
    /// Something does not come up.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let logs = plan.folder.join("logs");
        fs::create_dir_all(&logs)?;
        let mut skipped = Vec::new();
        let count = plan.coordinators + plan.workers;
        let all = count + hosts_for(plan.topology);
        let hosts = wanted(plan.privileged, Kind::Partition, &mut skipped, || Hosts::make(all)).map(Arc::new);
        for kind in [Kind::ReplicaCut, Kind::SplitBrain] {
            if plan.topology == Topology::Single {
                skipped.push((kind, "a single server has no other".to_owned()));
            } else if hosts.is_none() {
                skipped.push((kind, skipped[0].1.clone()));
            }
        }
        let place = |hosts: &Arc<Hosts>, host| Place { ip: hosts.address(host), enter: hosts.enter(host) };
        let places = hosts.iter().flat_map(|hosts| (count..all).map(|host| place(hosts, host))).collect();
        let folder =
            std::env::temp_dir().join(format!("stepfleet-disk-{}-{}", std::process::id(), plan.topology.as_str()));
        let disk = wanted(plan.privileged, Kind::DiskFull, &mut skipped, || Disk::mount(folder, DISK_MEBIBYTES));
        let center = hosts.as_ref().map(|hosts| hosts.center());
        let folder = disk.as_ref().map(Disk::folder);
        let servers = Servers::start(plan.topology, center.as_deref(), places, folder, plan.min_replicas).await?;
        if plan.topology == Topology::Single {
            // Its links can be cut.
            skipped.retain(|(kind, _)| *kind != Kind::Partition);
        } else {
            let why = "the proxy stands before a single server only, and `tc netem` is not in every kernel";
            skipped.extend([Kind::Latency, Kind::Loss, Kind::Resets].map(|kind| (kind, why.to_owned())));
        }
        let (new, worker) = Ground::built()?;
        let effects = plan.folder.join("effects.jsonl");
        let old = plan.old.clone().unwrap_or_else(|| new.clone());
        ensure!(old.is_file(), "the old version `{}` is no file", old.display());
        let has_old = old != new;
        let ground = Ground {
            url: servers.url(),
            partitions: PARTITIONS,
            effects: effects.clone(),
            logs,
            hosts: hosts.clone(),
            new,
            old,
            worker,
        };
        let ground = Arc::new(ground);
        let (mut coordinators, mut workers) = (Vec::new(), Vec::new());
        for host in 0..count {
            let link = match &servers {
                Servers::Single(server) => {
                    Some(Link::open(center.as_deref().unwrap_or("127.0.0.1"), &server.address()).await?)
                }
                Servers::Sentinel(_) | Servers::Cluster(_) => None,
            };
            let (role, number) = match host.checked_sub(plan.coordinators) {
                None => (Role::Coordinator, host + 1),
                Some(worker) => (Role::Worker, worker + 1),
            };
            let list = if role == Role::Coordinator { &mut coordinators } else { &mut workers };
            list.push(Slot::new(role, number, host, link, ground.clone()));
        }
        let following = CancellationToken::new();
        let effects = Effects::follow(effects, following.clone())?;
        let random = StdRng::seed_from_u64(plan.seed);
        let _following = following.drop_guard();
        let mut world =
            Self { coordinators, workers, servers, effects, random, disk, hosts, has_old, skipped, _following };
        for slot in world.slots() {
            slot.start(false)?;
        }
        world.until_ready(START).await?;
        Ok(world)
    }

    /// Every place for a program.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.coordinators.iter_mut().chain(&mut self.workers)
    }

    /// The APIs of all coordinators.
    #[must_use]
    pub fn apis(&self) -> Vec<Api> {
        self.coordinators.iter().map(|slot| Api::new(&slot.base())).collect()
    }

    /// Waits until every coordinator says that every partition has an owner.
    ///
    /// # Errors
    /// One does not, or has ended.
    pub async fn until_ready(&mut self, deadline: Duration) -> anyhow::Result<()> {
        for api in self.apis() {
            let ready = wait::until(deadline, "a coordinator to be ready", async || api.ready().await);
            ready.await.with_context(|| format!("{} is not ready", api.base()))?;
        }
        Ok(())
    }

    /// The partitions that the present process of a coordinator owns, as some coordinator says; all if nobody says
    /// anything.
    pub async fn owned_by(&self, name: &str) -> Vec<u16> {
        let prefix = format!("{name}@");
        for api in self.apis() {
            let Ok(Ok(list)) = tokio::time::timeout(Duration::from_secs(2), api.get("/api/v1/partitions")).await else {
                continue;
            };
            let items = list["items"].as_array().or_else(|| list.as_array());
            let Some(items) = items else { continue };
            let owned =
                items.iter().filter(|item| item["owner"].as_str().is_some_and(|owner| owner.starts_with(&prefix)));
            return owned.filter_map(|item| u16::try_from(item["id"].as_u64()?).ok()).collect();
        }
        all_partitions()
    }

    /// The folders and names of what is not kept by itself: what running programs have written, and the servers' logs.
    pub fn keep_logs(&mut self, folder: &std::path::Path) {
        for slot in self.slots() {
            slot.keep_log();
        }
        let servers = self.servers.all().iter().enumerate().map(|(place, server)| (format!("server{place}"), server));
        let sentinels =
            self.servers.sentinels().iter().enumerate().map(|(place, server)| (format!("sentinel{place}"), server));
        for (name, server) in servers.chain(sentinels) {
            let path: PathBuf = folder.join("logs").join(format!("{name}.log"));
            if let Err(error) = fs::write(&path, server.log()) {
                eprintln!("`{}` could not be kept: {error}", path.display());
            }
        }
    }
}

/// All partitions.
#[must_use]
pub fn all_partitions() -> Vec<u16> {
    (0..PARTITIONS).collect()
}

/// Makes something that needs privileges; without it a kind of faults is skipped.
fn wanted<T>(
    privileged: bool,
    kind: Kind,
    skipped: &mut Vec<(Kind, String)>,
    make: impl FnOnce() -> anyhow::Result<T>,
) -> Option<T> {
    let made = if privileged { make() } else { Err(anyhow::anyhow!("this test needs no privileges")) };
    made.map_err(|error| skipped.push((kind, format!("{error:#}")))).ok()
}
