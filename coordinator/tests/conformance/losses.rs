//! Whose job it is when a worker is slow, gone, or back under its old name: the races of the observer, and what has happened
//! to others.

use std::sync::{Arc, Mutex};

use stepfleet_coordinator::store::{link::Dial, reply};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    message::{Body, JobRef, LogEntry, Outcome, Started},
    name::Name,
    state::State,
    workflow::Workflow,
};

use crate::{
    both,
    fleet::{chain, keys},
    liveness::{beat, beats, observe, pass},
    tap::{Act, Tap, mentions},
    world::{World, on_memory, on_twin},
};

both! {
    lesson_12_a_retry_that_waits_for_an_hour_is_pending_at_nobody,
}

fn stream() -> String {
    keys().jobs(&Name::new("default").expect("a legal name"))
}

/// What is on the log, as one word an entry.
async fn log<D: Dial>(w: &mut World<D>) -> Vec<&'static str> {
    let found = w.one(&[b"XRANGE", keys().log().as_bytes(), b"-", b"+"]).await;
    let word = |(field, bytes): &(bytes::Bytes, bytes::Bytes)| match codec::decode::<LogEntry>(field, bytes) {
        Ok(entry) => match entry.body {
            Body::Results(_) => "results",
            Body::Lost(_) => "lost",
            _ => "other",
        },
        Err(_) => "malformed",
    };
    reply::entries(found).iter().map(|(_, fields)| word(&fields[0])).collect()
}

/// Trap 7.
#[test]
fn a_result_that_nobody_has_read_yet_wins_over_the_observer_that_finds_its_worker_dead() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut dead, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut dead).await.swap_remove(0);
        beat(&mut w, &dead, &[&of], 1).await;
        dead.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        // The owner reads nothing while its worker dies: the entry is still pending, and the observer tells so.
        let stop = observe(w.dial.clone());
        pass(40).await;
        stop.cancel();
        let log = log(&mut w).await;
        let (result, lost) = (log.iter().position(|e| *e == "results"), log.iter().position(|e| *e == "lost"));
        assert!(result.is_some() && lost > result, "the observer acted while the result was unread: {log:?}");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
        assert!(other.take(10).await.unwrap_or_default().is_empty(), "the job is done and not dispatched again");
        let history = w.stored(run).await.history;
        assert_eq!(
            history.iter().filter(|t| t.step.is_some() && t.to == State::Completed && t.from != t.to).count(),
            1
        );
    });
}

