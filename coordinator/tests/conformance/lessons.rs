//! What users of other systems have suffered from, as tests: one for each row of `docs/reliability.md` that is about jobs, their
//! holders and their streams and that no other file shows.

use std::{collections::BTreeSet, time::Duration};

use stepfleet_coordinator::{
    machine::{decision::Cause, run::AttemptError},
    shell::{auditor::Auditor, metrics::Metrics, observer::Observer, owner::Owner},
    store::{
        letters,
        link::Dial,
        memory::{MemoryDial, MemoryLink},
        reply,
    },
};
use stepfleet_protocol::{
    codec,
    id::RunId,
    keys::GROUP,
    message::{Body, JobRef, Outcome, Started},
    name::Name,
    state::State,
    workflow::Workflow,
};
use tokio::{sync::watch, time::advance};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{PARTITION, Worker, all_keys, chain, keys},
    liveness::{beat, beats, observe, pass},
    world::{World, on_memory},
};

fn stream() -> String {
    keys().jobs(&Name::new("default").expect("a legal name"))
}

/// One step with a limit.
fn limited(timeout: &str) -> Workflow {
    let step = serde_json::json!({ "handler": "noop", "timeout": timeout, "retry": { "max_attempts": 2 } });
    let plan = serde_json::json!({ "workflow": "limited", "timeout": "10d", "steps": { "work": step } });
    serde_json::from_value(plan).expect("a legal workflow")
}

/// What was kept of the failed attempts of a run.
async fn errors<D: Dial>(w: &mut World<D>, run: RunId) -> Vec<AttemptError> {
    let found = w.one(&[b"LRANGE", keys().errors(&run).as_bytes(), b"0", b"-1"]).await;
    let found = reply::array(&found).unwrap_or_default().iter().filter_map(reply::bytes);
    found.map(|bytes| codec::unpack(bytes).expect("an error of ours")).collect()
}

/// Entries that are pending at a worker.
async fn pending<D: Dial>(w: &mut World<D>, worker: &Worker<D>) -> Vec<String> {
    let (stream, id) = (stream(), worker.id.to_string());
    let words: [&[u8]; 7] = [b"XPENDING", stream.as_bytes(), GROUP.as_bytes(), b"-", b"+", b"1000", id.as_bytes()];
    let found = w.one(&words).await;
    let entry = |e: &redis::Value| reply::array(e)?.first().and_then(reply::text).map(str::to_string);
    reply::array(&found).unwrap_or_default().iter().filter_map(entry).collect()
}

/// Lets a worker complete these jobs.
async fn complete<D: Dial>(w: &mut World<D>, owner: &mut Owner<D::Link>, worker: &mut Worker<D>, jobs: &[JobRef]) {
    worker.answer(jobs.iter().map(|of| (of.clone(), Outcome::Completed(None))).collect()).await.expect("up");
    w.turns(owner, 3).await;
}

/// Lets time pass, the owner turn and the worker beat, until `other` is given a job.
async fn until_taken(
    w: &mut World<MemoryDial>,
    owner: &mut Owner<MemoryLink>,
    other: &mut Worker<MemoryDial>,
) -> JobRef {
    for _ in 0..300 {
        pass(1).await;
        owner.turn(false).await.expect("no faults");
        if let Some((of, _)) = other.take(1).await.unwrap_or_default().pop() {
            return of;
        }
    }
    panic!("no job came in {:?}", w.one(&[b"TIME"]).await);
}

/// An auditor, until it is cancelled.
pub(crate) fn audit<D: Dial>(dial: D, metrics: &Metrics) -> CancellationToken {
    let stop = CancellationToken::new();
    let owned = watch::Sender::new(BTreeSet::from([PARTITION]));
    let auditor = Auditor::new(dial, all_keys(), metrics.clone(), owned.subscribe());
    let token = stop.clone();
    tokio::spawn(async move {
        let _owned = owned;
        auditor.run(token).await;
    });
    stop
}

