//! The audit store: an entry and the decision that it tells of are one commit, and old entries go.

use stepfleet_coordinator::{
    machine::decision::Why,
    shell::retention::Retention,
    store::{link::Dial, partition::Partition, reply},
};
use stepfleet_protocol::{
    audit::{AuditEntry, Verdict},
    codec,
    id::RunId,
    message::{Body, Command, Verb},
};

use crate::{
    both,
    fleet::{PARTITION, all_keys, chain, keys},
    world::World,
};

both! {
    a_cancel_and_its_audit_entry_are_written_together_or_not_at_all,
    a_refused_command_is_audited_and_one_sent_again_only_once,
    audit_entries_beyond_their_age_go_and_are_counted,
}

impl<D: Dial> World<D> {
    /// Whether the run's history says that it was, or is to be, cancelled.
    async fn is_cancelled(&mut self, run: RunId) -> bool {
        self.stored(run).await.history.iter().any(|t| t.why == Why::Cancelled)
    }

    /// The partition's audit entries, oldest first.
    async fn audited(&mut self) -> Vec<AuditEntry> {
        let found = self.one(&[b"XRANGE", keys().audit().as_bytes(), b"-", b"+"]).await;
        let entries = reply::entries(found).into_iter();
        entries.map(|(_, fields)| codec::decode(&fields[0].0, &fields[0].1).expect("an entry of ours")).collect()
    }
}

async fn a_cancel_and_its_audit_entry_are_written_together_or_not_at_all<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    assert_eq!(w.audited().await, [], "a submit has no entry");
    w.client.command(run, Verb::Cancel).await.expect("up");
    // It is decided and waits for its commit; then another reigns.
    w.turns(&mut owner, 1).await;
    Partition::take(&w.dial, &all_keys(), PARTITION, 999).await.expect("the partition can be taken");
    owner.turn(false).await.expect_err("its commit is fenced");
    assert_eq!((w.is_cancelled(run).await, w.audited().await), (false, vec![]), "neither is written");

    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    let entries = w.audited().await;
    assert!(w.is_cancelled(run).await);
    assert_eq!(entries.len(), 1, "{entries:?}");
    let AuditEntry { actor, action, target, outcome, at_ms, .. } = &entries[0];
    assert_eq!((actor.as_str(), action.as_str(), outcome), ("test", "run.cancel", &Verdict::Done));
    assert_eq!((target, *at_ms > 0), (&format!("run:{run}"), true));
}

async fn a_refused_command_is_audited_and_one_sent_again_only_once<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.finish(&mut owner, &mut worker, run).await;
    let (id, reason) = (w.client.command_id(), Some("by mistake".to_owned()));
    let mut command = Command { id, actor: "ann".into(), run, reason, verb: Verb::Retry, again: false, campaign: None };
    w.client.append(Body::Command(command.clone())).await.expect("up");
    w.turns(&mut owner, 3).await;
    command.again = true;
    w.client.append(Body::Command(command)).await.expect("up");
    w.turns(&mut owner, 3).await;
    let entries = w.audited().await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((entries[0].actor.as_str(), entries[0].reason.as_deref()), ("ann", Some("by mistake")));
    assert!(matches!(&entries[0].outcome, Verdict::Refused(why) if why.contains("completed")), "{entries:?}");
}

async fn audit_entries_beyond_their_age_go_and_are_counted<D: Dial>(mut w: World<D>) {
    let mut write = redis::pipe();
    for n in 1..=450 {
        write.cmd("XADD").arg(keys().audit()).arg(format!("{n}-1")).arg("m").arg("x");
    }
    w.client.trip(&write).await.expect("up");
    let run = w.submit(&chain(1)).await;
    w.client.command(run, Verb::Cancel).await.expect("up");
    let mut owner = w.expire(Retention { audit_ms: 3_600_000, ..Retention::default() }).await;
    w.turns(&mut owner, 6).await;
    assert_eq!(w.number(&["XLEN", &keys().audit()]).await, 1, "the young one is kept");
    assert_eq!((w.counter("expired_audit").await, owner.done.expired.audit), (450, 450));
}
