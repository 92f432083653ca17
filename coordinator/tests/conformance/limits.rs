//! Limits: so many at once and no more, whoever dies; what waits is never lost.

use std::sync::Arc;

use stepfleet_coordinator::{
    machine::rules::Rules,
    shell::{
        gates::{Inbox, Link, Say, View},
        owner::Owner,
    },
    store::{
        limits::{Granted, Tell},
        link::Dial,
        reply,
    },
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    gate::{GateState, Stand},
    message::{Body, Job, JobRef, Lost, Outcome, Returned, Verb},
    policy::{LimitPolicy, Policies},
    rate::Rate,
    state::State,
};
use tokio::sync::{mpsc, watch};

use crate::{
    both,
    fleet::{Worker, keys, workflow},
    gates::{noop, wide},
    world::World,
};

both! {
    so_many_are_under_way_at_once_and_the_rest_waits_in_order,
    the_next_owner_knows_which_jobs_count,
    a_job_makes_place_however_it_ends,
    what_is_cancelled_while_it_waits_takes_no_place,
    a_limit_that_is_taken_away_holds_nothing_back,
    what_nobody_answers_is_asked_again_and_begins_nothing,
    what_parks_at_a_broken_circuit_holds_no_place_and_begins_when_it_closes,
    permits_that_nobody_can_use_hold_no_place,
}

fn rules(version: u64, concurrency: Option<u32>) -> Rules {
    let mut policies = Policies::default();
    if concurrency.is_some() {
        let limit = LimitPolicy { concurrency, ..LimitPolicy::default() };
        policies.limits.insert(noop().to_string(), limit);
    }
    Rules::new(version, policies)
}

/// Grants up to `most` permits to the one partition there is, as the script would.
struct Limiter {
    view: watch::Sender<Arc<View>>,
    say: mpsc::UnboundedSender<Say>,
    heard: mpsc::UnboundedReceiver<Say>,
    most: u64,
    asked: usize,
    /// The last that was told.
    told: Option<Tell>,
}

impl Limiter {
    fn new(most: u64) -> Self {
        let (say, heard) = mpsc::unbounded_channel();
        Self { view: watch::Sender::new(Arc::new(View::default())), say, heard, most, asked: 0, told: None }
    }

    fn attach<L: stepfleet_coordinator::store::link::Link>(&self, owner: &mut Owner<L>) {
        owner.attach(Link { view: self.view.subscribe(), say: self.say.clone(), inbox: Inbox::default() });
        owner.set_rules(rules(1, Some(self.most as u32)));
    }

    fn answer(&mut self) {
        while let Ok(said) = self.heard.try_recv() {
            if let Say::Share(gate, tell, inbox) = said {
                let granted = tell.want.min(self.most.saturating_sub(tell.used));
                let granted = Granted { used: tell.used, granted, keep: self.most, due_ms: 0 };
                inbox.lock().expect("nobody panics here").shares.push((gate, tell.call, Some(granted)));
                self.asked += 1;
                self.told = Some(tell);
            }
        }
    }
}

/// Turns, answers, and takes what comes.
async fn taken<D: Dial>(
    w: &mut World<D>,
    limiter: &mut Limiter,
    (owner, worker): (&mut Owner<D::Link>, &mut Worker<D>),
    turns: usize,
) -> Vec<(JobRef, Job)> {
    let mut all = Vec::new();
    for _ in 0..turns {
        w.turns(owner, 1).await;
        limiter.answer();
        all.extend(worker.take(1_000).await.unwrap_or_default());
    }
    all
}

async fn complete<D: Dial>(worker: &mut Worker<D>, jobs: &[(JobRef, Job)]) {
    let results = jobs.iter().map(|(of, _)| (of.clone(), Outcome::Completed(None))).collect();
    worker.answer(results).await.expect("no faults");
}

async fn held<D: Dial>(w: &mut World<D>) -> i64 {
    w.number(&["HLEN", &keys().held()]).await
}

async fn so_many_are_under_way_at_once_and_the_rest_waits_in_order<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(3), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let run = w.submit(&wide(12)).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 8).await;
        assert_eq!(jobs.len(), 3, "three at once");
        assert_eq!(held(&mut w).await, 3);
        order.extend(jobs.iter().map(|(_, job)| job.index));
        complete(&mut worker, &jobs).await;
    }
    assert_eq!(order, (0..12).collect::<Vec<_>>());
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
    assert_eq!((w.state(run).await, held(&mut w).await), (Some(State::Completed), 0));
    // A chain that has its place asks nobody.
    let asked = limiter.asked;
    let chain: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let needs: Vec<Vec<&str>> = (0..20).map(|i| if i == 0 { vec![] } else { vec![chain[i - 1].as_str()] }).collect();
    let steps: Vec<(&str, &[&str])> = chain.iter().map(String::as_str).zip(needs.iter().map(Vec::as_slice)).collect();
    w.submit(&workflow(&steps)).await;
    let mut done = 0;
    for _ in 0..100 {
        let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 1).await;
        done += jobs.len();
        if !jobs.is_empty() {
            complete(&mut worker, &jobs).await;
        }
    }
    assert_eq!(done, 20);
    assert!(limiter.asked - asked <= 10, "{} calls for a chain of twenty", limiter.asked - asked);
}