/// Active, and in nobody's list of leases: no sweep over what is pending ever comes by such a job.
#[test]
fn lesson_04_an_active_job_that_is_pending_nowhere_is_found_and_done() {
    on_memory(async |mut w| {
        let (mut owner, mut worker, mut other) = (w.own().await, w.worker(1), w.worker(2));
        // From now on the client knows the server's time: a run from the future is none that the auditor looks at.
        let first = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut other, first).await;
        let run = w.submit(&chain(1)).await;
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        beat(&mut w, &worker, &[&of], 1).await;
        let entry = of.entry.to_string();
        assert_eq!(w.number(&["XACK", &stream(), GROUP, &entry]).await, 1);
        assert_eq!(w.number(&["XDEL", &stream(), &entry]).await, 1);
        let metrics = Metrics::new();
        let (_observer, _auditor) = (observe(w.dial.clone()), audit(w.dial.clone(), &metrics));
        // Its worker says in the last of its beats that it holds the job, and dies.
        let again = until_taken(&mut w, &mut owner, &mut other).await;
        assert_ne!(again.job, of.job);
        assert_eq!(metrics.repairs.with_label_values(&["job"]).get(), 1);
        complete(&mut w, &mut owner, &mut other, &[again]).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

/// The lock of a job was renewed for ever by a worker that did not work on it.
#[test]
fn lesson_07_a_job_that_its_worker_names_no_more_after_its_limit_leaves_the_stream_and_counts_once() {
    on_memory(async |mut w| {
        let run = w.submit(&limited("60s")).await;
        let (mut owner, mut stuck, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut stuck).await.swap_remove(0);
        let started = Started { worker: stuck.id.clone(), jobs: vec![(of.clone(), 1_000)] };
        w.client.append(Body::Started(started)).await.expect("up");
        w.turns(&mut owner, 2).await;
        let _observer = observe(w.dial.clone());
        let n = beats(&mut w, &stuck, &[&of], 0, 120).await;
        // The owner stood still for so long that it waits for a late report first.
        w.turns(&mut owner, 30).await;
        let (again, job) = w.jobs(&mut owner, &mut other).await.swap_remove(0);
        assert_eq!(job.attempt, 2, "the try that ran past its limit counts");
        complete(&mut w, &mut owner, &mut other, &[again]).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
        assert_eq!(pending(&mut w, &stuck).await.len(), 1, "its own coordinator does not know the entry");
        // A minute after the limit the worker stops naming it, and lives on.
        beats(&mut w, &stuck, &[], n, 45).await;
        w.turns(&mut owner, 3).await;
        assert_eq!(pending(&mut w, &stuck).await, Vec::<String>::new());
        let step = w.stored(run).await.steps[&0];
        assert_eq!((step.attempts, step.losses), (1, 0));
    });
}

/// Users could not tell whether their process, their server or another worker was the cause.
#[test]
fn lesson_08_a_lost_job_says_what_was_seen_of_its_worker() {
    on_memory(async |mut w| {
        let (named, unnamed) = (w.submit(&chain(1)).await, w.submit(&chain(1)).await);
        let (mut owner, mut dead) = (w.own().await, w.worker(1));
        let mut jobs = w.jobs(&mut owner, &mut dead).await;
        jobs.retain(|(of, _)| of.run == named);
        assert_eq!(pending(&mut w, &dead).await.len(), 2);
        beat(&mut w, &dead, &[&jobs[0].0], 1).await;
        let (owned, metrics) = (watch::Sender::new(BTreeSet::from([PARTITION])), Metrics::new());
        let slots = watch::Sender::new(std::collections::BTreeMap::new());
        let mut observer = Observer::new(w.dial.clone(), all_keys(), metrics.clone(), owned.subscribe(), slots);
        for _ in 0..20 {
            observer.sweep().await;
            advance(Duration::from_secs(2)).await;
        }
        w.turns(&mut owner, 3).await;
        for (run, last) in [(named, "held the job without having begun it"), (unnamed, "did not name the job")] {
            let error = errors(&mut w, run).await.swap_remove(0);
            let seen = error.failure.causes.first().cloned().unwrap_or_default();
            assert!(error.failure.message.contains("died with the job (loss 1 of 3)"), "{error:?}");
            assert!(seen.starts_with("its beat had not moved for 3"), "{seen}");
            assert!(
                seen.contains("the server answered in 0 ms") && seen.contains("read its job streams 0 ms"),
                "{seen}"
            );
            assert!(seen.ends_with(last), "`{last}` is not in `{seen}`");
        }
        assert!(metrics.lost_after.get_sample_count() >= 2, "how long it took is measured");
        let mean = metrics.lost_after.get_sample_sum() / metrics.lost_after.get_sample_count() as f64;
        assert!((30.0..45.0).contains(&mean), "{mean} s");
    });
}

/// Node names were used again, and the jobs of the dead were the living one's.
#[test]
fn lesson_10_of_two_workers_with_one_name_the_dead_one_loses_its_jobs_and_the_other_keeps_its_own() {
    on_memory(async |mut w| {
        let (mut owner, mut dead, mut alive) = (w.own().await, w.worker(1), w.worker(2));
        w.submit(&chain(1)).await;
        let (lost, _) = w.jobs(&mut owner, &mut dead).await.swap_remove(0);
        w.submit(&chain(1)).await;
        let (kept, _) = w.jobs(&mut owner, &mut alive).await.swap_remove(0);
        beat(&mut w, &dead, &[&lost], 1).await;
        let _observer = observe(w.dial.clone());
        beats(&mut w, &alive, &[&kept], 0, 45).await;
        let again = w.jobs(&mut owner, &mut alive).await;
        assert_eq!(again.iter().map(|(of, _)| of.run).collect::<Vec<_>>(), [lost.run], "only what the dead one had");
        let step = w.stored(kept.run).await.steps[&0];
        assert_eq!((step.losses, step.job), (0, Some(kept.job)));
    });
}

/// One group had 38 million consumers.
#[test]
fn lesson_17_a_fleet_that_comes_and_goes_leaves_no_consumer_behind() {
    const WORKERS: u64 = 100;
    on_memory(async |mut w| {
        let mut owner = w.own().await;
        for boot in 1..=WORKERS {
            let run = w.submit(&chain(1)).await;
            let mut worker = w.worker(boot);
            w.finish(&mut owner, &mut worker, run).await;
        }
        let consumers = async |w: &mut World<MemoryDial>| {
            let found = w.one(&[b"XINFO", b"CONSUMERS", stream().as_bytes(), GROUP.as_bytes()]).await;
            reply::array(&found).map(<[_]>::len)
        };
        assert_eq!(consumers(&mut w).await, Some(WORKERS as usize));
        let _observer = observe(w.dial.clone());
        pass(120).await;
        assert_eq!(consumers(&mut w).await, Some(0));
    });
}

/// Groups of dead consumers pinned what was trimmed, until the server was full.
#[test]
fn lesson_18_a_strangers_group_that_reads_nothing_keeps_no_entry_alive() {
    on_memory(async |mut w| {
        let (mut owner, mut worker) = (w.own().await, w.worker(1));
        let run = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut worker, run).await;
        for key in [stream(), keys().log()] {
            w.one(&[b"XGROUP", b"CREATE", key.as_bytes(), b"stranger", b"0"]).await;
        }
        for _ in 0..30 {
            let run = w.submit(&chain(10)).await;
            w.finish(&mut owner, &mut worker, run).await;
        }
        // Duties come once a second.
        advance(Duration::from_secs(2)).await;
        w.turns(&mut owner, 4).await;
        for key in [stream(), keys().log()] {
            let left = w.number(&["XLEN", &key]).await;
            assert!(left <= 10, "{left} entries of more than 300 are left of {key}");
        }
    });
}

/// Trimming below what is pending left entries that were pending and not there.
#[test]
fn lesson_19_no_entry_is_trimmed_away_under_its_pending_job() {
    on_memory(async |mut w| {
        let (mut owner, mut slow, mut quick) = (w.own().await, w.worker(1), w.worker(2));
        let (mut held, mut least) = (Vec::new(), i64::MAX);
        for _ in 0..5 {
            w.submit(&chain(1)).await;
            held.push(w.jobs(&mut owner, &mut slow).await.swap_remove(0).0);
            for _ in 0..6 {
                let run = w.submit(&chain(10)).await;
                w.finish(&mut owner, &mut quick, run).await;
            }
            // So long that what was acked behind the first goes too.
            advance(Duration::from_secs(40)).await;
            w.turns(&mut owner, 6).await;
            let waiting = pending(&mut w, &slow).await;
            assert_eq!(waiting.len(), held.len());
            for entry in waiting {
                let found = w.one(&[b"XRANGE", stream().as_bytes(), entry.as_bytes(), entry.as_bytes()]).await;
                assert_eq!(reply::entries(found).len(), 1, "entry {entry} is pending and not there");
            }
            least = least.min(w.number(&["XLEN", &stream()]).await);
        }
        assert!(least < 60, "nothing was trimmed: {least} entries of 60 and more are left");
        let runs: Vec<RunId> = held.iter().map(|of| of.run).collect();
        complete(&mut w, &mut owner, &mut slow, &held).await;
        for run in runs {
            assert_eq!(w.state(run).await, Some(State::Completed));
        }
        assert_eq!(pending(&mut w, &slow).await, Vec::<String>::new(), "nothing is pending that nobody has");
    });
}

/// Teams feared that two of them claim one job: here nobody claims, and what two see is one loss.
#[test]
fn lesson_20_two_coordinators_that_see_one_death_dispatch_one_other_job() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut dead, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut dead).await.swap_remove(0);
        beat(&mut w, &dead, &[&of], 1).await;
        let _observers = (observe(w.dial.clone()), observe(w.dial.clone()));
        // The owner reads nothing meanwhile, so each of them reports again and again.
        pass(60).await;
        let again = w.jobs(&mut owner, &mut other).await;
        w.turns(&mut owner, 5).await;
        assert_eq!((again.len(), other.take(10).await.unwrap_or_default().len()), (1, 0));
        assert_eq!(w.stored(run).await.steps[&0].losses, 1);
        complete(&mut w, &mut owner, &mut other, &[again[0].0.clone()]).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

