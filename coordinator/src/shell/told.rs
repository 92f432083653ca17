//! From what commits did to metrics, with handles that are looked up once per queue and workflow.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};
use stepfleet_metric::{Bounded, Families, TRIP_SECONDS, WORK_SECONDS};
use stepfleet_protocol::{failure::Category, name::Name, state::State};

use super::{
    owner::Committed,
    spans::Spans,
    tally::{JobEnd, Seen, TIMERS},
};

/// Queues with series of their own.
const QUEUES_MAX: usize = 100;
/// Workflows with series of their own.
const WORKFLOWS_MAX: usize = 50;

/// What is counted of work, in one process.
#[derive(Debug, Clone)]
pub struct Work {
    submitted: IntCounter,
    runs: IntCounterVec,
    run_seconds: HistogramVec,
    steps: IntCounterVec,
    dispatched: IntCounterVec,
    jobs: IntCounterVec,
    failures: IntCounterVec,
    retries: IntCounterVec,
    letters: IntCounterVec,
    replayed: IntCounter,
    ignored: IntCounter,
    wait: HistogramVec,
    run: HistogramVec,
    delay: Histogram,
    timers: IntCounterVec,
    timer_late: Histogram,
    commit: Histogram,
    log_age: Histogram,
    queues: Arc<Mutex<Bounded>>,
    workflows: Arc<Mutex<Bounded>>,
}

impl Work {
    /// How many jobs of a queue have run on partitions of this process, and for how many seconds together.
    pub fn ran(&self, queue: &str) -> (u64, f64) {
        let known = self.queues.lock().unwrap_or_else(PoisonError::into_inner).knows(queue);
        if !known {
            return (0, 0.0);
        }
        let run = self.run.with_label_values(&[queue]);
        (run.get_sample_count(), run.get_sample_sum())
    }

    pub(super) fn new(f: &mut Families) -> Self {
        let work = Self {
            submitted: f.counter("stepfleet_runs_submitted_total", "Runs that began"),
            runs: f.counters("stepfleet_runs_finished_total", "Ends of runs, by how they ended", &["outcome"]),
            run_seconds: f.histograms(
                "stepfleet_run_seconds",
                "From the submit of a run, by the clock of whoever made its id, to each of its ends; workflows beyond the first 50 are `other`",
                &["workflow"],
                &WORK_SECONDS,
            ),
            steps: f.counters(
                "stepfleet_steps_finished_total",
                "Ends of steps, by queue and how they ended",
                &["queue", "outcome"],
            ),
            dispatched: f.counters("stepfleet_jobs_dispatched_total", "Jobs put on streams", &["queue"]),
            jobs: f.counters(
                "stepfleet_jobs_finished_total",
                "Jobs by what became of them; those that were returned, gated or lost are done again",
                &["queue", "outcome"],
            ),
            failures: f.counters(
                "stepfleet_attempt_failures_total",
                "Attempts that failed, by category",
                &["queue", "category"],
            ),
            retries: f.counters(
                "stepfleet_retries_total",
                "Further attempts that were promised, by category of the failure",
                &["queue", "category"],
            ),
            letters: f.counters("stepfleet_dead_letters_total", "Steps that gave up, by cause", &["queue", "cause"]),
            replayed: f.counter("stepfleet_dead_letters_replayed_total", "Dead letters that were replayed"),
            ignored: f.counter("stepfleet_results_ignored_total", "Attempts that were done or failed when nobody waited for them any more"),
            wait: f.histograms(
                "stepfleet_job_wait_seconds",
                "From a job's arrival on its stream to the beginning of its handler",
                &["queue"],
                &WORK_SECONDS,
            ),
            run: f.histograms("stepfleet_job_run_seconds", "How long handlers ran", &["queue"], &WORK_SECONDS),
            delay: f.histogram(
                "stepfleet_scheduling_delay_seconds",
                "From the arrival of what made a step ready to its job on the stream, where nothing held it back",
                &WORK_SECONDS,
            ),
            timers: f.counters("stepfleet_timers_total", "Timers that came due, by kind", &["kind"]),
            timer_late: f.histogram(
                "stepfleet_timer_late_seconds",
                "How long after they were due timers were decided",
                &WORK_SECONDS,
            ),
            commit: f.histogram(
                "stepfleet_owner_commit_seconds",
                "Trips of commits, without the read of the log behind them, and with what was decided meanwhile",
                &TRIP_SECONDS,
            ),
            log_age: f.histogram(
                "stepfleet_owner_log_age_seconds",
                "Age of the oldest entry of a batch when it was decided",
                &WORK_SECONDS,
            ),
            queues: Arc::new(Mutex::new(Bounded::new(QUEUES_MAX))),
            workflows: Arc::new(Mutex::new(Bounded::new(WORKFLOWS_MAX))),
        };
        for outcome in [State::Completed, State::Failed, State::Cancelled] {
            work.runs.with_label_values(&[outcome.as_str()]).reset();
        }
        TIMERS.iter().for_each(|kind| work.timers.with_label_values(&[kind]).reset());
        work
    }
}

