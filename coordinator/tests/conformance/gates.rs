//! Gates: what they hold back waits and is never lost, and no attempt is spent on it.

use std::{collections::BTreeMap, sync::Arc};

use stepfleet_coordinator::{
    shell::{
        gates::{Inbox, Link, Say, View},
        owner::Owner,
    },
    store::link::Dial,
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    gate::{Gate, GateState, Stand},
    id::RunId,
    message::{Job, JobRef, Outcome, Returned, Verb},
    name::Name,
    state::State,
    workflow::Workflow,
};
use tokio::sync::{mpsc, watch};

use crate::{
    both,
    fleet::{Worker, keys, workflow},
    world::World,
};

both! {
    what_an_open_breaker_holds_back_waits_without_an_attempt_and_goes_on_after_it,
    of_a_breaker_that_is_half_open_only_the_canaries_reach_the_dependency,
    a_recovery_releases_in_growing_waves,
    what_is_parked_is_found_by_the_next_owner,
    a_parked_step_can_be_cancelled_and_its_run_suspended,
    a_fallback_does_the_step_while_the_breaker_is_open,
    of_a_target_that_is_rendered_only_its_own_steps_wait,
    a_paused_queue_gives_nothing_to_workers_and_a_job_handed_back_counts_nothing,
    trap_11_a_breaker_that_opens_before_twenty_thousand_steps_holds_all_but_a_window_back,
    trap_15_a_canary_whose_owner_died_holds_no_place_for_ever,
}

/// The gates as a test sets them, and what owners say.
struct Gates {
    view: watch::Sender<Arc<View>>,
    say: mpsc::UnboundedSender<Say>,
    heard: mpsc::UnboundedReceiver<Say>,
}

impl Gates {
    fn new() -> Self {
        let (say, heard) = mpsc::unbounded_channel();
        Self { view: watch::Sender::new(Arc::new(View::default())), say, heard }
    }

    fn attach<L: stepfleet_coordinator::store::link::Link>(&self, owner: &mut Owner<L>) {
        let inbox = Inbox::default();
        owner.attach(Link { view: self.view.subscribe(), say: self.say.clone(), inbox });
    }

    fn set(&self, gate: &Gate, stand: Option<Stand>, since_ms: u64) {
        let mut gates = BTreeMap::new();
        if let Some(stand) = stand {
            let text = String::new;
            gates.insert(
                gate.clone(),
                GateState { v: 1, stand, since_ms, until_ms: 0, canaries: 3, reason: text(), actor: text() },
            );
        }
        self.view.send_replace(Arc::new(View { gates, partitions: 1 }));
    }

    /// Grants what owners have wished for. Returns how many tokens that is.
    fn grant(&mut self) -> u32 {
        let mut granted = 0;
        while let Ok(said) = self.heard.try_recv() {
            if let Say::Wants(gate, count, inbox) = said {
                let tokens = (0..count).map(|n| format!("{granted}.{n}")).collect();
                inbox.lock().expect("nobody panics here").tokens.insert(gate, tokens);
                granted += count;
            }
        }
        granted
    }
}

pub(crate) fn noop() -> Gate {
    Gate::handler(&Name::new("noop").expect("a legal name"))
}

pub(crate) fn wide(n: usize) -> Workflow {
    let names: Vec<String> = (0..n).map(|i| format!("w{i}")).collect();
    workflow(&names.iter().map(|name| (name.as_str(), &[][..])).collect::<Vec<_>>())
}

fn read(value: serde_json::Value) -> Workflow {
    serde_json::from_value(value).expect("a legal workflow")
}

/// Turns, and takes what comes.
async fn taken<D: Dial>(
    w: &mut World<D>,
    owner: &mut Owner<D::Link>,
    worker: &mut Worker<D>,
    turns: usize,
) -> Vec<(JobRef, Job)> {
    let mut all = Vec::new();
    for _ in 0..turns {
        w.turns(owner, 1).await;
        all.extend(worker.take(1_000).await.unwrap_or_default());
    }
    all
}

async fn complete<D: Dial>(worker: &mut Worker<D>, jobs: &[(JobRef, Job)]) {
    for part in jobs.chunks(100) {
        let results = part.iter().map(|(of, _)| (of.clone(), Outcome::Completed(None))).collect();
        worker.answer(results).await.expect("no faults");
    }
}