async fn the_next_owner_knows_which_jobs_count<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(4), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let run = w.submit(&wide(10)).await;
    let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 8).await;
    assert_eq!(jobs.len(), 4);
    let mut next = w.own().await;
    limiter.attach(&mut next);
    assert!(taken(&mut w, &mut limiter, (&mut next, &mut worker), 8).await.is_empty(), "four are under way still");
    complete(&mut worker, &jobs[..1]).await;
    assert_eq!(taken(&mut w, &mut limiter, (&mut next, &mut worker), 6).await.len(), 1);
    complete(&mut worker, &jobs[1..]).await;
    let mut left = 0;
    for _ in 0..10 {
        let jobs = taken(&mut w, &mut limiter, (&mut next, &mut worker), 4).await;
        assert!(held(&mut w).await <= 4);
        left += jobs.len();
        complete(&mut worker, &jobs).await;
    }
    assert_eq!(left, 5, "of ten four were done by the first owner and one was begun before");
    assert_eq!(w.stored(run).await.steps.values().filter(|step| step.attempts > 1).count(), 0);
}

async fn a_job_makes_place_however_it_ends<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(4), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let [run, stopped] = [w.submit(&wide(3)).await, w.submit(&wide(1)).await];
    let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 8).await;
    assert_eq!(jobs.len(), 4);
    let more = w.submit(&wide(4)).await;
    w.client.command(stopped, Verb::Cancel).await.expect("no faults");
    assert!(
        taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await.is_empty(),
        "one that is told to stop counts"
    );
    let of = |index: usize| jobs[index].0.clone();
    let place = jobs.iter().position(|(_, job)| job.run == stopped).expect("its job came");
    let others: Vec<usize> = (0..4).filter(|i| *i != place).collect();
    let late = Failure { retry_after_ms: Some(3_600_000), ..Failure::new(Category::Transient, "not now") };
    let lost = Lost { worker: worker.id.clone(), counted: true, jobs: vec![of(others[2])], seen: Vec::new() };
    worker.answer(vec![(of(place), Outcome::Cancelled), (of(others[0]), Outcome::Failed(late))]).await.expect("up");
    worker.answer(vec![(of(others[1]), Outcome::Returned(Returned::Drain))]).await.expect("up");
    w.client.append(Body::Lost(lost)).await.expect("up");
    // Two came back to be done again, and two of the other run have room.
    let again = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 10).await;
    assert_eq!((again.len(), held(&mut w).await), (4, 4));
    complete(&mut worker, &again).await;
    let rest = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 10).await;
    assert_eq!(rest.len(), 2);
    complete(&mut worker, &rest).await;
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 6).await;
    assert_eq!(w.state(more).await, Some(State::Completed));
    assert_eq!((w.state(run).await, held(&mut w).await), (Some(State::Processing), 0), "a step waits for its retry");
}

async fn what_is_cancelled_while_it_waits_takes_no_place<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(1), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let mut runs = vec![w.submit(&wide(1)).await, w.submit(&wide(1)).await, w.submit(&wide(1)).await];
    let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 6).await;
    assert_eq!(jobs.len(), 1);
    runs.retain(|run| *run != jobs[0].1.run);
    w.client.command(runs[0], Verb::Cancel).await.expect("no faults");
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
    assert_eq!(w.state(runs[0]).await, Some(State::Cancelled));
    complete(&mut worker, &jobs).await;
    let next = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 6).await;
    assert_eq!(next.iter().map(|(_, job)| job.run).collect::<Vec<_>>(), runs[1..]);
}

async fn a_limit_that_is_taken_away_holds_nothing_back<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(2), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let run = w.submit(&wide(30)).await;
    let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 8).await;
    assert_eq!(jobs.len(), 2);
    owner.set_rules(rules(2, None));
    let rest = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 8).await;
    assert_eq!(rest.len(), 28);
    complete(&mut worker, &jobs).await;
    complete(&mut worker, &rest).await;
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
    assert_eq!((w.state(run).await, held(&mut w).await), (Some(State::Completed), 0));
}

