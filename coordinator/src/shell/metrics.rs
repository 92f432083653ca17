//! What a coordinator counts. What is true of the whole fleet is told by one coordinator alone, the owner of partition 0, so
//! that nobody adds it up twice: [`Metrics::fleet`], and what is read from Redis when it is asked for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use stepfleet_metric::Families;
use stepfleet_protocol::gate::Stand;

use super::{retention::Expired, told::Work};

/// Counters of one coordinator process.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where they are registered.
    pub families: Families,
    /// Gauges of the whole fleet, as this process last read them; shown only while it speaks for the fleet.
    pub fleet: Families,
    /// What owners did.
    pub work: Work,
    speaks: Arc<AtomicBool>,
    /// Commits of all its partitions.
    pub commits: IntCounter,
    /// Those of them that were decided while the one before was on its way.
    pub ahead: IntCounter,
    /// Events decided.
    pub decided: IntCounter,
    /// Entries quarantined.
    pub quarantined: IntCounter,
    /// Reigns that ended because another owner had taken the partition.
    pub fenced: IntCounter,
    /// Reigns that ended for any other doubt.
    pub doubts: IntCounter,
    /// Commits that were torn: must be 0.
    pub torn: IntCounter,
    /// Partitions owned now.
    pub owned: IntGauge,
    /// Partitions that pause, as their slots are on their way to other nodes, as far as this coordinator sees.
    pub paused: IntGauge,
    /// Jobs of dead workers that were reported lost.
    pub lost: IntCounter,
    /// How long the worker of a lost job had been silent when the loss was reported.
    pub lost_after: Histogram,
    /// Workers declared dead.
    pub dead_workers: IntCounter,
    /// Workers found dead, by what told of it: `beats`, or their control `channel`.
    pub deaths: IntCounterVec,
    /// Workers whose control channel would tell of their death within seconds.
    pub channels_watched: IntGauge,
    /// Pods of workers that are watched, as this coordinator's own watch sees them.
    pub pods_watched: IntGauge,
    /// Times that the watch of pods failed.
    pub pod_watch_errors: IntCounter,
    /// Times that a third of the fleet would have died at once, and was given another period.
    pub mass_deaths_held: IntCounter,
    /// What was beyond retention and was deleted.
    pub expired: ExpiredCounters,
    /// What subscribers of the outbox were told.
    pub outbox: OutboxCounters,
    /// Steps that the auditor found in no place, by what was missing: must stay 0.
    pub repairs: IntCounterVec,
    /// Runs that the auditor looked at.
    pub audited: IntCounter,
    /// Items of a batch.
    pub batch_items: Histogram,
    /// Gates that hold something back, by how they stand, as this coordinator last read them.
    pub gates: IntGaugeVec,
    /// Changes of circuit breakers that this coordinator brought about, by the new state.
    pub breaker_moves: IntCounterVec,
    /// Permits that limits granted to owners here.
    pub limit_permits: IntCounter,
    /// Places under limits that no job had any more, found and given back: must stay 0.
    pub limit_leaks: IntCounter,
    /// The version of the fleet's policies that owners here decide with.
    pub policies_version: IntGauge,
    /// Looks at the fleet's policies that failed.
    pub policies_unread: IntCounter,
    /// Campaigns over dead letters that go on, wherever they are run.
    pub campaigns: IntGauge,
    /// Letters of the campaigns that are run here, by outcome.
    pub campaign_items: IntCounterVec,
    /// Campaigns that retention deleted here, with their reports.
    pub campaigns_expired: IntCounter,
}

/// Counters of what retention deletes.
#[derive(Debug, Clone)]
pub struct ExpiredCounters {
    /// Runs.
    pub runs: IntCounter,
    /// Dead letters.
    pub letters: IntCounter,
    /// Plans.
    pub plans: IntCounter,
    /// Entries of the outbox.
    pub events: IntCounter,
    /// Audit entries.
    pub audit: IntCounter,
}

/// Counters of the dispatcher, by subscriber.
#[derive(Debug, Clone)]
pub struct OutboxCounters {
    /// Entries that were delivered.
    pub deliveries: IntCounterVec,
    /// Tries that failed.
    pub failures: IntCounterVec,
    /// Entries that were set aside.
    pub undelivered: IntCounterVec,
    /// Entries that were trimmed before they were read.
    pub missed: IntCounterVec,
}

impl OutboxCounters {
    fn new(f: &mut Families) -> Self {
        const BY: &[&str] = &["subscriber"];
        Self {
            deliveries: f.counters(
                "stepfleet_outbox_deliveries_total",
                "Entries of the outbox that a subscriber took",
                BY,
            ),
            failures: f.counters(
                "stepfleet_outbox_delivery_failures_total",
                "Tries to deliver an entry that failed",
                BY,
            ),
            undelivered: f.counters(
                "stepfleet_outbox_undelivered_total",
                "Entries set aside because every try failed",
                BY,
            ),
            missed: f.counters(
                "stepfleet_outbox_missed_total",
                "Entries trimmed before the subscriber had seen them",
                BY,
            ),
        }
    }
}

impl ExpiredCounters {
    fn new(f: &mut Families) -> Self {
        Self {
            runs: f.counter("stepfleet_runs_expired_total", "Runs deleted because they were beyond retention"),
            letters: f.counter(
                "stepfleet_dead_letters_expired_total",
                "Dead letters deleted, with their run or by themselves",
            ),
            plans: f.counter("stepfleet_plans_expired_total", "Plans deleted because no run followed them any more"),
            events: f.counter("stepfleet_events_expired_total", "Entries of the outbox that were trimmed"),
            audit: f.counter("stepfleet_audit_expired_total", "Audit entries that were trimmed"),
        }
    }