async fn parked<D: Dial>(w: &mut World<D>, gate: &Gate) -> i64 {
    w.number(&["ZCARD", &keys().parked(gate)]).await
}

async fn what_an_open_breaker_holds_back_waits_without_an_attempt_and_goes_on_after_it<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    let run = w.submit(&workflow(&[("a", &[]), ("b", &["a"])])).await;
    let jobs = w.jobs(&mut owner, &mut worker).await;
    gates.set(&noop(), Some(Stand::Open), 1);
    // A failed attempt is retried when the breaker lets it; the one that was in flight counts.
    let failure = Failure { retry_after_ms: Some(0), ..Failure::new(Category::WorkerLost, "gone") };
    worker.answer(vec![(jobs[0].0.clone(), Outcome::Failed(failure))]).await.expect("no faults");
    assert!(taken(&mut w, &mut owner, &mut worker, 6).await.is_empty(), "nothing passes");
    assert_eq!(parked(&mut w, &noop()).await, 1);
    assert_eq!(w.number(&["SISMEMBER", &keys().gates(), noop().as_str()]).await, 1);
    let step = w.stored(run).await.steps[&0];
    assert_eq!((step.state, step.attempts, step.in_flight), (State::Queued, 1, false));
    gates.set(&noop(), None, 0);
    let done = w.finish(&mut owner, &mut worker, run).await;
    assert_eq!(done.iter().map(|job| (job.step.as_str(), job.attempt)).collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
    assert_eq!(parked(&mut w, &noop()).await, 0);
}

async fn of_a_breaker_that_is_half_open_only_the_canaries_reach_the_dependency<D: Dial>(mut w: World<D>) {
    let (mut gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let run = w.submit(&wide(50)).await;
    assert!(taken(&mut w, &mut owner, &mut worker, 5).await.is_empty());
    gates.set(&noop(), Some(Stand::HalfOpen), 2);
    assert!(taken(&mut w, &mut owner, &mut worker, 3).await.is_empty(), "nobody tries without a token");
    assert_eq!(gates.grant(), 3);
    let canaries = taken(&mut w, &mut owner, &mut worker, 8).await;
    assert_eq!(canaries.len(), 3);
    assert!(canaries.iter().all(|(_, job)| job.canary), "and workers know that they try");
    complete(&mut worker, &canaries).await;
    w.turns(&mut owner, 3).await;
    let mut verdicts = 0;
    while let Ok(said) = gates.heard.try_recv() {
        verdicts += usize::from(matches!(said, Say::Canary(_, _, stepfleet_coordinator::shell::gates::Verdict::Ok)));
    }
    assert_eq!(verdicts, 3);
    assert_eq!(parked(&mut w, &noop()).await, 47);
    gates.set(&noop(), None, 0);
    let done = w.finish(&mut owner, &mut worker, run).await;
    assert_eq!((done.len(), done.iter().filter(|job| job.canary).count()), (47, 0));
}

async fn a_recovery_releases_in_growing_waves<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let run = w.submit(&wide(200)).await;
    assert!(taken(&mut w, &mut owner, &mut worker, 8).await.is_empty());
    let since = owner.server_ms;
    gates.set(&noop(), Some(Stand::Recovering), since);
    let mut passed = Vec::new();
    let mut most = 0;
    for _ in 0..400 {
        let jobs = taken(&mut w, &mut owner, &mut worker, 1).await;
        complete(&mut worker, &jobs).await;
        passed.extend(jobs);
        let wave = (owner.server_ms - since) / 1_000;
        // One look may be under way while the clock passes a second.
        most = most.max(passed.len());
        assert!(passed.len() as u64 <= 3 << (wave + 1).min(20), "{} passed in wave {wave}", passed.len());
        if owner.server_ms > since + 2_200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!((6..200).contains(&most), "{most} passed in two seconds");
    gates.set(&noop(), None, 0);
    let rest = w.finish(&mut owner, &mut worker, run).await;
    assert_eq!(rest.len() + passed.len(), 200);
}

async fn what_is_parked_is_found_by_the_next_owner<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let run = w.submit(&wide(30)).await;
    assert!(taken(&mut w, &mut owner, &mut worker, 5).await.is_empty());
    let mut next = w.own().await;
    gates.attach(&mut next);
    assert!(taken(&mut w, &mut next, &mut worker, 5).await.is_empty(), "it is open still");
    gates.set(&noop(), None, 0);
    assert_eq!(w.finish(&mut next, &mut worker, run).await.len(), 30);
    let mut last = w.own().await;
    gates.attach(&mut last);
    for _ in 0..60 {
        w.turns(&mut last, 1).await;
        if w.number(&["SCARD", &keys().gates()]).await == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the name of a gate where nobody is parked stays");
}

async fn a_parked_step_can_be_cancelled_and_its_run_suspended<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let [cancelled, suspended] = [w.submit(&wide(3)).await, w.submit(&wide(3)).await];
    assert!(taken(&mut w, &mut owner, &mut worker, 5).await.is_empty());
    assert_eq!(parked(&mut w, &noop()).await, 6);
    w.client.command(cancelled, Verb::Cancel).await.expect("no faults");
    w.client.command(suspended, Verb::Suspend { now: false }).await.expect("no faults");
    w.turns(&mut owner, 4).await;
    assert_eq!(w.state(cancelled).await, Some(State::Cancelled));
    assert_eq!(parked(&mut w, &noop()).await, 3, "a cancelled step leaves the gate");
    gates.set(&noop(), None, 0);
    assert!(taken(&mut w, &mut owner, &mut worker, 8).await.is_empty(), "a run that is held stays held");
    w.client.command(suspended, Verb::Resume).await.expect("no faults");
    assert_eq!(w.finish(&mut owner, &mut worker, suspended).await.len(), 3);
}

