//! What a worker counts, in Prometheus' terms.

use std::collections::HashMap;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use stepfleet_metric::{Families, Family, WORK_SECONDS};
use stepfleet_protocol::{
    message::{Outcome, Returned},
    name::Name,
};

/// Buckets of results in one write.
const BATCH: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Counters of one worker, with handles resolved once.
pub(crate) struct Metrics {
    families: Families,
    jobs: IntCounterVec,
    completed: HashMap<Name, IntCounter>,
    run_seconds: HistogramVec,
    run: HashMap<Name, Histogram>,
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
        let mut families = Families::default();
        families.program(env!("CARGO_PKG_VERSION"));
        let f = &mut families;
        Self {
            jobs: f.counters(
                "stepfleet_worker_jobs_total",
                "Jobs by queue and what became of them: completed, a category of failure, cancelled, or why handed back",
                &["queue", "outcome"],
            ),
            completed: HashMap::new(),
            run_seconds: f.histograms(
                "stepfleet_worker_run_seconds",
                "How long handlers ran",
                &["handler"],
                &WORK_SECONDS,
            ),
            run: HashMap::new(),
            slots_used: f.gauge("stepfleet_worker_slots_used", "Slots that a job has"),
            slots: f.gauge("stepfleet_worker_slots", "Slots in all"),
            stuck: f.gauge("stepfleet_worker_stuck_handlers", "Handlers that did not come back after their limit"),
            reconnects: f.counter("stepfleet_worker_reconnects_total", "Connections lost and opened again"),
            batch: f.histogram("stepfleet_worker_batch_results", "Results in one write", &BATCH),
            unreadable: f.counter("stepfleet_worker_unreadable_total", "Entries of job streams that named no job"),
            external_calls: ExternalCalls(f.counters(
                "stepfleet_worker_external_calls_total",
                "Recorded external calls by what became of them",
                &["outcome"],
            )),
            families,
        }
    }

    /// With series for the queues that are read and the handlers that are there, from 0 on.
    pub(crate) fn of<'a>(
        mut self,
        queues: impl IntoIterator<Item = &'a Name>,
        handlers: impl IntoIterator<Item = &'a Name>,
    ) -> Self {
        let completed = |queue: &Name| (queue.clone(), self.jobs.with_label_values(&[queue.as_str(), "completed"]));
        self.completed = queues.into_iter().map(completed).collect();
        let run = |handler: &Name| (handler.clone(), self.run_seconds.with_label_values(&[handler.as_str()]));
        self.run = handlers.into_iter().map(run).collect();
        self
    }

    /// Notes that a handler ran for so many seconds.
    pub(crate) fn ran(&self, handler: &Name, seconds: f64) {
        if let Some(histogram) = self.run.get(handler) {
            histogram.observe(seconds);
        }
    }

    /// Counts what became of a job of a queue.
    pub(crate) fn ended(&self, queue: &Name, outcome: &Outcome) {
        let label = match outcome {
            Outcome::Completed(_) => match self.completed.get(queue) {
                Some(completed) => return completed.inc(),
                None => "completed",
            },
            Outcome::Failed(failure) => failure.category.as_str(),
            Outcome::Returned(Returned::Drain) => "returned_drain",
            Outcome::Returned(Returned::NoHandler) => "returned_no_handler",
            Outcome::Returned(Returned::Surplus) => "returned_surplus",
            Outcome::Returned(Returned::Gated) => "returned_gated",
            Outcome::Cancelled => "cancelled",
        };
        self.jobs.with_label_values(&[queue.as_str(), label]).inc();
    }

    /// All of it, in the text format.
    pub(crate) fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.families.registry.gather()).unwrap_or_default()
    }
}

/// Every family that `/metrics` of a worker may show.
pub fn families() -> Vec<Family> {
    Metrics::new().families.known().to_vec()
}
