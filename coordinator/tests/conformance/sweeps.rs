//! The observer over large fleets and several nodes: slow sweeps, a node that is away or full, mass death.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use stepfleet_coordinator::{
    shell::{metrics::Metrics, observer::Observer},
    store::{
        link::{Dial, Link},
        memory::{Clock, MemoryDial, MemoryServer},
        reply,
    },
};
use stepfleet_protocol::{
    codec,
    id::{JobId, PartitionId, Reign, RunId, WorkerId},
    keys::{GROUP, slot_of},
    message::{Body, Job, LogEntry},
    name::Name,
    value::Input,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{fleet::all_keys, wire::Wire, world::runtime};

/// Partition 0 is on the first of two nodes, partition 1 on the second.
const BOTH: [PartitionId; 2] = [PartitionId(0), PartitionId(1)];

/// Servers in memory, workers that hold a job each, and an observer over all.
struct Sky {
    nodes: Vec<MemoryServer>,
    wire: Wire<MemoryDial>,
    metrics: Metrics,
    observer: Observer<Wire<MemoryDial>>,
    _owned: watch::Sender<BTreeSet<PartitionId>>,
    beats: u64,
}

impl Sky {
    fn new(nodes: usize, latency: Duration) -> Self {
        let nodes: Vec<MemoryServer> = (0..nodes).map(|_| MemoryServer::new(Clock::default())).collect();
        let mut wire = Wire::over(nodes.iter().map(MemoryServer::dial).collect());
        wire.latency = latency;
        let owned = watch::Sender::new(BOTH.into());
        let (metrics, slots) = (Metrics::new(), watch::Sender::new(BTreeMap::new()));
        let observer = Observer::new(wire.clone(), all_keys(), metrics.clone(), owned.subscribe(), slots);
        Self { nodes, wire, metrics, observer, _owned: owned, beats: 0 }
    }

    /// One command where the key is, past the wire. None if the node is away.
    async fn ask(&self, key: &str, words: &[&[u8]]) -> Option<redis::Value> {
        let at = usize::from(slot_of(key.as_bytes())) * self.nodes.len() / 16_384;
        let mut link = self.nodes[at].dial().dial(0, Duration::from_secs(1)).await.ok()?;
        let mut pipe = redis::pipe();
        let cmd = pipe.cmd(std::str::from_utf8(words[0]).expect("ASCII"));
        words[1..].iter().for_each(|word| _ = cmd.arg(*word));
        Some(link.trip(&pipe).await.ok()?.swap_remove(0)).filter(|value| reply::error(value).is_none())
    }

    async fn beat(&mut self, worker: &WorkerId) {
        self.beats += 1;
        let (list, own, n) = (all_keys().workers(), all_keys().worker(worker), self.beats.to_string());
        self.ask(&list, &[b"ZADD", list.as_bytes(), b"1", worker.as_str().as_bytes()]).await;
        self.ask(&own, &[b"HSET", own.as_bytes(), b"n", n.as_bytes(), b"losses", b"0"]).await;
    }

    /// Listens on a worker's control channel in its place.
    fn listen(&self, worker: &WorkerId) -> mpsc::Receiver<Vec<u8>> {
        let channel = all_keys().worker_control(worker);
        let at = usize::from(slot_of(channel.as_bytes())) * self.nodes.len() / 16_384;
        self.nodes[at].subscribe(channel)
    }

    /// A fleet that listens, each of which has a job, watched for long enough that channels tell of deaths.
    async fn watched(&mut self, workers: &[WorkerId]) -> Vec<mpsc::Receiver<Vec<u8>>> {
        let ears = workers.iter().map(|worker| self.listen(worker)).collect();
        for worker in workers {
            self.beat(worker).await;
            self.give(worker, BOTH[0]).await;
        }
        self.sweep_for(36, workers).await;
        assert_eq!(self.metrics.channels_watched.get(), workers.len() as i64);
        ears
    }

    /// Gives a worker a job of a partition.
    async fn give(&self, worker: &WorkerId, partition: PartitionId) {
        let (keys, queue) = (all_keys().partition(partition), Name::new("default").expect("a legal name"));
        let (queues, jobs, wire) = (keys.queues(), keys.jobs(&queue), codec::encode(&job(partition)));
        let (jobs_key, id) = (jobs.as_bytes(), worker.as_str().as_bytes());
        self.ask(&jobs, &[b"SADD", queues.as_bytes(), b"default"]).await.expect("up");
        self.ask(&jobs, &[b"XGROUP", b"CREATE", jobs_key, GROUP.as_bytes(), b"0", b"MKSTREAM"]).await;
        self.ask(&jobs, &[b"XADD", jobs_key, b"*", wire.field.as_bytes(), &wire.bytes]).await.expect("up");
        let read: &[&[u8]] =
            &[b"XREADGROUP", b"GROUP", GROUP.as_bytes(), id, b"COUNT", b"1", b"STREAMS", jobs_key, b">"];
        self.ask(&jobs, read).await.expect("up");
    }

    /// The workers whose jobs were reported lost to this partition.
    async fn lost(&self, partition: PartitionId) -> BTreeSet<String> {
        let log = all_keys().partition(partition).log();
        let Some(found) = self.ask(&log, &[b"XRANGE", log.as_bytes(), b"-", b"+"]).await else {
            return BTreeSet::new();
        };
        let bodies = reply::entries(found)
            .into_iter()
            .map(|(_, fields)| codec::decode::<LogEntry>(&fields[0].0, &fields[0].1).expect("an entry of ours").body);
        bodies
            .filter_map(|body| if let Body::Lost(lost) = body { Some(lost.worker.to_string()) } else { None })
            .collect()
    }

    /// Sweeps for so long, two seconds apart, while these beat every ten seconds.
    async fn sweep_for(&mut self, secs: u64, beating: &[WorkerId]) {
        let begun = Instant::now();
        let mut next = begun;
        while begun.elapsed() < Duration::from_secs(secs) {
            if next <= Instant::now() {
                next += Duration::from_secs(10);
                for worker in beating {
                    self.beat(worker).await;
                }
            }
            self.observer.sweep().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

fn job(partition: PartitionId) -> Job {
    let name = |text| Name::new(text).expect("a legal name");
    Job {
        v: codec::VERSION,
        id: JobId { reign: Reign { counter: 1, random: 7 }, seq: 1, n: 1 },
        run: RunId::new(partition, 1_000, 1),
        workflow: name("flow"),
        step: name("step"),
        index: 0,
        generation: 1,
        attempt: 1,
        max_attempts: 3,
        handler: name("noop"),
        timeout_ms: 60_000,
        input: Input::None,
        traceparent: None,
        gate: None,
        canary: false,
        undo: false,
    }
}

fn worker(boot: u64) -> WorkerId {
    WorkerId::new(&Name::new("w").expect("a legal name"), boot)
}

/// A worker whose record is on this one of two nodes.
fn worker_on(node: usize) -> WorkerId {
    let on = |id: &WorkerId| usize::from(slot_of(all_keys().worker(id).as_bytes())) * 2 / 16_384 == node;
    (1..).map(worker).find(on).expect("there are many")
}

fn set<'a>(workers: impl IntoIterator<Item = &'a WorkerId>) -> BTreeSet<String> {
    workers.into_iter().map(ToString::to_string).collect()
}

fn on_sky(nodes: usize, latency: Duration, test: impl AsyncFnOnce(Sky)) {
    runtime(true).block_on(async { test(Sky::new(nodes, latency)).await });
}

#[test]
fn a_death_among_500_workers_is_found_over_a_slow_wire() {
    // One trip for each worker would take 10 s a sweep.
    on_sky(1, Duration::from_millis(20), async |mut sky| {
        let workers: Vec<WorkerId> = (1..=500).map(worker).collect();
        for worker in &workers {
            sky.beat(worker).await;
            sky.give(worker, BOTH[0]).await;
        }
        let before = sky.wire.trips();
        sky.observer.sweep().await;
        let trips = sky.wire.trips() - before;
        assert!(trips < 40, "{trips} trips");
        sky.sweep_for(25, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
        sky.sweep_for(15, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set([&workers[0]]));
    });
}

#[test]
fn a_sweep_that_takes_longer_than_a_gap_is_no_gap() {
    // Each sweep has at least five trips.
    on_sky(1, Duration::from_millis(1_500), async |mut sky| {
        let workers: Vec<WorkerId> = (1..=4).map(worker).collect();
        for worker in &workers {
            sky.beat(worker).await;
            sky.give(worker, BOTH[0]).await;
        }
        let begun = Instant::now();
        sky.observer.sweep().await;
        assert!(begun.elapsed() > Duration::from_secs(6), "{:?}", begun.elapsed());
        sky.sweep_for(60, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set([&workers[0]]));
    });
}

#[test]
fn a_pause_between_two_sweeps_starts_every_count_again() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let dead = worker(1);
        sky.beat(&dead).await;
        sky.give(&dead, BOTH[0]).await;
        for _ in 0..3 {
            sky.sweep_for(26, &[]).await;
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
        sky.sweep_for(34, &[]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set([&dead]));
    });
}

#[test]
fn a_node_that_is_away_does_not_stop_the_sweeps_over_the_others() {
    for away in [0, 1] {
        on_sky(2, Duration::ZERO, async |mut sky| {
            let (here, there) = (worker_on(1 - away), worker_on(away));
            for worker in [&here, &there] {
                sky.beat(worker).await;
                sky.give(worker, BOTH[1 - away]).await;
            }
            sky.sweep_for(4, &[]).await;
            sky.nodes[away].down();
            sky.sweep_for(40, &[]).await;
            let lost = sky.lost(BOTH[1 - away]).await;
            assert_eq!(lost, set([&here]), "the other one could not beat");
            sky.nodes[away].up();
            sky.sweep_for(20, &[]).await;
            assert_eq!(sky.lost(BOTH[1 - away]).await, set([&here]), "its 30 s begin when the node is back");
            sky.sweep_for(20, &[]).await;
            assert_eq!(sky.lost(BOTH[1 - away]).await, set([&here, &there]));
        });
    }
}

#[test]
fn trap_9_a_full_node_kills_nobody_whose_record_is_there() {
    for full in [0, 1] {
        on_sky(2, Duration::ZERO, async |mut sky| {
            let (here, there) = (worker_on(1 - full), worker_on(full));
            for worker in [&here, &there] {
                sky.beat(worker).await;
                sky.give(worker, BOTH[1 - full]).await;
            }
            sky.nodes[full].set_full(true);
            sky.sweep_for(60, std::slice::from_ref(&here)).await;
            assert_eq!(sky.lost(BOTH[1 - full]).await, BTreeSet::new(), "one beats, the other cannot");
            sky.sweep_for(40, &[]).await;
            assert_eq!(sky.lost(BOTH[1 - full]).await, set([&here]), "the one that could, and did not");
        });
    }
}

#[test]
fn when_more_than_a_third_of_the_fleet_falls_silent_it_gets_one_more_period() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        for worker in &workers {
            sky.beat(worker).await;
            sky.give(worker, BOTH[0]).await;
        }
        sky.sweep_for(56, &workers[2..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new(), "two of five at once are doubted");
        assert_eq!(sky.metrics.mass_deaths_held.get(), 1, "one alert");
        sky.sweep_for(10, &workers[2..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set(&workers[..2]), "for one period");
        assert_eq!(sky.metrics.mass_deaths_held.get(), 1);
    });
}

/// Sweeps while somebody whose channel is lost gives another sign of life with each.
async fn keeps_its_job(sky: &mut Sky, workers: &[WorkerId], mut sign: impl AsyncFnMut(&mut Sky)) {
    let mut ears = sky.watched(workers).await;
    drop(ears.remove(0));
    for _ in 0..10 {
        sign(sky).await;
        sky.sweep_for(1, &workers[1..]).await;
    }
    assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
}

#[test]
fn who_is_gone_from_its_channel_and_gives_no_other_sign_of_life_loses_its_jobs_in_seconds() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        let mut ears = sky.watched(&workers).await;
        drop(ears.remove(0));
        sky.sweep_for(4, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
        sky.sweep_for(4, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set([&workers[0]]));
        assert_eq!(sky.metrics.deaths.with_label_values(&["channel"]).get(), 1);
        sky.sweep_for(40, &workers[1..]).await;
        assert_eq!(sky.metrics.deaths.with_label_values(&["beats"]).get(), 0, "a death is counted once");
    });
}