/// Trap 7.
#[test]
fn lesson_16_a_zombie_that_reads_between_the_look_and_the_deletion_of_its_consumer_loses_no_job() {
    on_twin(async |_, mut w| {
        let (mut owner, mut zombie, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let done = w.submit(&chain(1)).await;
        let (of, _) = w.jobs(&mut owner, &mut zombie).await.swap_remove(0);
        beat(&mut w, &zombie, &[], 1).await;
        zombie.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(done).await, Some(State::Completed));
        // A job that nobody has taken; the zombie takes it in the very moment in which its consumer is deleted.
        let run = w.submit(&chain(1)).await;
        w.turns(&mut owner, 3).await;
        let taken: Arc<Mutex<Vec<JobRef>>> = Arc::default();
        let (zombie, kept) = (Arc::new(tokio::sync::Mutex::new(zombie)), Arc::clone(&taken));
        let reader = Arc::clone(&zombie);
        let tap = Tap::before(w.dial.clone(), move |pipe| -> Act {
            if !mentions(pipe, "DELCONSUMER") || !kept.lock().expect("nobody panics").is_empty() {
                return Box::pin(std::future::ready(()));
            }
            let (reader, kept) = (Arc::clone(&reader), Arc::clone(&kept));
            Box::pin(async move {
                let jobs = reader.lock().await.take(10).await.expect("up");
                kept.lock().expect("nobody panics").extend(jobs.into_iter().map(|(of, _)| of));
            })
        });
        let _observer = observe(tap);
        pass(45).await;
        let late = taken.lock().expect("nobody panics").first().cloned().expect("it read before the deletion");
        let again = w.jobs(&mut owner, &mut other).await;
        assert_ne!(again[0].0.job, late.job, "the dead one's job is another's now");
        other.answer(vec![(again[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        zombie.lock().await.answer(vec![(late, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

/// Lesson 3: a job was recovered three seconds after its start, while it still ran.
#[test]
fn lesson_03_a_job_taken_a_moment_ago_is_not_recovered_by_a_coordinator_that_starts() {
    on_memory(async |mut w| {
        w.submit(&chain(1)).await;
        let (mut owner, mut worker, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        // Long before the observer begins to look; and the worker has not beaten since it took the job.
        pass(20).await;
        let _observer = observe(w.dial.clone());
        pass(3).await;
        beats(&mut w, &worker, &[&of], 0, 45).await;
        w.turns(&mut owner, 3).await;
        assert!(other.take(10).await.unwrap_or_default().is_empty(), "it is its worker's");
    });
}

/// Lesson 9: a new process under the name of a dead one kept the jobs of the dead alive for ever.
#[test]
fn lesson_09_a_worker_that_comes_back_under_its_old_name_does_not_keep_the_jobs_of_the_dead_one() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut dead, mut back) = (w.own().await, w.worker(1), w.worker(2));
        let name = |worker: &stepfleet_protocol::id::WorkerId| worker.as_str().split('@').next().map(str::to_string);
        assert!(name(&dead.id) == name(&back.id) && dead.id != back.id, "one name, two boots");
        let (of, _) = w.jobs(&mut owner, &mut dead).await.swap_remove(0);
        beat(&mut w, &dead, &[&of], 1).await;
        let _observer = observe(w.dial.clone());
        beats(&mut w, &back, &[], 0, 40).await;
        let again = w.jobs(&mut owner, &mut back).await;
        assert_ne!(again[0].0.job, of.job);
        back.answer(vec![(again[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

fn long(timeout: &str) -> Workflow {
    let plan = serde_json::json!({ "workflow": "long", "timeout": "10d", "steps":
        { "work": { "handler": "noop", "timeout": timeout, "retry": { "max_attempts": 2 } } } });
    serde_json::from_value(plan).expect("a legal workflow")
}

async fn started(w: &mut World<impl Dial>, worker: &crate::fleet::Worker<impl Dial>, of: &JobRef) {
    let started = Started { worker: worker.id.clone(), jobs: vec![(of.clone(), 1_000)] };
    w.client.append(Body::Started(started)).await.expect("up");
}

/// Lesson 12: a visibility time-out of an hour ran long jobs again and again.
#[test]
fn lesson_11_a_job_of_ninety_minutes_runs_once_while_its_worker_beats() {
    on_memory(async |mut w| {
        let run = w.submit(&long("5h")).await;
        let (mut owner, mut worker, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        started(&mut w, &worker, &of).await;
        let _observer = observe(w.dial.clone());
        let mut n = 0;
        for _ in 0..9 {
            n = beats(&mut w, &worker, &[&of], n, 600).await;
            w.turns(&mut owner, 3).await;
            assert!(other.take(10).await.unwrap_or_default().is_empty(), "it is its worker's");
        }
        worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
        let step = w.stored(run).await.steps[&0];
        assert_eq!((step.attempts, step.losses), (0, 0), "no other try was spent");
    });
}

/// Lesson 12: delayed jobs sat in a pending list, whose time-out delivered them again.
async fn lesson_12_a_retry_that_waits_for_an_hour_is_pending_at_nobody<D: Dial>(mut w: World<D>) {
    let run = w.submit(&long("5h")).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    let mut failure = Failure::new(Category::RateLimited, "429");
    failure.retry_after_ms = Some(3_600_000);
    worker.answer(vec![(of, Outcome::Failed(failure))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.stored(run).await.steps[&0].state, State::Retrying);
    let groups = w.one(&[b"XINFO", b"GROUPS", stream().as_bytes()]).await;
    assert_eq!(
        stepfleet_coordinator::shell::upkeep::outstanding(&groups),
        Some(0),
        "nothing is delivered or waits to be"
    );
    let ready = keys().ready(&Name::new("default").expect("a legal name"));
    assert_eq!(w.number(&["ZCARD", &ready]).await, 0);
    assert_eq!(w.number(&["ZCARD", &keys().timers()]).await, 2, "the retry and the run's limit");
}

/// Lesson 5: a heartbeat renewed the lease of a job whose executor was gone, past every limit.
#[test]
fn lesson_05_a_worker_that_beats_on_does_not_keep_a_job_past_its_limit() {
    on_memory(async |mut w| {
        let run = w.submit(&long("60s")).await;
        let (mut owner, mut worker, mut other) = (w.own().await, w.worker(1), w.worker(2));
        let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
        started(&mut w, &worker, &of).await;
        w.turns(&mut owner, 2).await;
        let _observer = observe(w.dial.clone());
        // It never tells how the attempt ended, and names the job in each of its beats.
        let mut n = 0;
        let again = loop {
            n = beats(&mut w, &worker, &[&of], n, 1).await;
            owner.turn(false).await.expect("no faults");
            let jobs = other.take(1).await.unwrap_or_default();
            if let Some((of, job)) = jobs.into_iter().next() {
                break (of, job);
            }
            assert!(n < 1_000, "the job is kept for {n} beats");
        };
        assert_eq!(again.1.attempt, 2, "the attempt that ran past its limit counts");
        other.answer(vec![(again.0, Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
    });
}

/// Lesson 6: the stream of a deaf worker had ended while its heartbeats went on. Its job comes back all the same.
#[test]
fn lesson_06_a_job_that_a_deaf_worker_never_heard_of_goes_to_another() {
    on_memory(async |mut w| {
        let run = w.submit(&chain(1)).await;
        let (mut owner, mut deaf, mut other) = (w.own().await, w.worker(1), w.worker(2));
        w.jobs(&mut owner, &mut deaf).await;
        let _observer = observe(w.dial.clone());
        beats(&mut w, &deaf, &[], 0, 45).await;
        let again = w.jobs(&mut owner, &mut other).await;
        other.answer(vec![(again[0].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        assert_eq!(w.state(run).await, Some(State::Completed));
        assert_eq!(w.stored(run).await.steps[&0].losses, 0, "nothing was lost by anybody's fault");
    });
}
