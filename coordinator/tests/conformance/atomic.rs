//! Changes and their audit entries, on a real server: whatever kills the process in between, either both are there or none.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use stepfleet_connect::Redis;
use stepfleet_coordinator::store::{
    client::{Client, FIELD_PARTITIONS},
    intent::WHY_GIVEN_UP,
    read::{PlacedId, audit::Filter, doctor::Stream},
    reply,
};
use stepfleet_protocol::{
    audit::{AuditEntry, Verdict, action},
    keys::GROUP,
    message::Outcome,
    name::Name,
    workflow::Workflow,
};

use crate::{
    fleet::{PARTITION, all_keys, chain, keys},
    world::{World, on_real},
};

/// More wake-ups than any of these changes takes.
const KILLS_MAX: usize = 200;

/// Runs `work` until it has been woken `polls` times, and drops it there, as the death of a process would. None if it was killed.
async fn killed_after<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

impl World<Redis> {
    async fn admin(&self) -> Client {
        let client = Client::new(self.dial.clone(), all_keys());
        client.add_partitions(1).await.expect("up");
        client
    }
}

/// What a killed process had sent arrives, and what it left behind is settled.
async fn settle(client: &Client) {
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        client.settle_intents(0).await.expect("up");
    }
}

/// How many entries about `target` say that it was done, and how many that it was given up.
async fn told(client: &Client, target: String) -> (usize, usize) {
    let filter = Filter { target: Some(target), ..Filter::default() };
    let entries = client.audit(&filter, None, 100).await.expect("up").items;
    let done = entries.iter().filter(|(_, entry)| entry.outcome == Verdict::Done).count();
    let given_up = Verdict::Refused(WHY_GIVEN_UP.to_owned());
    let given_up = entries.iter().filter(|(_, entry)| entry.outcome == given_up).count();
    assert_eq!(entries.len(), done + given_up, "{entries:?}");
    (done, given_up)
}

fn named(name: &str) -> Workflow {
    Workflow { workflow: Name::new(name).expect("a legal name"), ..chain(1) }
}

#[test]
fn a_registration_that_is_killed_anywhere_has_one_entry_or_did_not_happen() -> anyhow::Result<()> {
    on_real("atomic_register", async |mut w| {
        let client = w.admin().await;
        let (mut given_up, mut left_done) = (0, 0);
        for kill in 1..KILLS_MAX {
            let name = format!("w{kill}");
            let ended = killed_after(kill, client.register(&named(&name), "ann", 7)).await;
            settle(&client).await;
            let key = all_keys().workflow(&Name::new(&name).expect("a legal name"));
            let is_there = w.number(&["HEXISTS", &key, "latest"]).await == 1;
            let (done, refused) = told(&client, format!("workflow:{name}@1")).await;
            assert_eq!(done, usize::from(is_there), "killed after {kill}: an entry exactly if there is a version");
            given_up += refused;
            left_done += usize::from(is_there && ended.is_none());
            // Asked again, by an operator who has no answer: neither is it lost nor told twice.
            let again = client.register(&named(&name), "ann", 8).await.expect("up");
            assert_eq!((again.number, again.created), (1, !is_there));
            settle(&client).await;
            assert_eq!(told(&client, format!("workflow:{name}@1")).await.0, 1);
            if ended.is_some() {
                let left = w.number(&["HLEN", &all_keys().fleet_intents()]).await;
                assert_eq!(left, 0, "nothing is under way any more");
                assert!(given_up > 0, "some were killed between intent and change");
                assert!(left_done > 0, "some were killed behind the change");
                return;
            }
        }
        panic!("a registration takes fewer wake-ups");
    })
}

