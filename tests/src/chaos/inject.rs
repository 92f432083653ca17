//! Doing harm: one fault from its beginning until work goes on again.

use std::time::Duration;

use anyhow::Context as _;
use rand::RngExt;
use rand::seq::IndexedRandom as _;

use crate::chaos::effects::now_ns;
use crate::chaos::faults::{Fault, Kind};
use crate::chaos::link::Weather;
use crate::chaos::programs::Slot;
use crate::chaos::recovery::{Try, at_work, until_commits, until_elsewhere};
use crate::chaos::world::{World, all_partitions};
use crate::lab::Api;
use crate::wait;

/// How long work may stand still before it is called stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for jobs of a killed worker.
const DEATH: Duration = Duration::from_secs(100);
/// How often it is asked whether a job that does not come back is still wanted.
const ASK: Duration = Duration::from_secs(5);
/// Effects in which a busy worker is looked for.
const RECENT: usize = 500;
/// Time that an old and a new version are side by side.
const SIDE_BY_SIDE: Duration = Duration::from_secs(1);

/// How a fault went.
pub(super) struct Went {
    what: String,
    /// When it began.
    began_ns: u64,
    /// When what was broken was whole again.
    cleared_ns: u64,
    /// How long everything took to go on; none if something did not.
    recovery: Option<Vec<Duration>>,
}

impl World {
    /// Does one kind of harm and waits until work goes on.
    ///
    /// # Errors
    /// The harm could not be done, or what was harmed does not come back at all.
    pub async fn inject(&mut self, kind: Kind) -> anyhow::Result<Fault> {
        let went = match kind {
            Kind::Calm => anyhow::bail!("that is no fault"),
            Kind::WorkerKilled => self.kill_worker().await,
            Kind::WorkerFrozen => self.freeze_worker().await,
            Kind::WorkerLeaves => self.dismiss_worker().await,
            Kind::CoordinatorKilled => self.kill_coordinator().await,
            Kind::CoordinatorFrozen => self.freeze_coordinator().await,
            Kind::CoordinatorLeaves => self.dismiss_coordinator().await,
            Kind::RedisKilled => self.kill_server().await,
            Kind::RedisFrozen => self.freeze_server().await,
            Kind::RedisRestarted => self.restart_server().await,
            Kind::Partition => self.cut().await,
            Kind::ReplicaCut => self.cut_replica().await,
            Kind::SplitBrain => self.split_brain().await,
            Kind::Latency => {
                let latency_ms = self.random.random_range(20..80);
                self.weather(Weather { latency_ms, ..Weather::default() }).await
            }
            Kind::Loss => {
                let loss_percent = self.random.random_range(2..8);
                self.weather(Weather { loss_percent, ..Weather::default() }).await
            }
            Kind::Resets => self.reset_links().await,
            Kind::DiskFull => self.fill_disk().await,
            Kind::MemoryFull => self.fill_memory().await,
            Kind::ClientsKilled => self.storm().await,
            Kind::RollingRestart => self.roll().await,
        };
        let Went { what, began_ns, cleared_ns, recovery } = went.with_context(|| format!("{kind}"))?;
        let stuck = recovery.is_none();
        let recovery_ms = recovery.unwrap_or_default().iter().map(|d| d.as_millis() as u64).collect();
        let lasted_ms = (cleared_ns - began_ns) / 1_000_000;
        Ok(Fault { kind, what, began_ns, lasted_ms, recovery_ms, stuck })
    }

    pub(super) fn seconds(&mut self, range: std::ops::Range<f64>) -> Duration {
        Duration::from_secs_f64(self.random.random_range(range))
    }

    /// A worker that is at work.
    async fn busy_worker(&mut self) -> anyhow::Result<usize> {
        let (effects, workers) = (&self.effects, &self.workers);
        let busy = wait::until(Duration::from_secs(10), "a busy worker", async || {
            let busy = effects.look(|all| {
                let recent = &all[all.len().saturating_sub(RECENT)..];
                let busy = |place: &usize| !at_work(recent, workers[*place].name(), now_ns()).is_empty();
                (0..workers.len()).filter(busy).collect::<Vec<_>>()
            });
            anyhow::ensure!(!busy.is_empty(), "all are idle");
            Ok(busy)
        })
        .await;
        // Without one any will do.
        let busy = busy.unwrap_or_else(|_| (0..self.workers.len()).collect());
        busy.choose(&mut self.random).copied().context("there are workers")
    }

    /// A coordinator that owns something, and what.
    async fn owner(&mut self) -> anyhow::Result<(usize, Vec<u16>)> {
        let mut owners = Vec::new();
        for (place, slot) in self.coordinators.iter().enumerate() {
            let owned = self.owned_by(slot.name()).await;
            if !owned.is_empty() {
                owners.push((place, owned));
            }
        }
        owners.choose(&mut self.random).cloned().context("no coordinator owns anything")
    }

