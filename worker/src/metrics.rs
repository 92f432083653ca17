//! What a worker counts, in Prometheus' terms.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use stepfleet_protocol::message::{Outcome, Returned};

/// Counters of one worker, with handles resolved once.
pub(crate) struct Metrics {
    registry: Registry,
    jobs: IntCounterVec,
    completed: IntCounter,
    /// Seconds that handlers ran.
    pub(crate) run_seconds: Histogram,
    /// Slots that a job has.
    pub(crate) slots_used: IntGauge,
    /// Slots in all.
    pub(crate) slots: IntGauge,
    /// Handlers that did not come back after their limit.
    pub(crate) stuck: IntGauge,
    /// Connections lost and opened again.
    pub(crate) reconnects: IntCounter,
    /// Results in one write.
    pub(crate) batch: Histogram,
    /// Entries that named no job.
    pub(crate) unreadable: IntCounter,
    /// External calls of handlers.
    pub(crate) external_calls: ExternalCalls,
}

/// Recorded external calls by what became of them.
#[derive(Debug, Clone)]
pub(crate) struct ExternalCalls(IntCounterVec);

impl ExternalCalls {
    /// Counts a call: `completed`, `failed`, `unknown`, `settled` (found done by asking) or `recorded` (not made again).
    pub(crate) fn ended(&self, outcome: &str) {
        self.0.with_label_values(&[outcome]).inc();
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let seconds = vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0];
        let sizes = vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
        let jobs = counters("stepfleet_worker_jobs_total", "jobs by what became of them", &["outcome"]);
        let metrics = Self {
            completed: jobs.with_label_values(&["completed"]),
            run_seconds: histogram("stepfleet_worker_run_seconds", "seconds that handlers ran", seconds),
            slots_used: gauge("stepfleet_worker_slots_used", "slots that a job has"),
            slots: gauge("stepfleet_worker_slots", "slots in all"),
            stuck: gauge("stepfleet_worker_stuck_handlers", "handlers that did not come back after their limit"),
            reconnects: counter("stepfleet_worker_reconnects_total", "connections lost and opened again"),
            batch: histogram("stepfleet_worker_batch_results", "results in one write", sizes),
            unreadable: counter("stepfleet_worker_unreadable_total", "entries of job streams that named no job"),
            external_calls: ExternalCalls(counters(
                "stepfleet_worker_external_calls_total",
                "recorded external calls by what became of them",
                &["outcome"],
            )),
            jobs,
            registry,
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let all: [Box<dyn prometheus::core::Collector>; 9] = [
            Box::new(self.jobs.clone()),
            Box::new(self.run_seconds.clone()),
            Box::new(self.slots_used.clone()),
            Box::new(self.slots.clone()),
            Box::new(self.stuck.clone()),
            Box::new(self.reconnects.clone()),
            Box::new(self.batch.clone()),
            Box::new(self.unreadable.clone()),
            Box::new(self.external_calls.0.clone()),
        ];
        for collector in all {
            self.registry.register(collector).expect("names differ");
        }
    }

    /// Counts what became of a job.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        let label = match outcome {
            Outcome::Completed(_) => return self.completed.inc(),
            Outcome::Failed(failure) => failure.category.as_str(),
            Outcome::Returned(Returned::Drain) => "returned_drain",
            Outcome::Returned(Returned::NoHandler) => "returned_no_handler",
            Outcome::Returned(Returned::Surplus) => "returned_surplus",
            Outcome::Returned(Returned::Gated) => "returned_gated",
            Outcome::Cancelled => "cancelled",
        };
        self.jobs.with_label_values(&[label]).inc();
    }

    /// All of it, in the text format.
    pub(crate) fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("a legal name")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("a legal name")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("a legal name")
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("legal name and buckets")
}
