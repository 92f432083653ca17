//! Retention: what is beyond it goes, with everything that is its own, and nothing else does.

use std::time::Duration;

use stepfleet_coordinator::{
    shell::{
        owner::Owner,
        retention::{Expired, Retention},
    },
    store::{link::Dial, reply, workflows},
};
use stepfleet_protocol::{
    codec,
    failure::{Category, Failure},
    id::{RunId, StreamId},
    message::{Answer, Body, NewRun, Outcome, Submit, Verb},
    state::State,
    value::{Payload, ValueRef},
    workflow::Workflow,
};
use tokio::time::advance;

use crate::{
    both,
    bounds::{keys_of, slow, watch_slow},
    fleet::{chain, keys},
    world::{World, on_memory, on_real_alone},
};

both! {
    what_is_beyond_retention_leaves_no_key,
    retention_by_count_keeps_the_newest,
    the_oldest_letters_beyond_their_number_go_and_their_steps_forget_them,
    a_letter_that_expired_is_not_replayed_but_its_step_can_be_retried,
    a_failed_run_that_expires_takes_its_letters_along,
    one_commit_deletes_a_few_hundred_letters_and_the_next_ones_go_on,
    the_outbox_keeps_its_newest_entries_and_counts_the_others,
}

impl<D: Dial> World<D> {
    /// A fresh owner, which looks at once, has done so and has committed.
    pub(crate) async fn expire(&mut self, retention: Retention) -> Owner<D::Link> {
        let mut owner = self.own().await;
        owner.configure(false, retention);
        self.turns(&mut owner, 3).await;
        owner
    }

    /// A counter of the partition.
    pub(crate) async fn counter(&mut self, name: &str) -> i64 {
        let value = self.one(&[b"HGET", keys().counters().as_bytes(), name.as_bytes()]).await;
        reply::number(&value).unwrap_or(0)
    }

    /// A run of one step that gave up, with its letter.
    pub(crate) async fn failed(&mut self) -> (RunId, StreamId) {
        let run = self.submit(&chain(1)).await;
        let (mut owner, mut worker) = (self.own().await, self.worker(1));
        let (of, _) = self.jobs(&mut owner, &mut worker).await.swap_remove(0);
        let failure = Outcome::Failed(Failure::new(Category::Permanent, "no"));
        worker.answer(vec![(of, failure)]).await.expect("up");
        self.turns(&mut owner, 3).await;
        assert_eq!(self.state(run).await, Some(State::Failed));
        (run, self.letter(run).await.expect("a step that gave up has a letter"))
    }

    async fn letter(&mut self, run: RunId) -> Option<StreamId> {
        self.stored(run).await.steps[&0].letter
    }

    pub(crate) async fn letters(&mut self) -> i64 {
        self.number(&["XLEN", &keys().dead()]).await
    }
}

/// A run with an input, a large rendered input, an output, a failed attempt: everything that a run can leave behind.
async fn rich<D: Dial>(w: &mut World<D>) -> RunId {
    let text = format!("{} ${{{{ steps.a.output }}}}", "x".repeat(20_000));
    let workflow = serde_json::json!({"workflow": "rich", "steps": {
        "a": {"handler": "noop", "with": "${{ input }}", "retry": {"backoff": {"base": "1ms", "jitter": "none"}}},
        "b": {"handler": "noop", "needs": ["a"], "with": {"text": text}},
    }});
    let workflow: Workflow = serde_json::from_value(workflow).expect("a legal workflow");
    let run = w.client.run_id();
    w.client.submit(run, &workflow, Some(&serde_json::json!("hello")), false).await.expect("up");
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    // A detail of a failure that is too large for the message, as a worker writes it.
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    let detail = keys().value(of.job);
    w.one(&[b"SET", detail.as_bytes(), &[b'x'; 20_000]]).await;
    // As a worker records an external call.
    w.one(&[b"HSET", keys().calls(&run).as_bytes(), b"0.1.1.1", b"a record"]).await;
    let mut failure = Failure::new(Category::Permanent, "no luck");
    failure.retryable = Some(true);
    failure.detail = Some(Payload::Ref(ValueRef { id: of.job.to_string(), bytes: 20_000 }));
    worker.answer(vec![(of, Outcome::Failed(failure))]).await.expect("up");
    for _ in 0..2 {
        let jobs = w.jobs(&mut owner, &mut worker).await;
        let output = Payload::Inline(codec::pack("out").into());
        let done = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(Some(output.clone()))));
        worker.answer(done.collect()).await.expect("up");
    }
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
    run
}