async fn a_fallback_does_the_step_while_the_breaker_is_open<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let steps = serde_json::json!({
        "known": { "handler": "noop", "fallback": { "handler": "cached" } },
        "made": { "handler": "noop", "breaker": "${{ 'x' }}", "fallback": { "handler": "cached" } },
    });
    let run = w.submit(&read(serde_json::json!({ "workflow": "w", "steps": steps }))).await;
    let done = w.finish(&mut owner, &mut worker, run).await;
    let by: BTreeMap<&str, &str> = done.iter().map(|job| (job.step.as_str(), job.handler.as_str())).collect();
    assert_eq!(by, BTreeMap::from([("known", "cached"), ("made", "noop")]), "the other target is not open");
    let history = w.stored(run).await.history;
    let fell = history.iter().filter(|t| t.why == stepfleet_coordinator::machine::decision::Why::FellBack).count();
    assert_eq!(fell, 1, "the history says who did it");
}

async fn of_a_target_that_is_rendered_only_its_own_steps_wait<D: Dial>(mut w: World<D>) {
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    let bank = Gate::target("bank.example");
    gates.set(&bank, Some(Stand::Open), 1);
    let plan = read(serde_json::json!({ "workflow": "w", "steps": {
        "pay": { "handler": "noop", "breaker": "${{ input.host }}", "with": { "to": "${{ input.host }}" } },
        "rest": { "handler": "noop" },
    }}));
    let mut runs: Vec<RunId> = Vec::new();
    for host in ["bank.example", "shop.example"] {
        let run = w.client.run_id();
        w.client.submit(run, &plan, Some(&serde_json::json!({ "host": host })), false).await.expect("no faults");
        runs.push(run);
    }
    let jobs = taken(&mut w, &mut owner, &mut worker, 8).await;
    let passed: Vec<(bool, &str)> = jobs.iter().map(|(_, job)| (job.run == runs[0], job.step.as_str())).collect();
    assert_eq!(passed.len(), 3, "{passed:?}");
    assert!(!passed.contains(&(true, "pay")), "{passed:?}");
    let named = jobs.iter().find(|(_, job)| job.step.as_str() == "pay").and_then(|(_, job)| job.gate.clone());
    assert_eq!(named, Some(Gate::target("shop.example")), "a worker knows what the job stands behind");
    complete(&mut worker, &jobs).await;
    w.turns(&mut owner, 2).await;
    assert_eq!((w.state(runs[1]).await, parked(&mut w, &bank).await), (Some(State::Completed), 1));
    gates.set(&bank, None, 0);
    assert_eq!(w.finish(&mut owner, &mut worker, runs[0]).await.len(), 1);
}

