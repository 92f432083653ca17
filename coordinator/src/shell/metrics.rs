//! What a coordinator counts. Fleet-wide gauges are not here: they are read from Redis when asked for.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::retention::Expired;

/// Counters of one coordinator process.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Commits of all its partitions.
    pub commits: IntCounter,
    /// Those of them that were decided while the one before was on its way.
    pub ahead: IntCounter,
    /// Events decided.
    pub decided: IntCounter,
    /// Jobs dispatched.
    pub dispatched: IntCounter,
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
    fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let opts = Opts::new(format!("stepfleet_outbox_{name}"), help);
            let counter = IntCounterVec::new(opts, &["subscriber"]).expect("a legal metric");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        Self {
            deliveries: counter("deliveries_total", "Entries of the outbox that a subscriber took"),
            failures: counter("delivery_failures_total", "Tries to deliver an entry that failed"),
            undelivered: counter("undelivered_total", "Entries set aside because every try failed"),
            missed: counter("missed_total", "Entries trimmed before the subscriber had seen them"),
        }
    }
}

impl ExpiredCounters {
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

impl Metrics {
    /// Fresh counters in a registry of their own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("stepfleet_{name}"), help).expect("a legal metric");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let opts = Opts::new("stepfleet_audit_repairs_total", "What the auditor found in no place; must stay 0");
        let repairs = IntCounterVec::new(opts, &["what"]).expect("a legal metric");
        registry.register(Box::new(repairs.clone())).expect("registered once");
        for what in super::auditor::MISSING {
            repairs.with_label_values(&[what]).reset();
        }
        let owned =
            IntGauge::new("stepfleet_partitions_owned", "Partitions that this coordinator owns").expect("legal");
        registry.register(Box::new(owned.clone())).expect("registered once");
        let help = "Partitions that this coordinator sees pause because their slot is moving to another node";
        let paused = IntGauge::new("stepfleet_partitions_paused", help).expect("a legal metric");
        registry.register(Box::new(paused.clone())).expect("registered once");
        let help = "Version of the fleet's policies that this coordinator decides with";
        let policies_version = IntGauge::new("stepfleet_policies_version", help).expect("a legal metric");
        registry.register(Box::new(policies_version.clone())).expect("registered once");
        let sizes = vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 1_000.0];
        let opts = HistogramOpts::new("stepfleet_owner_batch_items", "Events decided in one commit").buckets(sizes);
        let batch_items = Histogram::with_opts(opts).expect("a legal metric");
        registry.register(Box::new(batch_items.clone())).expect("registered once");
        let help = "How long a dead worker had been silent when one of its jobs was reported lost";
        let after = vec![4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 32.0, 35.0, 40.0, 50.0, 60.0, 65.0, 90.0, 120.0];
        let opts = HistogramOpts::new("stepfleet_jobs_lost_after_seconds", help).buckets(after);
        let lost_after = Histogram::with_opts(opts).expect("a legal metric");
        registry.register(Box::new(lost_after.clone())).expect("registered once");
        let deaths = Opts::new("stepfleet_worker_deaths_total", "Workers found dead, by what told of it");
        let deaths = IntCounterVec::new(deaths, &["way"]).expect("a legal metric");
        registry.register(Box::new(deaths.clone())).expect("registered once");
        for way in super::observer::WAYS {
            deaths.with_label_values(&[way]).reset();
        }
        let help = "Workers whose control channel would tell of their death within seconds";
        let channels_watched = IntGauge::new("stepfleet_worker_channels_watched", help).expect("a legal metric");
        registry.register(Box::new(channels_watched.clone())).expect("registered once");
        let gates = Opts::new("stepfleet_gates", "Circuit breakers and paused queues that hold something back");
        let gates = IntGaugeVec::new(gates, &["stand"]).expect("a legal metric");
        registry.register(Box::new(gates.clone())).expect("registered once");
        let moves = Opts::new("stepfleet_breaker_moves_total", "Changes of circuit breakers, by the new state");
        let breaker_moves = IntCounterVec::new(moves, &["state"]).expect("a legal metric");
        registry.register(Box::new(breaker_moves.clone())).expect("registered once");
        let campaigns = IntGauge::new("stepfleet_campaigns_active", "Campaigns that go on").expect("a legal metric");
        registry.register(Box::new(campaigns.clone())).expect("registered once");
        let opts = Opts::new("stepfleet_campaign_items_total", "Dead letters of campaigns, by outcome");
        let campaign_items = IntCounterVec::new(opts, &["outcome"]).expect("a legal metric");
        registry.register(Box::new(campaign_items.clone())).expect("registered once");
        Self {
            campaigns,
            campaign_items,
            campaigns_expired: counter("campaigns_expired_total", "Ended campaigns that retention deleted"),
            commits: counter("owner_commits_total", "Commits of this coordinator"),
            ahead: counter("owner_commits_ahead_total", "Commits that were decided while the last one was on its way"),
            decided: counter("owner_events_total", "Events that this coordinator decided"),
            dispatched: counter("jobs_dispatched_total", "Jobs put on streams"),
            quarantined: counter("quarantined_total", "Entries that could not be decided and were set aside"),
            fenced: counter("owner_fenced_total", "Reigns ended because another owner took the partition"),
            doubts: counter("owner_doubts_total", "Reigns ended by a lost connection or a refused commit"),
            torn: counter("owner_torn_commits_total", "Commits of which a command failed; must stay 0"),
            lost: counter("jobs_lost_total", "Jobs of dead workers that were reported lost"),
            lost_after,
            deaths,
            channels_watched,
            dead_workers: counter("workers_dead_total", "Workers declared dead"),
            mass_deaths_held: counter("mass_deaths_held_total", "Sweeps that would have killed a third of the fleet"),
            expired: ExpiredCounters {
                runs: counter("runs_expired_total", "Runs deleted because they were beyond retention"),
                letters: counter("dead_letters_expired_total", "Dead letters deleted, with their run or by themselves"),
                plans: counter("plans_expired_total", "Plans deleted because no run followed them any more"),
                events: counter("events_expired_total", "Entries of the outbox that were trimmed"),
                audit: counter("audit_expired_total", "Audit entries that were trimmed"),
            },
            outbox: OutboxCounters::new(&registry),
            audited: counter("audit_runs_total", "Runs that the auditor looked at"),
            repairs,
            owned,
            paused,
            policies_version,
            policies_unread: counter("policies_unread_total", "Looks at the fleet's policies that failed"),
            batch_items,
            gates,
            breaker_moves,
            limit_permits: counter(
                "limit_permits_total",
                "Permits that limits granted to partitions of this coordinator",
            ),
            limit_leaks: counter("limit_leaks_total", "Places under limits that no job had any more; must stay 0"),
            registry,
        }
    }
}