async fn what_is_beyond_retention_leaves_no_key<D: Dial>(mut w: World<D>) {
    let run = rich(&mut w).await;
    assert!(keys_of(&mut w, run).await.len() >= 3);
    let mut owner = w.own().await;
    owner.configure(false, Retention { completed_ms: 0, ..Retention::default() });
    w.turns(&mut owner, 5).await;
    assert_eq!(keys_of(&mut w, run).await, Vec::<String>::new());
    assert_eq!(owner.done.expired.runs, 1);
    let values = w.one(&[b"KEYS", keys().value("*").replace(['{', '}'], "?").as_bytes()]).await;
    assert_eq!(reply::array(&values).map(<[_]>::len), Some(0), "{values:?}");
}

async fn retention_by_count_keeps_the_newest<D: Dial>(mut w: World<D>) {
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let mut runs = Vec::new();
    for _ in 0..5 {
        let run = w.submit(&chain(1)).await;
        w.finish(&mut owner, &mut worker, run).await;
        // The listing is by time: two runs of one millisecond have no order.
        while w.number(&["ZCOUNT", &keys().runs(State::Completed), "-inf", "+inf"]).await == 0 {}
        runs.push(run);
    }
    let mut owner = w.own().await;
    owner.configure(false, Retention { runs_max: 2, ..Retention::default() });
    w.turns(&mut owner, 5).await;
    let mut left = 0;
    for run in &runs {
        left += usize::from(w.state(*run).await.is_some());
    }
    assert_eq!((left, owner.done.expired.runs), (2, 3));
    assert!(w.state(runs[4]).await.is_some() || w.state(runs[3]).await.is_some());
}

async fn the_oldest_letters_beyond_their_number_go_and_their_steps_forget_them<D: Dial>(mut w: World<D>) {
    let (mut runs, mut letters) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (run, letter) = w.failed().await;
        runs.push(run);
        letters.push(letter);
    }
    // One of them is in the mind of the owner, by a command that it refuses; the others are only stored.
    w.client.command(runs[1], Verb::Resume).await.expect("up");
    let owner = w.expire(Retention { letters_max: 1, ..Retention::default() }).await;
    assert_eq!(owner.done.expired, Expired { letters: 3, ..Expired::default() });
    assert_eq!((w.letters().await, w.counter("expired_letters").await), (1, 3));
    let mut left = Vec::new();
    for run in &runs {
        left.push(w.letter(*run).await);
    }
    assert_eq!(left, [None, None, None, Some(letters[3])]);
    let states = w.stored(runs[0]).await;
    assert_eq!((states.record.state, states.steps[&0].state), (State::Failed, State::Failed), "nothing else changed");
}

#[test]
fn letters_beyond_their_age_go_and_younger_ones_stay() {
    on_memory(async |mut w| {
        let (old, _) = w.failed().await;
        advance(Duration::from_secs(3_600)).await;
        let (young, letter) = w.failed().await;
        let keep_ms = |ms| Retention { letters_ms: ms, ..Retention::default() };
        w.expire(keep_ms(7_200_000)).await;
        assert_eq!(w.letters().await, 2, "none is too old");
        w.expire(keep_ms(3_000_000)).await;
        assert_eq!((w.letters().await, w.letter(old).await, w.letter(young).await), (1, None, Some(letter)));
    });
}

async fn a_letter_that_expired_is_not_replayed_but_its_step_can_be_retried<D: Dial>(mut w: World<D>) {
    let (run, letter) = w.failed().await;
    let mut owner = w.expire(Retention { letters_max: 0, ..Retention::default() }).await;
    let replay = Verb::Replay { index: 0, letter, input: None };
    let replay = w.client.command(run, replay).await.expect("up");
    w.turns(&mut owner, 2).await;
    let answer = w.answer(&replay).await.map(|mut reply| reply.answers.remove(0));
    assert!(matches!(answer, Some(Answer::Conflict { state: State::Failed, .. })), "{answer:?}");
    w.client.command(run, Verb::Retry).await.expect("up");
    w.turns(&mut owner, 2).await;
    let mut worker = w.worker(1);
    assert_eq!(w.finish(&mut owner, &mut worker, run).await.len(), 1);
    assert_eq!(w.state(run).await, Some(State::Completed));
}

async fn a_failed_run_that_expires_takes_its_letters_along<D: Dial>(mut w: World<D>) {
    let (run, _) = w.failed().await;
    let owner = w.expire(Retention { completed_ms: 0, ..Retention::default() }).await;
    assert_eq!(owner.done.expired, Expired { runs: 1, letters: 1, ..Expired::default() });
    assert_eq!((w.state(run).await, w.letters().await, w.counter("expired_letters").await), (None, 0, 1));
}