async fn a_paused_queue_gives_nothing_to_workers_and_a_job_handed_back_counts_nothing<D: Dial>(mut w: World<D>) {
    let (mut gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    let run = w.submit(&workflow(&[("a", &[]), ("b", &["a"])])).await;
    let jobs = w.jobs(&mut owner, &mut worker).await;
    let queue = Gate::queue(&Name::new("default").expect("a legal name"));
    gates.set(&queue, Some(Stand::Paused), 1);
    worker.answer(vec![(jobs[0].0.clone(), Outcome::Returned(Returned::Gated))]).await.expect("no faults");
    assert!(taken(&mut w, &mut owner, &mut worker, 6).await.is_empty());
    assert_eq!(w.stored(run).await.steps[&0].attempts, 0);
    let mut looks = 0;
    while let Ok(said) = gates.heard.try_recv() {
        looks += usize::from(matches!(said, Say::Look));
    }
    assert_eq!(looks, 1, "a worker may know more than the owner");
    gates.set(&queue, None, 0);
    let done = w.finish(&mut owner, &mut worker, run).await;
    assert_eq!(done.iter().map(|job| job.attempt).collect::<Vec<_>>(), [1, 1]);
}

async fn trap_11_a_breaker_that_opens_before_twenty_thousand_steps_holds_all_but_a_window_back<D: Dial>(
    mut w: World<D>,
) {
    const STEPS: usize = 20_000;
    let (gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    let run = w.submit(&wide(STEPS)).await;
    w.turns(&mut owner, 5).await;
    gates.set(&noop(), Some(Stand::Open), 1);
    let mut longest = std::time::Duration::ZERO;
    let mut on_stream = 0;
    for _ in 0..2_000 {
        let begun = std::time::Instant::now();
        w.turns(&mut owner, 1).await;
        longest = longest.max(begun.elapsed());
        let jobs = worker.take(1_000).await.unwrap_or_default();
        on_stream += jobs.len();
        // What came before is handed back by workers.
        for part in jobs.chunks(100) {
            let back = part.iter().map(|(of, _)| (of.clone(), Outcome::Returned(Returned::Gated))).collect();
            worker.answer(back).await.expect("no faults");
        }
        if parked(&mut w, &noop()).await == STEPS as i64 {
            break;
        }
    }
    assert_eq!(parked(&mut w, &noop()).await, STEPS as i64, "every step is parked");
    assert!(on_stream <= 512, "{on_stream} jobs were on the stream");
    assert!(longest < std::time::Duration::from_secs(2), "a turn took {longest:?}");
    gates.set(&noop(), None, 0);
    let mut done = 0;
    for _ in 0..4_000 {
        let jobs = taken(&mut w, &mut owner, &mut worker, 1).await;
        complete(&mut worker, &jobs).await;
        done += jobs.len();
        if done == STEPS {
            break;
        }
    }
    assert_eq!(done, STEPS);
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
}

async fn trap_15_a_canary_whose_owner_died_holds_no_place_for_ever<D: Dial>(mut w: World<D>) {
    let (mut gates, mut owner, mut worker) = (Gates::new(), w.own().await, w.worker(1));
    gates.attach(&mut owner);
    gates.set(&noop(), Some(Stand::Open), 1);
    let run = w.submit(&wide(10)).await;
    assert!(taken(&mut w, &mut owner, &mut worker, 5).await.is_empty());
    gates.set(&noop(), Some(Stand::HalfOpen), 2);
    w.turns(&mut owner, 2).await;
    assert_eq!(gates.grant(), 3);
    let canaries = taken(&mut w, &mut owner, &mut worker, 6).await;
    assert_eq!(canaries.len(), 3);
    gates.grant();
    // The owner is gone with what it knew of tokens; the next one asks again, and the step goes on with its job.
    let mut next = w.own().await;
    gates.attach(&mut next);
    complete(&mut worker, &canaries).await;
    w.turns(&mut next, 4).await;
    assert_eq!(gates.grant(), 3, "it wishes for tokens of its own");
    let more = taken(&mut w, &mut next, &mut worker, 6).await;
    assert_eq!(more.len(), 3);
    complete(&mut worker, &more).await;
    gates.set(&noop(), None, 0);
    assert_eq!(w.finish(&mut next, &mut worker, run).await.len(), 4);
}