    /// Counts what went between two looks at an owner.
    pub fn count(&self, before: Expired, now: Expired) {
        self.runs.inc_by(now.runs - before.runs);
        self.letters.inc_by(now.letters - before.letters);
        self.plans.inc_by(now.plans - before.plans);
        self.events.inc_by(now.events - before.events);
        self.audit.inc_by(now.audit - before.audit);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Buckets of items in a batch.
const BATCH_ITEMS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 1_000.0];
/// Buckets of the silence of workers, in seconds.
const SILENCE: [f64; 15] = [4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 32.0, 35.0, 40.0, 50.0, 60.0, 65.0, 90.0, 120.0];

impl Metrics {
    /// Fresh counters in registries of their own.
    pub fn new() -> Self {
        let (mut families, mut fleet) = (Families::default(), Families::default());
        families.program(env!("CARGO_PKG_VERSION"));
        let f = &mut families;
        let metrics = Self {
            work: Work::new(f),
            commits: f.counter("stepfleet_owner_commits_total", "Commits of this coordinator"),
            ahead: f.counter(
                "stepfleet_owner_commits_ahead_total",
                "Commits that were decided while the last one was on its way",
            ),
            decided: f.counter("stepfleet_owner_events_total", "Events that this coordinator decided"),
            batch_items: f.histogram("stepfleet_owner_batch_items", "Events decided in one commit", &BATCH_ITEMS),
            quarantined: f
                .counter("stepfleet_quarantined_total", "Entries that could not be decided and were set aside"),
            fenced: f.counter("stepfleet_owner_fenced_total", "Reigns ended because another owner took the partition"),
            doubts: f.counter("stepfleet_owner_doubts_total", "Reigns ended by a lost connection or a refused commit"),
            torn: f.counter("stepfleet_owner_torn_commits_total", "Commits of which a command failed; must stay 0"),
            owned: f.gauge("stepfleet_partitions_owned", "Partitions that this coordinator owns"),
            paused: f.gauge(
                "stepfleet_partitions_paused",
                "Partitions that this coordinator sees pause because their slot is moving to another node",
            ),
            lost: f.counter("stepfleet_jobs_lost_total", "Jobs of dead workers that were reported lost"),
            lost_after: f.histogram(
                "stepfleet_jobs_lost_after_seconds",
                "How long a dead worker had been silent when one of its jobs was reported lost",
                &SILENCE,
            ),
            dead_workers: f.counter("stepfleet_workers_dead_total", "Workers declared dead"),
            deaths: f.counters("stepfleet_worker_deaths_total", "Workers found dead, by what told of it", &["way"]),
            channels_watched: f.gauge(
                "stepfleet_worker_channels_watched",
                "Workers whose control channel would tell of their death within seconds",
            ),
            pods_watched: f.gauge("stepfleet_pods_watched", "Pods that this coordinator's watch of Kubernetes knows"),
            pod_watch_errors: f.counter(
                "stepfleet_pod_watch_errors_total",
                "Times that this coordinator's watch of pods failed and began again",
            ),
            mass_deaths_held: f
                .counter("stepfleet_mass_deaths_held_total", "Sweeps that would have killed a third of the fleet"),
            expired: ExpiredCounters::new(f),
            outbox: OutboxCounters::new(f),
            repairs: f.counters(
                "stepfleet_audit_repairs_total",
                "What the auditor found in no place; must stay 0",
                &["what"],
            ),
            audited: f.counter("stepfleet_audit_runs_total", "Runs that the auditor looked at"),
            breaker_moves: f.counters(
                "stepfleet_breaker_moves_total",
                "Changes of circuit breakers that this coordinator brought about, by the new state",
                &["state"],
            ),
            limit_permits: f.counter(
                "stepfleet_limit_permits_total",
                "Permits that limits granted to partitions of this coordinator",
            ),
            limit_leaks: f
                .counter("stepfleet_limit_leaks_total", "Places under limits that no job had any more; must stay 0"),
            policies_version: f.gauge(
                "stepfleet_policies_version",
                "Version of the fleet's policies that this coordinator decides with",
            ),
            policies_unread: f.counter("stepfleet_policies_unread_total", "Looks at the fleet's policies that failed"),
            campaign_items: f.counters(
                "stepfleet_campaign_items_total",
                "Dead letters of campaigns, by outcome",
                &["outcome"],
            ),
            campaigns_expired: f.counter("stepfleet_campaigns_expired_total", "Ended campaigns that retention deleted"),
            gates: fleet.gauges(
                "stepfleet_gates",
                "Circuit breakers and paused queues that hold something back",
                &["stand"],
            ),
            campaigns: fleet.gauge("stepfleet_campaigns_active", "Campaigns that go on"),
            speaks: Arc::default(),
            families,
            fleet,
        };
        super::auditor::MISSING.iter().for_each(|what| metrics.repairs.with_label_values(&[what]).reset());
        for stand in [Stand::Open, Stand::HalfOpen, Stand::Recovering, Stand::Paused] {
            metrics.gates.with_label_values(&[stand.as_str()]).set(0);
        }
        super::observer::WAYS.iter().for_each(|way| metrics.deaths.with_label_values(&[way]).reset());
        metrics
    }

    /// Whether this coordinator tells what is true of the whole fleet.
    pub fn speaks_for_fleet(&self) -> bool {
        self.speaks.load(Ordering::Relaxed)
    }

    /// Sets whether it does.
    pub(super) fn speak_for_fleet(&self, speaks: bool) {
        self.speaks.store(speaks, Ordering::Relaxed);
    }
}