async fn one_commit_deletes_a_few_hundred_letters_and_the_next_ones_go_on<D: Dial>(mut w: World<D>) {
    let mut write = redis::pipe();
    for n in 1..=1_500 {
        write.cmd("XADD").arg(keys().dead()).arg(format!("{n}-1")).arg("m").arg("no letter at all");
    }
    w.client.trip(&write).await.expect("up");
    let mut owner = w.own().await;
    owner.configure(false, Retention { letters_max: 100, letters_ms: u64::MAX, ..Retention::default() });
    let (mut left, mut commits) = (1_500, 0);
    for _ in 0..20 {
        w.turns(&mut owner, 1).await;
        let now = w.letters().await;
        assert!(left - now <= 420, "{} letters in one commit", left - now);
        commits += i64::from(now < left);
        left = now;
    }
    assert_eq!((left, w.counter("expired_letters").await), (100, 1_400));
    assert!(commits >= 4, "in {commits} commits");
}

async fn the_outbox_keeps_its_newest_entries_and_counts_the_others<D: Dial>(mut w: World<D>) {
    let mut write = redis::pipe();
    for n in 1..=1_000 {
        write.cmd("XADD").arg(keys().events()).arg(format!("{n}-1")).arg("m").arg("x");
    }
    w.client.trip(&write).await.expect("up");
    let owner = w.expire(Retention { events_max: 300, ..Retention::default() }).await;
    let left = w.number(&["XLEN", &keys().events()]).await;
    // A server trims whole nodes of a hundred entries.
    assert!((300..400).contains(&left), "{left} are left");
    assert_eq!((w.counter("expired_events").await, owner.done.expired.events as i64), (1_000 - left, 1_000 - left));
}

/// One clean-up of a million and a half jobs held the server for 18 hours.
#[test]
fn lesson_25_what_retention_deletes_holds_the_server_never_long() -> anyhow::Result<()> {
    const LETTERS: u64 = 30_000;
    const RUNS: usize = 1_280;
    /// Twice the promise, in microseconds.
    const LIMIT_US: u32 = 10_000;
    on_real_alone(async |mut w| {
        let mut found = Vec::new();
        for _ in 0..3 {
            let time = w.one(&[b"TIME"]).await;
            let first_ms = reply::time_ms(&time).expect("a time") - LETTERS;
            for part in 0..LETTERS / 5_000 {
                let mut write = redis::pipe();
                for n in 1..=5_000 {
                    let id = StreamId { ms: first_ms + part * 5_000 + n, seq: 1 };
                    write.cmd("XADD").arg(keys().dead()).arg(id.to_string()).arg("m").arg("no letter at all");
                }
                w.client.trip(&write).await.expect("up");
            }
            let mut owner = w.own().await;
            let mut worker = w.worker(1);
            submit_many(&mut w, RUNS).await;
            let mut done = 0;
            while done < RUNS {
                owner.turn(false).await.expect("no faults");
                let jobs = worker.take(500).await.unwrap_or_default();
                done += jobs.len();
                for part in jobs.chunks(128) {
                    let results = part.iter().map(|(of, _)| (of.clone(), Outcome::Completed(None)));
                    worker.answer(results.collect()).await.expect("up");
                }
            }
            w.turns(&mut owner, 3).await;
            watch_slow(&mut w, LIMIT_US).await;
            drop(owner);
            let mut owner = w.own().await;
            owner.configure(false, Retention { completed_ms: 0, letters_max: 0, ..Retention::default() });
            for _ in 0..2_000 {
                owner.turn(false).await.expect("no faults");
                let left = w.number(&["XLEN", &keys().dead()]).await;
                if left == 0 && w.number(&["ZCARD", &keys().runs(State::Completed)]).await == 0 {
                    break;
                }
            }
            assert_eq!(owner.done.expired.letters, LETTERS);
            assert_eq!(owner.done.expired.runs, RUNS as u64);
            found = slow(&mut w, LIMIT_US).await;
            if found.is_empty() {
                break;
            }
            w.one(&[b"DEL", keys().dead().as_bytes()]).await;
        }
        assert_eq!(found, Vec::<String>::new());
    })
}

/// Submits runs of one step, 128 in an entry.
async fn submit_many<D: Dial>(w: &mut World<D>, runs: usize) {
    w.submit(&chain(1)).await;
    let plan = workflows::Stored::new(&chain(1)).hash;
    let ids: Vec<RunId> = (1..runs).map(|_| w.client.run_id()).collect();
    for part in ids.chunks(128) {
        let new = |run: &RunId| NewRun { run: *run, plan: plan.clone(), version: None, input: None, traceparent: None };
        let runs = part.iter().map(new).collect();
        let submit = Submit { id: w.client.command_id(), actor: "test".into(), runs, again: false };
        w.client.append(Body::Submit(submit)).await.expect("up");
    }
}