async fn what_nobody_answers_is_asked_again_and_begins_nothing<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(2), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    w.submit(&wide(5)).await;
    let mut asked = 0;
    for _ in 0..400 {
        w.turns(&mut owner, 1).await;
        assert!(worker.take(10).await.unwrap_or_default().is_empty(), "nobody granted anything");
        // What was asked is lost on its way.
        while let Ok(said) = limiter.heard.try_recv() {
            asked += usize::from(matches!(said, Say::Share(..)));
        }
        if asked >= 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(asked, 2);
    for _ in 0..200 {
        if !taken(&mut w, &mut limiter, (&mut owner, &mut worker), 1).await.is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("nothing begins");
}

async fn parked<D: Dial>(w: &mut World<D>) -> i64 {
    w.number(&["ZCARD", &keys().parked(&noop())]).await
}

async fn what_parks_at_a_broken_circuit_holds_no_place_and_begins_when_it_closes<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(3), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    // Nothing is told of a limit that nobody uses.
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
    let text = String::new;
    let open =
        GateState { v: 1, stand: Stand::Open, since_ms: 1, until_ms: 0, canaries: 3, reason: text(), actor: text() };
    limiter.view.send_replace(Arc::new(View { gates: [(noop(), open)].into(), partitions: 1 }));
    let run = w.submit(&wide(6)).await;
    for _ in 0..30 {
        assert!(taken(&mut w, &mut limiter, (&mut owner, &mut worker), 1).await.is_empty());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(limiter.told.map_or((0, 0), |told| (told.used, told.want)), (0, 0), "others may have the places");
    limiter.view.send_replace(Arc::new(View::default()));
    let mut done = 0;
    for _ in 0..200 {
        let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 1).await;
        done += jobs.len();
        if !jobs.is_empty() {
            complete(&mut worker, &jobs).await;
        }
        if done == 6 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
    assert_eq!((done, w.state(run).await), (6, Some(State::Completed)), "nothing else had to come");
}

async fn permits_that_nobody_can_use_hold_no_place<D: Dial>(mut w: World<D>) {
    let (mut limiter, mut owner, mut worker) = (Limiter::new(4), w.own().await, w.worker(1));
    limiter.attach(&mut owner);
    let limit = LimitPolicy { concurrency: Some(4), rate: Rate::parse("1000/s").ok(), burst: Some(4) };
    let policies = Policies { limits: [(noop().to_string(), limit)].into(), ..Policies::default() };
    owner.set_rules(Rules::new(2, policies));
    let run = w.submit(&wide(4)).await;
    for _ in 0..200 {
        w.turns(&mut owner, 1).await;
        if parked(&mut w).await == 4 && !limiter.heard.is_empty() {
            break;
        }
    }
    // It has asked; before the answer comes it is cancelled.
    w.client.command(run, Verb::Cancel).await.expect("no faults");
    w.turns(&mut owner, 2).await;
    for _ in 0..200 {
        assert!(taken(&mut w, &mut limiter, (&mut owner, &mut worker), 1).await.is_empty(), "it is cancelled");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if limiter.asked > 3 && limiter.told.is_some_and(|told| (told.used, told.want) == (0, 0)) {
            assert_eq!(w.state(run).await, Some(State::Cancelled));
            return;
        }
    }
    panic!("it keeps what it cannot use: {:?}", limiter.told);
}

#[test]
fn lesson_35_a_place_that_leaked_is_found_and_given_back() {
    crate::world::on_memory(async |mut w| {
        let (mut limiter, mut owner, mut worker) = (Limiter::new(1), w.own().await, w.worker(1));
        limiter.attach(&mut owner);
        w.submit(&wide(1)).await;
        let jobs = taken(&mut w, &mut limiter, (&mut owner, &mut worker), 6).await;
        let key = keys().held();
        let (_, mut rows) = (0, reply::pairs(w.one(&[b"HGETALL", key.as_bytes()]).await));
        complete(&mut worker, &jobs).await;
        taken(&mut w, &mut limiter, (&mut owner, &mut worker), 4).await;
        assert_eq!(held(&mut w).await, 0);
        // The job is over, and its row is there again, as after a fault of ours.
        let (job, what) = rows.remove(0);
        w.one(&[b"HSET", key.as_bytes(), &job, &what]).await;
        let mut next = w.own().await;
        limiter.attach(&mut next);
        let run = w.submit(&wide(2)).await;
        assert!(taken(&mut w, &mut limiter, (&mut next, &mut worker), 6).await.is_empty(), "its place is taken");
        tokio::time::sleep(std::time::Duration::from_secs(35)).await;
        let mut done = 0;
        for _ in 0..20 {
            let jobs = taken(&mut w, &mut limiter, (&mut next, &mut worker), 2).await;
            done += jobs.len();
            complete(&mut worker, &jobs).await;
        }
        assert_eq!((done, w.state(run).await), (2, Some(State::Completed)));
        assert_eq!(w.number(&["HGET", &keys().counters(), "leaked_permits"]).await, 1, "and it is counted");
    });
}