/// Handles of a queue.
#[derive(Debug)]
struct Queue {
    label: String,
    dispatched: IntCounter,
    wait: Histogram,
    run: Histogram,
    jobs: [IntCounter; JobEnd::ALL.len()],
    steps: [IntCounter; 4],
}

/// How a step may end.
const STEP_ENDS: [State; 4] = [State::Completed, State::Failed, State::Cancelled, State::Skipped];

/// Tells what one owner after the other of a partition has committed.
#[derive(Debug)]
pub struct Teller {
    work: Work,
    spans: Spans,
    queues: HashMap<Name, Queue>,
    workflows: HashMap<Name, Histogram>,
}

/// Milliseconds as seconds.
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

impl Teller {
    /// For one partition.
    pub fn new(work: Work, spans: Spans) -> Self {
        Self { work, spans, queues: HashMap::new(), workflows: HashMap::new() }
    }

    /// Tells of a commit.
    pub fn tell(&mut self, committed: Committed) {
        let Committed { tally, took, at_ms } = committed;
        self.work.commit.observe(took.as_secs_f64());
        if let Some(oldest_ms) = tally.oldest_ms {
            self.work.log_age.observe(seconds(tally.server_ms.saturating_sub(oldest_ms)));
        }
        for traced in tally.spans {
            self.spans.tell(traced, at_ms);
        }
        for seen in tally.seen {
            self.fact(seen, at_ms);
        }
    }

    fn fact(&mut self, seen: Seen, at_ms: u64) {
        match seen {
            Seen::Submitted => self.work.submitted.inc(),
            Seen::RunEnded(workflow, state, ms) => {
                self.work.runs.with_label_values(&[state.as_str()]).inc();
                self.workflow(workflow).observe(seconds(ms));
            }
            Seen::StepEnded(queue, state) => {
                if let Some(at) = STEP_ENDS.iter().position(|end| *end == state) {
                    self.queue(queue).steps[at].inc();
                }
            }
            Seen::Dispatched(queue, since_ms) => {
                self.queue(queue).dispatched.inc();
                if let Some(since_ms) = since_ms {
                    self.work.delay.observe(seconds(at_ms.saturating_sub(since_ms)));
                }
            }
            Seen::Begun(queue, ms) => self.queue(queue).wait.observe(seconds(ms)),
            Seen::JobEnded(queue, end, run_ms) => {
                let queue = self.queue(queue);
                queue.jobs[end as usize].inc();
                if let Some(ms) = run_ms {
                    queue.run.observe(seconds(ms));
                }
            }
            Seen::Failed(queue, category) => self.categorised(queue, category, false),
            Seen::Retried(queue, category) => self.categorised(queue, category, true),
            Seen::Letter(queue, cause) => {
                let label = self.queue(queue).label.clone();
                self.work.letters.with_label_values(&[label.as_str(), cause.as_str()]).inc();
            }
            Seen::Replayed => self.work.replayed.inc(),
            Seen::Ignored => self.work.ignored.inc(),
            Seen::Timer(kind, late_ms) => {
                self.work.timers.with_label_values(&[kind]).inc();
                self.work.timer_late.observe(seconds(late_ms));
            }
        }
    }

    fn categorised(&mut self, queue: Name, category: Category, again: bool) {
        let label = self.queue(queue).label.clone();
        let counters = if again { &self.work.retries } else { &self.work.failures };
        counters.with_label_values(&[label.as_str(), category.as_str()]).inc();
    }