#[test]
fn who_beats_without_its_channel_keeps_its_jobs() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        keeps_its_job(&mut sky, &workers, async |sky| sky.beat(&worker(1)).await).await;
    });
}

#[test]
fn who_reads_jobs_without_its_channel_keeps_those_it_has() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        let jobs = all_keys().partition(BOTH[0]).jobs(&Name::new("default").expect("a legal name"));
        keeps_its_job(&mut sky, &workers, async |sky| {
            let (key, id) = (jobs.as_bytes(), worker(1));
            let read: &[&[u8]] =
                &[b"XREADGROUP", b"GROUP", GROUP.as_bytes(), id.as_str().as_bytes(), b"STREAMS", key, b"0"];
            sky.ask(&jobs, read).await.expect("up");
        })
        .await;
    });
}

#[test]
fn trap_8_after_an_outage_channels_tell_nothing_for_half_a_minute() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        drop(sky.watched(&workers).await);
        sky.nodes[0].down();
        sky.sweep_for(3, &[]).await;
        sky.nodes[0].up();
        // One of them never comes back; it is as dead as its beats say.
        let _ears: Vec<_> = workers[1..].iter().map(|worker| sky.listen(worker)).collect();
        sky.sweep_for(26, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
        assert_eq!(sky.metrics.channels_watched.get(), 0);
        sky.sweep_for(16, &workers[1..]).await;
        assert_eq!(sky.lost(BOTH[0]).await, set([&workers[0]]));
        assert_eq!(sky.metrics.deaths.with_label_values(&["beats"]).get(), 1);
    });
}

