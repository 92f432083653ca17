//! What cannot be decided: malformed bytes, newer versions, refused commits; and what was decided before.

use stepfleet_coordinator::{
    machine::decision::Why,
    shell::{
        intake::Origin,
        owner::{BATCH_ITEMS_MAX, Memory, OwnerError},
    },
    store::{link::Dial, partition::TurnError, workflows::Stored},
};
use stepfleet_protocol::{
    codec,
    id::{PartitionId, RunId, StreamId},
    limits::ENTRY_PARTS_MAX,
    message::{Answer, Body, Command, NewRun, Outcome, Submit, Unreadable, Verb},
    name::Name,
    state::State,
    workflow::Workflow,
};

use crate::{
    both,
    fleet::{chain, keys, workflow},
    world::World,
};

both! {
    trap_13_malformed_bytes_on_the_log_are_quarantined_and_the_rest_goes_on,
    trap_13_an_entry_of_a_newer_version_ends_the_owner_and_is_not_passed_by,
    trap_13_bytes_on_a_job_stream_that_are_no_job_are_acked_and_counted,
    trap_13_a_poison_item_is_quarantined_answered_and_its_run_suspended,
    trap_13_a_plan_that_no_rule_bears_refuses_its_run_and_holds_nothing_up,
    trap_13_a_run_that_cannot_be_loaded_is_quarantined_and_held_and_the_rest_goes_on,
    trap_13_an_entry_that_says_too_much_at_once_is_quarantined_whole_and_answered,
    trap_16_a_run_that_is_known_is_not_begun_again,
    a_cancel_of_an_unknown_run_holds_for_a_submit_that_comes_later,
    trap_17_a_repeated_command_gets_the_same_answer,
    a_first_copy_that_was_held_up_behind_the_second_one_changes_nothing,
}

async fn trap_13_malformed_bytes_on_the_log_are_quarantined_and_the_rest_goes_on<D: Dial>(mut w: World<D>) {
    w.one(&[b"XADD", keys().log().as_bytes(), b"*", b"m", b"\xc1 no message"]).await;
    w.one(&[b"XADD", keys().log().as_bytes(), b"*", b"other", b"\xff\xfe"]).await;
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.finish(&mut owner, &mut worker, run).await;
    assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, 2);
    assert_eq!(owner.done.quarantined, 2);
}

async fn trap_13_an_entry_of_a_newer_version_ends_the_owner_and_is_not_passed_by<D: Dial>(mut w: World<D>) {
    let mut owner = w.own().await;
    let newer = codec::pack(&serde_json::json!({"v": 2, "body": {"from_the_future": {}}}));
    w.one(&[b"XADD", keys().log().as_bytes(), b"*", b"m", &newer]).await;
    for _ in 0..2 {
        let ended = owner.turn(false).await;
        assert!(matches!(ended, Err(OwnerError::Newer(2))), "{ended:?}");
        owner = w.own().await;
    }
}

async fn trap_13_bytes_on_a_job_stream_that_are_no_job_are_acked_and_counted<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.finish(&mut owner, &mut worker, run).await;
    let queue = Name::new("default").expect("a legal name");
    let stream = keys().jobs(&queue);
    let id = w.one(&[b"XADD", stream.as_bytes(), b"*", b"m", b"\xc1"]).await;
    let entry: StreamId = stepfleet_coordinator::store::reply::text(&id).and_then(|t| t.parse().ok()).expect("an id");
    w.one(&[b"XREADGROUP", b"GROUP", b"workers", b"x", b"STREAMS", stream.as_bytes(), b">"]).await;
    w.client.append(Body::Unreadable(Unreadable { queue, entries: vec![entry] })).await.expect("up");
    w.turns(&mut owner, 3).await;
    let pending = w.one(&[b"XPENDING", stream.as_bytes(), b"workers"]).await;
    let count = stepfleet_coordinator::store::reply::array(&pending).and_then(|p| p.first()).cloned();
    assert_eq!(count, Some(redis::Value::Int(0)));
    assert_eq!(w.number(&["HGET", &keys().counters(), "unreadable_jobs"]).await, 1);
}

async fn trap_13_a_poison_item_is_quarantined_answered_and_its_run_suspended<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    let id = w.client.command_id();
    let command =
        Command { id, actor: "t".into(), run, reason: None, verb: Verb::Cancel, again: false, campaign: None };
    let entry = w.client.append(Body::Command(command)).await.expect("up");
    let memory = Memory { poison: [(Origin::Entry(entry, 0), run)].into(), ..Memory::default() };
    let mut owner = crate::fleet::own(&w.dial, 99, memory).await.expect("free");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Suspended));
    assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, 1);
    let answer = w.answer(&id).await.expect("it is answered").answers;
    assert!(matches!(&answer[..], [Answer::Refused { code, .. }] if code == "undecidable"), "{answer:?}");
}

/// A workflow that no door has checked: it needs what it has not.
fn unchecked() -> Workflow {
    workflow(&[("a", &["nothing"])])
}

