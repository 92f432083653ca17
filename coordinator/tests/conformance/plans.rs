//! Plans without runs: they go aside, come back for a run, or are deleted; no run is ever accepted without a stored plan.

use std::time::Duration;

use stepfleet_coordinator::{
    shell::retention::{Retention, plans::GRACE_MS},
    store::{link::Dial, workflows},
};
use stepfleet_protocol::{
    id::{CommandId, RunId},
    message::{Answer, Body, NewRun, Submit},
    state::State,
};
use tokio::time::advance;

use crate::{
    both,
    fleet::{chain, keys},
    world::{World, on_memory},
};

both! {
    a_plan_goes_aside_with_its_last_run_and_is_deleted_after_the_grace,
    a_plan_stays_as_long_as_a_run_follows_it,
    a_run_that_is_submitted_while_its_plan_goes_aside_brings_it_back,
    a_run_that_was_submitted_before_its_plan_went_aside_finds_it_under_the_next_owner,
    a_run_that_is_submitted_while_its_plan_is_deleted_follows_the_plan_it_wrote,
    a_plan_that_was_written_anew_and_not_followed_is_deleted_too,
    a_plan_that_was_written_anew_and_is_followed_stays,
}

fn hash() -> String {
    workflows::Stored::new(&chain(1)).hash
}

fn at_once() -> Retention {
    Retention { completed_ms: 0, ..Retention::default() }
}

/// Where the plan is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    stored: bool,
    aside: bool,
    uses: i64,
}

const STORED: Place = Place { stored: true, aside: false, uses: 1 };
const ASIDE: Place = Place { stored: false, aside: true, uses: 0 };
const NOWHERE: Place = Place { stored: false, aside: false, uses: 0 };

impl<D: Dial> World<D> {
    async fn place(&mut self) -> Place {
        let stored = self.number(&["EXISTS", &keys().plan(&hash())]).await == 1;
        let aside = self.number(&["EXISTS", &keys().plan_aside(&hash())]).await == 1;
        let listed = self.number(&["ZCARD", &keys().plans_aside()]).await == 1;
        assert_eq!(aside, listed, "what is aside is listed");
        let uses = self.one(&[b"HGET", keys().plan_uses().as_bytes(), hash().as_bytes()]).await;
        Place { stored, aside, uses: stepfleet_coordinator::store::reply::number(&uses).unwrap_or(0) }
    }

    async fn done(&mut self) -> RunId {
        let run = self.submit(&chain(1)).await;
        self.done_as(run).await;
        run
    }

    /// A fresh owner, which has nothing in mind, brings the run to its end.
    async fn done_as(&mut self, run: RunId) {
        let (mut owner, mut worker) = (self.own().await, self.worker(1));
        self.finish(&mut owner, &mut worker, run).await;
        assert_eq!(self.state(run).await, Some(State::Completed));
    }

    /// Lets the grace of what is aside be over.
    async fn end_grace(&mut self) {
        self.one(&[b"ZADD", keys().plans_aside().as_bytes(), b"XX", b"1", hash().as_bytes()]).await;
    }

    /// A run of a client that has written the plan already, as it believes.
    async fn submit_without_plan(&mut self) -> CommandId {
        let (run, id) = (self.client.run_id(), self.client.command_id());
        let new = NewRun { run, plan: hash(), version: None, input: None, traceparent: None };
        let submit = Submit { id, actor: "test".into(), runs: vec![new], again: false };
        self.client.append(Body::Submit(submit)).await.expect("up");
        id
    }
}

async fn a_plan_goes_aside_with_its_last_run_and_is_deleted_after_the_grace<D: Dial>(mut w: World<D>) {
    w.done().await;
    assert_eq!(w.place().await, STORED);
    w.expire(at_once()).await;
    assert_eq!(w.place().await, ASIDE);
    w.expire(at_once()).await;
    assert_eq!((w.place().await, w.counter("expired_plans").await), (ASIDE, 0), "the grace is not over");
    w.end_grace().await;
    let owner = w.expire(at_once()).await;
    assert_eq!((w.place().await, w.counter("expired_plans").await), (NOWHERE, 1));
    assert_eq!(owner.done.expired.plans, 1);
}

async fn a_plan_stays_as_long_as_a_run_follows_it<D: Dial>(mut w: World<D>) {
    w.done().await;
    w.done().await;
    let owner = w.expire(Retention { runs_max: 1, ..Retention::default() }).await;
    assert_eq!((w.place().await, owner.done.expired.runs), (STORED, 1));
}