/// A worker was killed for want of memory, again and again, and the alert blamed a healthy one.
#[test]
fn lesson_37_the_third_death_blames_the_job_and_names_the_workers_that_died_with_it() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let mut owner = w.own().await;
        let _observer = observe(w.dial.clone());
        let mut died = Vec::new();
        for boot in 1..=3 {
            let mut worker = w.worker(boot);
            let of = until_taken(&mut w, &mut owner, &mut worker).await;
            beat(&mut w, &worker, &[&of], 1).await;
            died.push(worker.id.to_string());
        }
        pass(60).await;
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Failed));
        let found = w.one(&[b"XRANGE", keys().dead().as_bytes(), b"-", b"+"]).await;
        let (_, fields) = reply::entries(found).swap_remove(0);
        let letter = letters::decode(&fields).expect("a letter of ours");
        assert_eq!(letter.cause, Cause::Poison);
        let errors = errors(&mut w, run).await;
        let blamed: Vec<String> = errors.iter().filter_map(|e| e.worker.as_ref().map(ToString::to_string)).collect();
        assert_eq!(blamed, died, "one death each");
        assert!(errors.iter().all(|e| e.failure.causes.len() == 1), "each says what was seen: {errors:?}");
        // The next worker of the queue is healthy, and nothing is held against it or its job.
        let next = w.submit(&chain(1)).await;
        let mut healthy = w.worker(4);
        w.finish(&mut owner, &mut healthy, next).await;
        assert_eq!((w.state(next).await, w.stored(next).await.steps[&0].losses), (Some(State::Completed), 0));
    });
}