    fn queue(&mut self, name: Name) -> &Queue {
        let work = &self.work;
        self.queues.entry(name).or_insert_with_key(|name| {
            let label = bounded(&work.queues, name);
            Queue {
                dispatched: work.dispatched.with_label_values(&[label.as_str()]),
                wait: work.wait.with_label_values(&[label.as_str()]),
                run: work.run.with_label_values(&[label.as_str()]),
                jobs: JobEnd::ALL.map(|(_, end)| work.jobs.with_label_values(&[label.as_str(), end])),
                steps: STEP_ENDS.map(|end| work.steps.with_label_values(&[label.as_str(), end.as_str()])),
                label,
            }
        })
    }

    fn workflow(&mut self, name: Name) -> &Histogram {
        let work = &self.work;
        // Names of inline definitions may be made by programs: beyond the bound they are not kept.
        if self.workflows.len() > 2 * WORKFLOWS_MAX && !self.workflows.contains_key(&name) {
            self.workflows.clear();
        }
        self.workflows
            .entry(name)
            .or_insert_with_key(|name| work.run_seconds.with_label_values(&[bounded(&work.workflows, name).as_str()]))
    }
}

fn bounded(names: &Mutex<Bounded>, name: &Name) -> String {
    names.lock().unwrap_or_else(PoisonError::into_inner).value(name.as_str()).to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::shell::tally::Tally;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a legal name")
    }

    fn text(families: &Families) -> String {
        prometheus::TextEncoder::new().encode_to_string(&families.registry.gather()).expect("it is text")
    }

    #[test]
    fn a_commit_is_told_with_its_times() {
        let mut families = Families::default();
        let mut teller = Teller::new(Work::new(&mut families), Spans::default());
        let seen = vec![
            Seen::Dispatched(name("q"), Some(900)),
            Seen::Dispatched(name("q"), None),
            Seen::Begun(name("q"), 250),
            Seen::JobEnded(name("q"), JobEnd::Completed, Some(2_000)),
            Seen::JobEnded(name("q"), JobEnd::Lost, None),
            Seen::RunEnded(name("w"), State::Completed, 3_000),
            Seen::Timer("retry", 40),
        ];
        let tally = Tally { seen, oldest_ms: Some(880), server_ms: 1_000, ..Tally::default() };
        teller.tell(Committed { tally, took: Duration::from_millis(2), at_ms: 1_002 });
        teller.tell(Committed { tally: Tally::default(), took: Duration::from_millis(3), at_ms: 1_500 });
        let text = text(&families);
        for line in [
            "stepfleet_jobs_dispatched_total{queue=\"q\"} 2",
            "stepfleet_scheduling_delay_seconds_sum 0.102",
            "stepfleet_scheduling_delay_seconds_count 1",
            "stepfleet_job_wait_seconds_sum{queue=\"q\"} 0.25",
            "stepfleet_job_run_seconds_sum{queue=\"q\"} 2",
            "stepfleet_jobs_finished_total{outcome=\"completed\",queue=\"q\"} 1",
            "stepfleet_jobs_finished_total{outcome=\"lost\",queue=\"q\"} 1",
            "stepfleet_run_seconds_sum{workflow=\"w\"} 3",
            "stepfleet_runs_finished_total{outcome=\"completed\"} 1",
            "stepfleet_timer_late_seconds_sum 0.04",
            "stepfleet_owner_log_age_seconds_sum 0.12",
            "stepfleet_owner_commit_seconds_sum 0.005",
            "stepfleet_owner_commit_seconds_count 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
    }

    #[test]
    fn names_that_programs_make_do_not_fill_the_registry() {
        let mut families = Families::default();
        let work = Work::new(&mut families);
        // Two partitions of one process share the bound.
        for mut teller in [Teller::new(work.clone(), Spans::default()), Teller::new(work, Spans::default())] {
            for n in 0..1_000 {
                let seen = vec![
                    Seen::RunEnded(name(&format!("w{n}")), State::Failed, 1),
                    Seen::StepEnded(name(&format!("q{n}")), State::Failed),
                ];
                teller.tell(Committed { tally: Tally { seen, ..Tally::default() }, took: Duration::ZERO, at_ms: 1 });
            }
        }
        let text = text(&families);
        let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines("stepfleet_run_seconds_count{"), WORKFLOWS_MAX + 1);
        assert_eq!(lines("stepfleet_jobs_dispatched_total{"), QUEUES_MAX + 1);
        assert!(text.contains("stepfleet_run_seconds_count{workflow=\"other\"} 1900"), "{text}");
    }
}