async fn trap_13_a_plan_that_no_rule_bears_refuses_its_run_and_holds_nothing_up<D: Dial>(mut w: World<D>) {
    let run = w.client.run_id();
    let id = w.client.submit(run, &unchecked(), None, false).await.expect("up");
    let good = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.finish(&mut owner, &mut worker, good).await;
    assert_eq!((w.state(run).await, w.number(&["XLEN", &keys().quarantine()]).await), (None, 1));
    let answer = w.answer(&id).await.expect("it is answered").answers;
    assert!(matches!(&answer[..], [Answer::Refused { code, .. }] if code == "undecidable"), "{answer:?}");
}

async fn trap_13_a_run_that_cannot_be_loaded_is_quarantined_and_held_and_the_rest_goes_on<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(2)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    w.turns(&mut owner, 2).await;
    let (plan, bad) = (Stored::new(&chain(2)), Stored::new(&unchecked()));
    w.one(&[b"SET", keys().plan(&plan.hash).as_bytes(), &bad.bytes]).await;
    worker.answer(vec![(of, Outcome::Completed(None))]).await.expect("up");
    let good = w.submit(&chain(1)).await;
    let mut owner = w.own().await;
    w.finish(&mut owner, &mut worker, good).await;
    let stored = w.stored(run).await;
    assert_eq!(stored.record.state, State::Suspended);
    assert_eq!(stored.history.last().map(|t| t.why), Some(Why::Quarantined));
    assert_eq!(w.number(&["XLEN", &keys().quarantine()]).await, 1);
    assert_eq!(w.number(&["ZCARD", &keys().runs(State::Suspended)]).await, 1);
    assert_eq!(w.number(&["ZCARD", &keys().runs(State::Processing)]).await, 0);
    // A wish about it is refused, and it is not begun anew.
    let id = w.client.command(run, Verb::Resume).await.expect("up");
    w.client.submit(run, &chain(1), None, true).await.expect("up");
    w.turns(&mut owner, 4).await;
    let answer = w.answer(&id).await.expect("it is answered").answers;
    assert!(matches!(&answer[..], [Answer::Refused { code, .. }] if code == "undecidable"), "{answer:?}");
    // With its plan it goes on.
    w.one(&[b"SET", keys().plan(&plan.hash).as_bytes(), &plan.bytes]).await;
    let id = w.client.command(run, Verb::Cancel).await.expect("up");
    w.turns(&mut owner, 4).await;
    assert!(matches!(w.answer(&id).await.expect("it is answered").answers[..], [Answer::Done { .. }]));
}

async fn trap_13_an_entry_that_says_too_much_at_once_is_quarantined_whole_and_answered<D: Dial>(mut w: World<D>) {
    let plan = Stored::new(&chain(1)).hash;
    let new = |run| NewRun { run, plan: plan.clone(), version: None, input: None, traceparent: None };
    let runs: Vec<NewRun> = (0..=ENTRY_PARTS_MAX).map(|_| new(w.client.run_id())).collect();
    let (first, id) = (runs[0].run, w.client.command_id());
    w.client.append(Body::Submit(Submit { id, actor: "t".into(), runs, again: false })).await.expect("up");
    let good = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.finish(&mut owner, &mut worker, good).await;
    assert_eq!((w.state(first).await, w.number(&["XLEN", &keys().quarantine()]).await), (None, 1));
    let answer = w.answer(&id).await.expect("it is answered").answers;
    assert!(matches!(&answer[..], [Answer::Refused { code, .. }] if code == "too_many_parts"), "{answer:?}");
}

async fn trap_16_a_run_that_is_known_is_not_begun_again<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    assert_eq!(w.finish(&mut owner, &mut worker, run).await.len(), 1);
    let id = w.client.submit(run, &chain(1), None, true).await.expect("up");
    w.turns(&mut owner, 3).await;
    let answers = w.answer(&id).await.expect("it is answered").answers;
    assert_eq!(answers, [Answer::Known { state: State::Completed }]);
    assert!(worker.take(10).await.expect("up").is_empty());
}

async fn a_cancel_of_an_unknown_run_holds_for_a_submit_that_comes_later<D: Dial>(mut w: World<D>) {
    let (later, same_batch, other) = (w.client.run_id(), w.client.run_id(), w.client.run_id());
    let mut owner = w.own().await;
    let cancel = w.client.command(later, Verb::Cancel).await.expect("up");
    let suspend = w.client.command(other, Verb::Suspend { now: false }).await.expect("up");
    w.turns(&mut owner, 2).await;
    for id in [cancel, suspend] {
        assert_eq!(w.answer(&id).await.expect("it is answered").answers, [Answer::NotFound]);
    }
    let mut owner = w.own().await;
    w.client.command(same_batch, Verb::Cancel).await.expect("up");
    let mut submits = Vec::new();
    for run in [later, same_batch, other] {
        submits.push(w.client.submit(run, &chain(1), None, true).await.expect("up"));
    }
    w.turns(&mut owner, 3).await;
    let dead = Answer::Known { state: State::Cancelled };
    for (id, expected) in submits.into_iter().zip([dead.clone(), dead, Answer::Done { state: State::Queued }]) {
        assert_eq!(w.answer(&id).await.expect("it is answered").answers, [expected]);
    }
    assert_eq!((w.state(later).await, w.state(same_batch).await), (None, None));
    assert_eq!(w.worker(1).take(10).await.expect("up").len(), 1, "only the other run is begun");
    let left_ms = w.number(&["PTTL", &keys().tombstone(&later)]).await;
    assert!((1..=25 * 3_600_000).contains(&left_ms), "{left_ms}");
}