#[test]
fn when_half_of_the_channels_are_empty_at_once_nobody_is_gone() {
    on_sky(1, Duration::ZERO, async |mut sky| {
        let workers: Vec<WorkerId> = (1..=4).map(worker).collect();
        let ears = sky.watched(&workers).await;
        let _others: Vec<_> = ears.into_iter().take(2).collect();
        sky.sweep_for(20, &workers[..2]).await;
        assert_eq!(sky.lost(BOTH[0]).await, BTreeSet::new());
    });
}

#[test]
fn channels_tell_of_deaths_also_where_a_sweep_takes_longer_than_a_second() {
    on_sky(1, Duration::from_millis(250), async |mut sky| {
        let workers: Vec<WorkerId> = (1..=5).map(worker).collect();
        for worker in &workers {
            sky.beat(worker).await;
            sky.give(worker, BOTH[0]).await;
        }
        let mut ears: Vec<_> = workers.iter().map(|worker| sky.listen(worker)).collect();
        let begun = Instant::now();
        sky.observer.sweep().await;
        assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
        let stop = CancellationToken::new();
        let other = Sky::new(1, Duration::ZERO).observer;
        let observing = tokio::spawn(std::mem::replace(&mut sky.observer, other).run(stop.clone()));
        for secs in 0..60 {
            if secs == 45 {
                assert_eq!(sky.metrics.channels_watched.get(), 5);
                drop(ears.remove(0));
            }
            if secs % 10 == 0 {
                for worker in &workers[usize::from(secs >= 45)..] {
                    sky.beat(worker).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(sky.lost(BOTH[0]).await, set([&workers[0]]));
        assert_eq!(sky.metrics.deaths.with_label_values(&["channel"]).get(), 1);
        stop.cancel();
        observing.await.expect("it ends");
    });
}