    async fn kill_worker(&mut self) -> anyhow::Result<Went> {
        let place = self.busy_worker().await?;
        let back = self.seconds(0.5..2.0);
        let slot = &mut self.workers[place];
        let name = slot.name().to_owned();
        let began_ns = slot.kill()?;
        tokio::time::sleep(back).await;
        let tries = self.effects.look(|all| at_work(all, &name, began_ns));
        self.workers[place].start(false)?;
        let cleared_ns = now_ns();
        let (what, recovery) = self.elsewhere(&name, tries, began_ns).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    /// Waits until the tries of a worker that is gone run at others; those whose run is over need not.
    async fn elsewhere(&self, name: &str, mut tries: Vec<Try>, since_ns: u64) -> (String, Option<Vec<Duration>>) {
        let (apis, end) = (self.apis(), tokio::time::Instant::now() + DEATH);
        loop {
            tries = wanted(&apis, tries).await;
            let what = format!("{name}, with {} jobs", tries.len());
            let took = until_elsewhere(&self.effects, &tries, name, since_ns, ASK).await;
            if took.len() == tries.len() {
                return (what, Some(took));
            }
            if tokio::time::Instant::now() > end {
                return (format!("{what}, of which {} ran elsewhere: {tries:?}", took.len()), None);
            }
        }
    }

    async fn freeze_worker(&mut self) -> anyhow::Result<Went> {
        let place = self.busy_worker().await?;
        let hold = self.seconds(3.0..9.0);
        let slot = &mut self.workers[place];
        let (what, began_ns) = (slot.name().to_owned(), slot.freeze()?);
        tokio::time::sleep(hold).await;
        let cleared_ns = slot.thaw()?;
        self.everywhere(what, began_ns, cleared_ns).await
    }

    async fn dismiss_worker(&mut self) -> anyhow::Result<Went> {
        let place = self.busy_worker().await?;
        let slot = &mut self.workers[place];
        let (name, began_ns) = (slot.name().to_owned(), slot.ask_to_end()?);
        let ended_ns = slot.until_ended().await?;
        let tries = self.effects.look(|all| at_work(all, &name, began_ns));
        self.workers[place].start(false)?;
        let cleared_ns = now_ns();
        let (what, recovery) = self.elsewhere(&name, tries, began_ns).await;
        let what = format!("{what}, gone after {} ms", (ended_ns - began_ns) / 1_000_000);
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    async fn kill_coordinator(&mut self) -> anyhow::Result<Went> {
        let (place, owned) = self.owner().await?;
        let back = self.seconds(0.5..3.0);
        let slot = &mut self.coordinators[place];
        let what = format!("{}, of partitions {owned:?}", slot.name());
        let began_ns = slot.kill()?;
        tokio::time::sleep(back).await;
        slot.start(false)?;
        let cleared_ns = now_ns();
        let recovery = until_commits(&self.effects, &owned, began_ns, PATIENCE).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    async fn freeze_coordinator(&mut self) -> anyhow::Result<Went> {
        let (place, owned) = self.owner().await?;
        let hold = self.seconds(5.0..9.0);
        let slot = &mut self.coordinators[place];
        let what = format!("{}, of partitions {owned:?}", slot.name());
        let began_ns = slot.freeze()?;
        tokio::time::sleep(hold).await;
        let cleared_ns = slot.thaw()?;
        let recovery = until_commits(&self.effects, &owned, began_ns, PATIENCE).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    async fn dismiss_coordinator(&mut self) -> anyhow::Result<Went> {
        let (place, owned) = self.owner().await?;
        let slot = &mut self.coordinators[place];
        let name = slot.name().to_owned();
        let began_ns = slot.ask_to_end()?;
        let ended_ns = slot.until_ended().await?;
        slot.start(false)?;
        let cleared_ns = now_ns();
        let gone_ms = (ended_ns - began_ns) / 1_000_000;
        let what = format!("{name}, of partitions {owned:?}, gone after {gone_ms} ms");
        let recovery = until_commits(&self.effects, &owned, began_ns, PATIENCE).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    /// Some primary.
    pub(super) async fn primary(&mut self) -> anyhow::Result<usize> {
        let places = self.servers.primaries().await?;
        places.choose(&mut self.random).copied().context("there is a primary")
    }

    async fn kill_server(&mut self) -> anyhow::Result<Went> {
        let (place, down) = (self.primary().await?, self.seconds(1.0..3.0));
        let began_ns = now_ns();
        self.servers.at(place).kill_9()?;
        if self.servers.fails_over() {
            self.servers.until_failed_over(place).await?;
        }
        tokio::time::sleep(down).await;
        self.servers.heal().await?;
        let cleared_ns = now_ns();
        let since_ns = if self.servers.fails_over() { began_ns } else { cleared_ns };
        let recovery = until_commits(&self.effects, &all_partitions(), since_ns, PATIENCE).await;
        Ok(Went { what: format!("server {place}"), began_ns, cleared_ns, recovery })
    }

    async fn freeze_server(&mut self) -> anyhow::Result<Went> {
        let (place, hold) = (self.primary().await?, self.seconds(2.0..6.0));
        let began_ns = now_ns();
        self.servers.at(place).pause()?;
        let failed_over = if self.servers.fails_over() { self.servers.until_failed_over(place).await } else { Ok(()) };
        tokio::time::sleep(hold).await;
        self.servers.at(place).resume()?;
        failed_over?;
        self.servers.heal().await?;
        let cleared_ns = now_ns();
        let since_ns = if self.servers.fails_over() { began_ns } else { cleared_ns };
        let recovery = until_commits(&self.effects, &all_partitions(), since_ns, PATIENCE).await;
        Ok(Went { what: format!("server {place}"), began_ns, cleared_ns, recovery })
    }

    async fn restart_server(&mut self) -> anyhow::Result<Went> {
        let place = self.primary().await?;
        let began_ns = now_ns();
        self.servers.at(place).stop().await?;
        self.servers.revive().await?;
        let back_ns = now_ns();
        self.servers.heal().await?;
        self.everywhere(format!("server {place}"), began_ns, back_ns).await
    }

    async fn cut(&mut self) -> anyhow::Result<Went> {
        let hold = self.seconds(4.0..9.0);
        if self.random.random_bool(0.5) {
            let place = self.busy_worker().await?;
            let slot = &mut self.workers[place];
            let (what, began_ns) = (slot.name().to_owned(), slot.cut(true)?);
            tokio::time::sleep(hold).await;
            let cleared_ns = slot.cut(false)?;
            return self.everywhere(what, began_ns, cleared_ns).await;
        }
        let (place, owned) = self.owner().await?;
        let slot = &mut self.coordinators[place];
        let what = format!("{}, of partitions {owned:?}", slot.name());
        let began_ns = slot.cut(true)?;
        tokio::time::sleep(hold).await;
        let cleared_ns = slot.cut(false)?;
        let recovery = until_commits(&self.effects, &owned, began_ns, PATIENCE).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }

    async fn weather(&mut self, weather: Weather) -> anyhow::Result<Went> {
        let (hold, began_ns) = (self.seconds(4.0..8.0), now_ns());
        let set = |slots: &[Slot], weather| slots.iter().filter_map(|s| s.link.as_ref()).for_each(|l| l.set(weather));
        for slots in [&self.coordinators, &self.workers] {
            set(slots, weather);
        }
        tokio::time::sleep(hold).await;
        for slots in [&self.coordinators, &self.workers] {
            set(slots, Weather::default());
        }
        let what = format!("{} ms, {} % of chunks", weather.latency_ms, weather.loss_percent);
        self.everywhere(what, began_ns, now_ns()).await
    }

    async fn reset_links(&mut self) -> anyhow::Result<Went> {
        let began_ns = now_ns();
        for _ in 0..40 {
            let rest = self.seconds(0.02..0.2);
            let slots: Vec<&Slot> = self.coordinators.iter().chain(&self.workers).collect();
            if let Some(link) = slots.choose(&mut self.random).and_then(|slot| slot.link.as_ref()) {
                link.reset();
            }
            tokio::time::sleep(rest).await;
        }
        self.everywhere("40 times all connections of a program".into(), began_ns, now_ns()).await
    }

    async fn roll(&mut self) -> anyhow::Result<Went> {
        let began_ns = now_ns();
        let versions = if self.has_old { &[true, false][..] } else { &[false][..] };
        for old in versions {
            for slot in self.coordinators.iter_mut().chain(&mut self.workers) {
                slot.ask_to_end()?;
                slot.until_ended().await?;
                slot.start(*old)?;
                tokio::time::sleep(SIDE_BY_SIDE).await;
            }
            self.until_ready(PATIENCE).await?;
        }
        let what = if self.has_old { "old, then new" } else { "no OLD program was given: the same one again" };
        self.everywhere(what.into(), began_ns, now_ns()).await
    }

    /// Waits until every partition has committed since everything is whole again.
    pub(super) async fn everywhere(&self, what: String, began_ns: u64, cleared_ns: u64) -> anyhow::Result<Went> {
        let recovery = until_commits(&self.effects, &all_partitions(), cleared_ns, PATIENCE).await;
        Ok(Went { what, began_ns, cleared_ns, recovery })
    }
}

/// The tries whose run goes on, as far as that is known.
async fn wanted(apis: &[Api], tries: Vec<Try>) -> Vec<Try> {
    let mut wanted = Vec::new();
    for one in tries {
        let mut over = false;
        for api in apis {
            if let Ok(Ok(run)) = tokio::time::timeout(Duration::from_secs(2), api.run(&one.0)).await {
                over = matches!(run["state"].as_str(), Some("cancelled" | "failed"));
                break;
            }
        }
        if !over {
            wanted.push(one);
        }
    }
    wanted
}
