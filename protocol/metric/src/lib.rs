//! How programs make their metrics: each family is registered once, and what the documentation says of it is what it was
//! registered with. And the families that every program has: its build, its process, its runtime.

use std::collections::HashSet;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Buckets for times of people and work: a millisecond to a day.
pub const WORK_SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0,
    14_400.0, 86_400.0,
];
/// Buckets for trips to a server: a tenth of a millisecond to ten seconds.
pub const TRIP_SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// The value of a label whose names have become too many.
pub const OTHER: &str = "other";

/// What kind of metric a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins at 0 with its process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

/// A family, as documentation lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// A registry that knows what is in it.
#[derive(Debug, Clone, Default)]
pub struct Families {
    /// What is gathered.
    pub registry: Registry,
    known: Vec<Family>,
}

impl Families {
    /// Everything that was registered, in order.
    pub fn known(&self) -> &[Family] {
        &self.known
    }

    fn add(&mut self, collector: impl Collector + 'static, family: Family) {
        self.registry.register(Box::new(collector)).expect("a family is registered once");
        self.known.push(family);
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> IntCounter {
        let made = IntCounter::new(name, help).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Counter, labels: &[], help });
        made
    }

    /// A counter with labels.
    pub fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> IntCounterVec {
        let made = IntCounterVec::new(Opts::new(name, help), labels).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Counter, labels, help });
        made
    }

    /// A gauge of whole numbers without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> IntGauge {
        let made = IntGauge::new(name, help).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Gauge, labels: &[], help });
        made
    }

    /// A gauge of whole numbers with labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> IntGaugeVec {
        let made = IntGaugeVec::new(Opts::new(name, help), labels).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Gauge, labels, help });
        made
    }

    /// A gauge of any number without labels.
    pub fn level(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let made = Gauge::new(name, help).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Gauge, labels: &[], help });
        made
    }

    /// A gauge of any number with labels.
    pub fn levels(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> GaugeVec {
        let made = GaugeVec::new(Opts::new(name, help), labels).expect("a legal metric");
        self.add(made.clone(), Family { name, kind: Kind::Gauge, labels, help });
        made
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let made = Histogram::with_opts(opts).expect("legal name and buckets");
        self.add(made.clone(), Family { name, kind: Kind::Histogram, labels: &[], help });
        made
    }

    /// A histogram with labels.
    pub fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let made = HistogramVec::new(opts, labels).expect("legal name and buckets");
        self.add(made.clone(), Family { name, kind: Kind::Histogram, labels, help });
        made
    }

    /// A histogram that is there already.
    pub fn made(&mut self, made: Histogram, name: &'static str, help: &'static str) {
        self.add(made, Family { name, kind: Kind::Histogram, labels: &[], help });
    }

    /// What every program tells of itself: its version, and what its process and its runtime do. Inside a runtime only; a
    /// program that has none (it only lists its families) tells of its build alone.
    pub fn program(&mut self, version: &str) {
        let help = "Always 1; the label says which version runs";
        self.gauges("stepfleet_build_info", help, &["version"]).with_label_values(&[version]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(process)).expect("a family is registered once");
        for (name, kind, help) in PROCESS {
            self.known.push(Family { name, kind, labels: &[], help });
        }
        let runtime = Runtime::new(tokio::runtime::Handle::try_current().ok());
        self.registry.register(Box::new(runtime)).expect("a family is registered once");
        for (name, kind, help) in RUNTIME {
            self.known.push(Family { name, kind, labels: &[], help });
        }
    }
}

/// What the collector of the `prometheus` crate tells of a process.
const PROCESS: [(&str, Kind, &str); 7] = [
    ("process_cpu_seconds_total", Kind::Counter, "Processor time of the process"),
    ("process_max_fds", Kind::Gauge, "Descriptors that it may open"),
    ("process_open_fds", Kind::Gauge, "Descriptors that it has open"),
    ("process_resident_memory_bytes", Kind::Gauge, "Its memory"),
    ("process_start_time_seconds", Kind::Gauge, "When it began, in Unix seconds"),
    ("process_threads", Kind::Gauge, "Its threads"),
    ("process_virtual_memory_bytes", Kind::Gauge, "Its address space"),
];

/// What [`Runtime`] tells.
const RUNTIME: [(&str, Kind, &str); 4] = [
    ("stepfleet_tokio_workers", Kind::Gauge, "Threads of the shared runtime"),
    ("stepfleet_tokio_alive_tasks", Kind::Gauge, "Tasks of the shared runtime that have not ended"),
    ("stepfleet_tokio_global_queue_depth", Kind::Gauge, "Tasks that wait for any thread of the shared runtime"),
    ("stepfleet_tokio_busy_seconds_total", Kind::Counter, "Time that threads of the shared runtime were busy"),
];

/// The runtime that the program shares: not the threads of owners, whose time is the process' own.
struct Runtime {
    handle: Option<tokio::runtime::Handle>,
    gauges: [IntGauge; 3],
    busy: prometheus::Counter,
}

impl Runtime {
    fn new(handle: Option<tokio::runtime::Handle>) -> Self {
        let gauge = |n: usize| IntGauge::new(RUNTIME[n].0, RUNTIME[n].2).expect("a legal metric");
        let busy = prometheus::Counter::new(RUNTIME[3].0, RUNTIME[3].2).expect("a legal metric");
        Self { handle, gauges: [gauge(0), gauge(1), gauge(2)], busy }
    }
}

impl Collector for Runtime {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).chain(self.busy.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(handle) = &self.handle else { return Vec::new() };
        let metrics = handle.metrics();
        let [workers, alive, waiting] = &self.gauges;
        workers.set(metrics.num_workers() as i64);
        alive.set(metrics.num_alive_tasks() as i64);
        waiting.set(metrics.global_queue_depth() as i64);
        let busy = (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64());
        self.busy.inc_by((busy.sum::<f64>() - self.busy.get()).max(0.0));
        self.gauges.iter().flat_map(Collector::collect).chain(self.busy.collect()).collect()
    }
}

/// The values of a label that people choose: the first so many names have series of their own, the rest share one, so that
/// a fleet in which names are made by programs does not fill Prometheus.
#[derive(Debug)]
pub struct Bounded {
    most: usize,
    names: HashSet<String>,
}

impl Bounded {
    /// For at most so many names.
    pub fn new(most: usize) -> Self {
        Self { most, names: HashSet::new() }
    }

    /// Whether the name has series of its own.
    pub fn knows(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The name itself, or [`OTHER`].
    pub fn value<'a>(&mut self, name: &'a str) -> &'a str {
        if self.names.contains(name) {
            return name;
        }
        if self.names.len() >= self.most {
            return OTHER;
        }
        self.names.insert(name.to_owned());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_share_a_series_and_the_first_keep_theirs() {
        let mut bounded = Bounded::new(2);
        assert_eq!(["a", "b", "c", "a", "d", "b"].map(|name| bounded.value(name)), ["a", "b", OTHER, "a", OTHER, "b"]);
    }

    #[tokio::test]
    async fn everything_that_a_program_tells_of_itself_is_listed() {
        let mut families = Families::default();
        families.program("1.2.3");
        let told: Vec<String> = families.registry.gather().iter().map(|f| f.name().to_owned()).collect();
        let listed: Vec<&str> = families.known().iter().map(|f| f.name).collect();
        for name in &told {
            assert!(listed.contains(&name.as_str()), "{name} is not listed");
        }
        assert_eq!(told.len(), listed.len(), "{told:?} and {listed:?}");
    }
}