async fn trap_17_a_repeated_command_gets_the_same_answer<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let mut owner = w.own().await;
    w.turns(&mut owner, 3).await;
    let id = w.client.command_id();
    let verb = Verb::Suspend { now: false };
    let command = Command { id, actor: "t".into(), run, reason: None, verb, again: false, campaign: None };
    w.client.append(Body::Command(command.clone())).await.expect("up");
    // Once in the same batch, and once long after.
    w.client.append(Body::Command(Command { again: true, ..command.clone() })).await.expect("up");
    w.turns(&mut owner, 3).await;
    let first = w.answer(&id).await.expect("it is answered");
    assert_eq!(first.answers, [Answer::Done { state: State::Suspended }]);
    let moves = w.stored(run).await.history.len();
    w.client.append(Body::Command(Command { again: true, ..command })).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.answer(&id).await, Some(first));
    assert_eq!(w.stored(run).await.history.len(), moves, "nothing is decided twice");
}

/// Traps 16 and 17: the network held the first copy up, which bears no mark that it was sent before.
async fn a_first_copy_that_was_held_up_behind_the_second_one_changes_nothing<D: Dial>(mut w: World<D>) {
    let run = RunId::new(PartitionId(0), 1_000, 4_711);
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    w.client.submit(run, &chain(2), None, true).await.expect("up");
    w.finish(&mut owner, &mut worker, run).await;
    let moves = w.stored(run).await.history.len();
    w.client.submit(run, &chain(2), None, false).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!((w.state(run).await, w.stored(run).await.history.len()), (Some(State::Completed), moves));
    assert!(worker.take(10).await.unwrap_or_default().is_empty(), "nothing is done again");

    let other = w.submit(&chain(1)).await;
    w.turns(&mut owner, 2).await;
    let command = |verb: Verb, again: bool, id| Command {
        id,
        actor: "t".into(),
        run: other,
        reason: None,
        verb,
        again,
        campaign: None,
    };
    let (suspend, resume) = (w.client.command_id(), w.client.command_id());
    let wish = Verb::Suspend { now: false };
    w.client.append(Body::Command(command(wish.clone(), true, suspend))).await.expect("up");
    w.client.append(Body::Command(command(Verb::Resume, false, resume))).await.expect("up");
    w.turns(&mut owner, 3).await;
    w.client.append(Body::Command(command(wish, false, suspend))).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(other).await, Some(State::Queued), "it is not suspended behind its resume");
    let answer = w.answer(&suspend).await.map(|reply| reply.answers);
    assert_eq!(answer.as_deref(), Some(&[Answer::Done { state: State::Suspended }][..]), "and the answer stays");
}

#[test]
fn trap_13_a_refused_commit_is_halved_until_its_item_is_alone() {
    let item = (Origin::Timer, RunId::new(PartitionId(0), 1, 1));
    let mut memory = Memory::default();
    for size in [200, 100, 50, 25, 12, 6, 3, 1] {
        memory.halve();
        assert_eq!(memory.batch_items, size, "from {BATCH_ITEMS_MAX}");
    }
    memory.last_alone = vec![item];
    memory.halve();
    assert_eq!((memory.batch_items, memory.poison.contains(&item)), (0, true));
}

#[test]
fn trap_13_only_a_refusal_of_its_own_fault_is_blamed_on_a_commit() {
    for (text, full, own) in [
        ("OOM command not allowed", true, false),
        ("MOVED 1 127.0.0.1:1", false, false),
        ("LOADING dataset", false, false),
        ("READONLY replica", false, false),
        ("CLUSTERDOWN hash slot not served", false, false),
        ("MISCONF disk", false, false),
        ("ERR too much", false, true),
    ] {
        let refused = TurnError::Refused(text.into());
        assert_eq!((refused.is_full(), refused.blames_the_commit()), (full, own), "{text}");
    }
}

#[test]
fn trap_13_what_cannot_be_told_apart_is_poison_together() {
    let (entry, run) = (StreamId { ms: 1, seq: 0 }, RunId::new(PartitionId(0), 1, 1));
    let mut memory = Memory { batch_items: 1, ..Memory::default() };
    memory.last_alone = (0..3).map(|part| (Origin::Entry(entry, part), run)).collect();
    memory.learn(&OwnerError::Panicked);
    assert_eq!((memory.batch_items, memory.poison.len()), (0, 3));
}