async fn a_run_that_is_submitted_while_its_plan_goes_aside_brings_it_back<D: Dial>(mut w: World<D>) {
    w.done().await;
    let mut owner = w.own().await;
    owner.configure(false, at_once());
    // It has decided that the plan goes, and not committed it.
    w.turns(&mut owner, 1).await;
    assert_eq!(w.place().await, STORED);
    let run = w.submit(&chain(1)).await;
    w.turns(&mut owner, 2).await;
    assert_eq!((w.place().await, w.state(run).await), (STORED, Some(State::Queued)));
    w.done_as(run).await;
}

async fn a_run_that_was_submitted_before_its_plan_went_aside_finds_it_under_the_next_owner<D: Dial>(mut w: World<D>) {
    w.done().await;
    let mut owner = w.own().await;
    owner.configure(false, at_once());
    w.turns(&mut owner, 1).await;
    let run = w.submit(&chain(1)).await;
    // It commits, and dies before it can accept the run.
    w.turns(&mut owner, 1).await;
    drop(owner);
    assert_eq!((w.place().await, w.state(run).await), (ASIDE, None));
    w.done_as(run).await;
    assert_eq!(w.place().await, STORED);
}

async fn a_run_that_is_submitted_while_its_plan_is_deleted_follows_the_plan_it_wrote<D: Dial>(mut w: World<D>) {
    w.done().await;
    w.expire(at_once()).await;
    w.end_grace().await;
    let mut owner = w.own().await;
    w.turns(&mut owner, 1).await;
    let run = w.submit(&chain(1)).await;
    w.turns(&mut owner, 2).await;
    assert_eq!((w.place().await, w.state(run).await), (STORED, Some(State::Queued)));
    w.done_as(run).await;
}

async fn a_plan_that_was_written_anew_and_not_followed_is_deleted_too<D: Dial>(mut w: World<D>) {
    w.done().await;
    w.expire(at_once()).await;
    w.one(&[b"SET", keys().plan(&hash()).as_bytes(), &workflows::Stored::new(&chain(1)).bytes, b"NX"]).await;
    w.end_grace().await;
    w.expire(at_once()).await;
    assert_eq!((w.place().await, w.counter("expired_plans").await), (ASIDE, 0), "its run may be on its way");
    w.end_grace().await;
    w.expire(at_once()).await;
    assert_eq!((w.place().await, w.counter("expired_plans").await), (NOWHERE, 1));
}

async fn a_plan_that_was_written_anew_and_is_followed_stays<D: Dial>(mut w: World<D>) {
    w.done().await;
    w.expire(at_once()).await;
    // The owner of this run has the plan from its key, and does not know that there is a copy aside.
    w.done().await;
    assert_eq!(w.place().await, Place { aside: true, ..STORED });
    w.end_grace().await;
    w.expire(Retention::default()).await;
    assert_eq!((w.place().await, w.counter("expired_plans").await), (STORED, 0));
}

#[test]
fn a_plan_that_was_deleted_is_not_followed_from_memory() {
    on_memory(async |mut w| {
        w.done().await;
        let mut owner = w.expire(at_once()).await;
        assert_eq!(w.place().await, ASIDE);
        advance(Duration::from_millis(GRACE_MS)).await;
        w.turns(&mut owner, 4).await;
        assert_eq!((w.place().await, owner.done.expired.plans), (NOWHERE, 1));
        // This owner has compiled the plan.
        let id = w.submit_without_plan().await;
        w.turns(&mut owner, 2).await;
        assert_eq!(w.answer(&id).await.map(|reply| reply.answers), Some(vec![Answer::NoPlan]));
        let run = w.submit(&chain(1)).await;
        w.turns(&mut owner, 2).await;
        assert_eq!((w.place().await, w.state(run).await), (STORED, Some(State::Queued)));
        w.done_as(run).await;
    });
}

#[test]
fn a_run_of_a_client_that_remembers_its_plan_finds_it_aside_within_the_grace() {
    on_memory(async |mut w| {
        w.done().await;
        let mut owner = w.expire(at_once()).await;
        advance(Duration::from_millis(GRACE_MS - 60_000)).await;
        w.turns(&mut owner, 3).await;
        assert_eq!(w.place().await, ASIDE);
        let id = w.submit_without_plan().await;
        w.turns(&mut owner, 2).await;
        assert_eq!(w.answer(&id).await.map(|r| r.answers), Some(vec![Answer::Done { state: State::Queued }]));
        assert_eq!(w.place().await, STORED);
    });
}