#[test]
fn partitions_that_are_added_by_a_process_that_dies_have_their_entry() -> anyhow::Result<()> {
    on_real("atomic_partitions", async |mut w| {
        let client = w.admin().await;
        for kill in 1..KILLS_MAX {
            let count = kill as u16 + 1;
            let target = format!("partitions:{count}");
            let entry = AuditEntry::new("ann", action::PARTITIONS_ADD, target.clone(), 7);
            let ended = killed_after(kill, client.add_partitions_for(count, &entry)).await;
            settle(&client).await;
            let found = w.one(&[b"HGET", all_keys().meta().as_bytes(), FIELD_PARTITIONS.as_bytes()]).await;
            let is_there = reply::text(&found) == Some(count.to_string().as_str());
            assert_eq!(told(&client, target.clone()).await.0, usize::from(is_there), "after {kill}");
            if ended.is_some() {
                client.add_partitions_for(count, &entry).await.expect("up");
                assert_eq!(told(&client, target).await.0, 1, "what changes nothing has no entry");
                return;
            }
        }
        panic!("it takes fewer wake-ups");
    })
}

#[test]
fn an_entry_of_the_quarantine_goes_together_with_its_audit_entry_and_once() -> anyhow::Result<()> {
    on_real("atomic_discard", async |mut w| {
        let client = w.admin().await;
        for kill in 1..KILLS_MAX {
            let added = w.one(&[b"XADD", keys().quarantine().as_bytes(), b"*", b"why", b"x", b"m", b"y"]).await;
            let entry = reply::text(&added).and_then(|id| id.parse().ok()).expect("an id");
            let id = PlacedId { entry, partition: PARTITION };
            let target = format!("quarantine:{id}");
            let audit = AuditEntry::new("ann", action::QUARANTINE_DISCARD, target.clone(), 7);
            let ended = killed_after(kill, client.discard_quarantined(id, &audit)).await;
            settle(&client).await;
            let is_gone = client.quarantined(id).await.expect("up").is_none();
            assert_eq!(told(&client, target.clone()).await, (usize::from(is_gone), 0), "after {kill}");
            let again = client.discard_quarantined(id, &audit).await.expect("up");
            assert_eq!(again, !is_gone);
            assert_eq!(told(&client, target).await, (1, 0));
            assert_eq!(w.counter("quarantine_discarded").await, kill as i64, "each is counted once");
            if ended.is_some() {
                return;
            }
        }
        panic!("it takes fewer wake-ups");
    })
}

#[test]
fn a_lost_group_is_made_again_and_what_is_done_does_not_run_again() -> anyhow::Result<()> {
    on_real("doctor_group", async |mut w| {
        let client = w.admin().await;
        let mut owner = w.own().await;
        for _ in 0..3 {
            w.submit(&chain(1)).await;
        }
        w.turns(&mut owner, 3).await;
        let mut worker = w.worker(1);
        let taken = worker.take(10).await.expect("up");
        assert_eq!(taken.len(), 3);
        // The last one is done: the two before it keep its entry from being trimmed.
        worker.answer(vec![(taken[2].0.clone(), Outcome::Completed(None))]).await.expect("up");
        w.turns(&mut owner, 3).await;
        let queue = Name::new("default").expect("a legal name");
        let jobs = keys().jobs(&queue);
        assert_eq!(w.number(&["XLEN", &jobs]).await, 3);
        assert_eq!(w.number(&["XGROUP", "DESTROY", &jobs, GROUP]).await, 1);

        let found = client.checkup(|| 0).await.expect("up");
        assert_eq!(found.without_group, [Stream { partition: PARTITION, queue }]);
        assert_eq!(client.fix(&found, "ann").await.expect("up").len(), 1);
        let filter = Filter { action: Some(action::DOCTOR_FIX.into()), ..Filter::default() };
        assert_eq!(client.audit(&filter, None, 10).await.expect("up").items.len(), 1);
        assert_eq!(client.fix(&found, "ann").await.expect("up"), Vec::<String>::new(), "it is there already");
        assert_eq!(client.audit(&filter, None, 10).await.expect("up").items.len(), 1, "and nobody did anything");

        let mut second = w.worker(2);
        let again = second.take(10).await.expect("up");
        let ids =
            |jobs: &[(_, stepfleet_protocol::message::Job)]| jobs.iter().map(|(_, job)| job.id).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&taken[..2]), "what is awaited comes again, what is done does not");
    })
}
