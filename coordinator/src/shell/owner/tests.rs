//! What follows from a bug: a panic while an input is made ends as a quarantined entry with its run held, and the partition
//! goes on. The traps that panic exist in this program of tests only.

use std::time::Duration;

use stepfleet_protocol::{
    message::{Answer, Outcome, Verb},
    name::Name,
    state::State,
    workflow::Workflow,
};
use tokio_util::sync::CancellationToken;

use super::{Memory, Owner, OwnerError};
use crate::{
    shell::{
        fleet::{self as process, Config},
        inputs::traps,
        metrics::Metrics,
    },
    store::{
        link::Dial,
        memory::{Clock, MemoryDial, MemoryLink, MemoryServer},
        reply,
    },
};

#[expect(dead_code, reason = "shared with the simulation, which uses other parts of it")]
#[path = "../../../tests/simulation/fleet.rs"]
mod fleet;

use fleet::{Client, PARTITION, Worker, all_keys, chain, keys, own, stored};

const TRAP: &str = "trap";

/// A step before one whose input makes the program panic.
fn trapped() -> Workflow {
    let steps = serde_json::json!({
        "a": {"handler": "noop"},
        "b": {"handler": TRAP, "needs": ["a"], "with": {"text": "${{ input }}!"}},
    });
    serde_json::from_value(serde_json::json!({"workflow": "trapped", "steps": steps})).expect("a legal workflow")
}

fn set_trap(on: bool) {
    traps::SET.set(on.then(|| Name::new(TRAP).expect("a legal name")));
}

/// A partition, and owners that follow each other as in the process.
struct Reigns {
    dial: MemoryDial,
    client: Client<MemoryDial>,
    worker: Worker<MemoryDial>,
    owner: Option<Owner<MemoryLink>>,
    memory: Memory,
    ended: Vec<OwnerError>,
}

impl Reigns {
    fn new() -> Self {
        let dial = MemoryServer::new(Clock::default()).dial();
        let (client, worker) = (Client::new(dial.clone(), 1), Worker::new(dial.clone(), 1));
        Self { dial, client, worker, owner: None, memory: Memory::default(), ended: Vec::new() }
    }

    /// Some turns of whoever owns the partition, and a worker that does every job.
    async fn go_on(&mut self) {
        for _ in 0..40 {
            if self.owner.is_none() {
                let reign = self.ended.len() as u64 + 1;
                self.owner = Some(own(&self.dial, reign, self.memory.clone()).await.expect("nobody else owns it"));
            }
            let owner = self.owner.as_mut().expect("just taken");
            if let Err(error) = owner.turn(false).await {
                self.memory = owner.memory();
                self.memory.learn(&error);
                self.ended.push(error);
                self.owner = None;
            }
            let jobs = self.worker.take(10).await.unwrap_or_default();
            if !jobs.is_empty() {
                let done = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect();
                self.worker.answer(done).await.expect("no faults");
            }
        }
    }

    async fn submit(&mut self, workflow: &Workflow) -> stepfleet_protocol::id::RunId {
        let run = self.client.run_id();
        self.client.submit(run, workflow, Some(&"hello".into()), false).await.expect("no faults");
        run
    }

    async fn state(&mut self, run: stepfleet_protocol::id::RunId) -> Option<State> {
        stored(&mut self.client, run).await.expect("no faults").map(|s| s.record.state)
    }

    async fn number(&mut self, words: &[&str]) -> Option<i64> {
        let mut pipe = redis::pipe();
        pipe.cmd(words[0]).arg(&words[1..]);
        reply::number(&self.client.trip(&pipe).await.expect("no faults")[0])
    }
}

fn paused<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    rt.expect("a runtime").block_on(future)
}

#[test]
fn trap_13_a_panic_over_an_input_holds_its_run_and_loses_nothing_and_the_next_owner_goes_on() {
    paused(async {
        set_trap(true);
        let mut w = Reigns::new();
        let (hit, other) = (w.submit(&trapped()).await, w.submit(&chain(3)).await);
        w.go_on().await;
        assert!(matches!(w.ended[..], [OwnerError::Poison(_)]), "one reign ends, and no more: {:?}", w.ended);
        assert_eq!((w.state(hit).await, w.state(other).await), (Some(State::Suspended), Some(State::Completed)));
        let steps = stored(&mut w.client, hit).await.expect("no faults").expect("it is stored").steps;
        assert_eq!((steps[&0].state, steps[&1].state), (State::Completed, State::Suspended), "the result counts");
        assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, Some(1));
        assert!(w.memory.held.len() <= 1 && w.memory.poison.is_empty());

        // Still broken: the wish to resume ends another reign, and is refused.
        let id = w.client.command(hit, Verb::Resume).await.expect("no faults");
        w.go_on().await;
        assert_eq!((w.ended.len(), w.state(hit).await), (2, Some(State::Suspended)));
        let mut get = redis::pipe();
        get.cmd("GET").arg(keys().reply(&id));
        let answer = w.client.trip(&get).await.expect("no faults");
        let answer: stepfleet_protocol::message::Reply =
            stepfleet_protocol::codec::unpack(reply::bytes(&answer[0]).expect("an answer")).expect("a reply of ours");
        assert!(matches!(&answer.answers[..], [Answer::Refused { code, .. }] if code == "undecidable"));

        // The program is mended.
        set_trap(false);
        w.client.command(hit, Verb::Resume).await.expect("no faults");
        w.go_on().await;
        assert_eq!((w.ended.len(), w.state(hit).await), (2, Some(State::Completed)));
    });
}

#[test]
fn trap_13_a_panic_over_the_first_input_of_a_run_refuses_the_run() {
    paused(async {
        set_trap(true);
        let mut w = Reigns::new();
        let first: Workflow = serde_json::from_value(
            serde_json::json!({"workflow": "first", "steps": {"a": {"handler": TRAP, "with": {"x": "${{ input }}"}}}}),
        )
        .expect("a legal workflow");
        let (hit, other) = (w.submit(&first).await, w.submit(&chain(1)).await);
        w.go_on().await;
        assert_eq!((w.state(hit).await, w.state(other).await), (None, Some(State::Completed)));
        assert_eq!((w.ended.len(), w.number(&["XLEN", &keys().quarantine()]).await), (1, Some(1)));
        set_trap(false);
    });
}

#[test]
fn trap_13_two_bad_inputs_of_one_batch_end_two_reigns_and_not_all_of_them() {
    paused(async {
        set_trap(true);
        let mut w = Reigns::new();
        let runs = [w.submit(&trapped()).await, w.submit(&trapped()).await, w.submit(&chain(1)).await];
        w.go_on().await;
        assert_eq!(w.ended.len(), 2, "{:?}", w.ended);
        let mut states = Vec::new();
        for run in runs {
            states.push(w.state(run).await.expect("it is stored"));
        }
        assert_eq!(states, [State::Suspended, State::Suspended, State::Completed]);
        set_trap(false);
    });
}

#[test]
fn trap_13_the_process_keeps_its_partition_when_an_input_makes_it_panic() {
    paused(async {
        set_trap(true);
        let dial = MemoryServer::new(Clock::default()).dial();
        let stop = CancellationToken::new();
        let config = Config {
            name: "c@000000000001".into(),
            keys: all_keys(),
            partitions: 1,
            retention: crate::shell::retention::Retention::default(),
            dispatcher: None,
            spans: crate::shell::spans::Spans::default(),
            pods: crate::shell::observer::Pods::default(),
        };
        let process = tokio::spawn(process::run(dial.clone(), config, Metrics::new(), stop.clone()));
        let (mut client, mut worker) = (Client::new(dial.clone(), 1), Worker::new(dial.clone(), 1));
        let (hit, other) = (client.run_id(), client.run_id());
        client.submit(hit, &trapped(), None, false).await.expect("no faults");
        let begun = tokio::time::Instant::now();
        let mut sent = false;
        loop {
            let jobs = worker.take(10).await.unwrap_or_default();
            if !jobs.is_empty() {
                let done = jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect();
                worker.answer(done).await.expect("no faults");
            }
            let state = stored(&mut client, hit).await.expect("no faults").map(|s| s.record.state);
            if state == Some(State::Suspended) && !std::mem::replace(&mut sent, true) {
                client.submit(other, &chain(1), None, false).await.expect("no faults");
            }
            let state = stored(&mut client, other).await.expect("no faults").map(|s| s.record.state);
            if state == Some(State::Completed) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the partition is left alone");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
        process.await.expect("the process ends");
        set_trap(false);
        drop(dial.dial(stepfleet_protocol::keys::slot(PARTITION), Duration::from_secs(1)).await);
    });
}
