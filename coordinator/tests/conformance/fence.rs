//! Who may commit: reigns, late EXECs, connections.

use redis::Value;
use stepfleet_coordinator::{
    shell::owner::Memory,
    store::{
        commit::Commit,
        link::{Dial, Link},
        partition::{Ask, Partition, TurnError},
    },
};
use stepfleet_protocol::{
    id::PartitionId,
    keys::slot,
    message::{Body, Lost, Outcome},
    state::State,
};

use crate::{
    both,
    fleet::{PARTITION, all_keys, chain, keys, own},
    wire::Wire,
    world::World,
};

both! {
    trap_1_a_late_exec_is_refused,
    trap_1_a_late_commit_that_moves_only_timers_is_refused,
    trap_1_a_commit_after_a_commit_is_refused_when_a_rival_reigns,
    trap_2_a_reign_that_has_risen_twice_commits_once,
    trap_2_with_equal_counter_and_seq_the_random_part_alone_fences,
    trap_3_the_exec_of_one_partition_leaves_the_watch_of_another,
    trap_4_a_reign_dials_once_and_a_turn_is_one_trip,
    trap_4_an_owner_has_one_connection_for_a_whole_run,
    trap_5_a_late_result_of_a_replaced_job_is_recorded_without_effect,
    trap_7_a_result_written_before_the_loss_wins,
    the_first_commit_of_a_reign_is_fenced,
    an_owner_with_nothing_to_commit_notices_that_another_reigns,
    a_torn_commit_stops_the_partition,
}

async fn partition<D: Dial>(w: &World<D>, random: u64) -> Partition<D::Link> {
    Partition::take(&w.dial, &all_keys(), PARTITION, random).await.expect("the partition can be taken")
}

/// Sends everything of a commit but its EXEC, lets another owner reign, and then sends the EXEC.
async fn late<D: Dial>(w: World<D>, commit: Commit) {
    let old = partition(&w, 1).await;
    let mut link = w.dial.dial(slot(PARTITION), std::time::Duration::from_secs(3)).await.expect("up");
    let mut begin = redis::pipe();
    begin.cmd("WATCH").arg(keys().head()).cmd("MULTI");
    commit.write(&keys(), old.head.seq + 1, &mut begin);
    link.trip(&begin).await.expect("up");
    let mut new = partition(&w, 2).await;
    let mut end = redis::pipe();
    end.cmd("EXEC");
    assert_eq!(link.trip(&end).await.expect("up"), [Value::Nil]);
    new.turn(Some(&Commit::default()), Ask::default()).await.expect("the new owner goes on");
}

async fn trap_1_a_late_exec_is_refused<D: Dial>(w: World<D>) {
    late(w, Commit { counters: [("x", 1)].into(), ..Commit::default() }).await;
}

async fn trap_1_a_late_commit_that_moves_only_timers_is_refused<D: Dial>(w: World<D>) {
    late(w, Commit { timers_set: vec![(5, b"t".to_vec())], ..Commit::default() }).await;
}

/// The watch of a turn is what fences the commit of the next one: the look at the head comes too late for that.
async fn trap_1_a_commit_after_a_commit_is_refused_when_a_rival_reigns<D: Dial>(mut w: World<D>) {
    let mut old = partition(&w, 1).await;
    let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
    old.turn(Some(&commit), Ask::default()).await.expect("nobody else is here");
    let new = partition(&w, 2).await;
    let fenced = old.turn(Some(&commit), Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
    assert_eq!(w.number(&["HGET", &keys().counters(), "x"]).await, 1, "nothing of the second was written");
    assert_eq!(w.number(&["HGET", &keys().head(), "seq"]).await, new.head.seq as i64, "nor the head");
}

async fn trap_2_a_reign_that_has_risen_twice_commits_once<D: Dial>(mut w: World<D>) {
    let mut first = partition(&w, 1).await;
    // What a promoted replica knows that never heard of the first one.
    w.one(&[b"DEL", keys().head().as_bytes()]).await;
    let mut second = partition(&w, 2).await;
    assert_eq!(
        (first.reign.counter, first.head.seq),
        (second.reign.counter, second.head.seq),
        "the counters say the same"
    );
    let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
    let fenced = first.turn(Some(&commit), Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
    assert_eq!(w.number(&["EXISTS", &keys().counters()]).await, 0, "nothing was written");
    second.turn(Some(&commit), Ask::default()).await.expect("the second one reigns");
    assert_eq!(w.number(&["HGET", &keys().counters(), "x"]).await, 1, "it commits once");
}

/// No watch tells: nothing is committed. Only the reign in the head is another's, and only its random part differs.
async fn trap_2_with_equal_counter_and_seq_the_random_part_alone_fences<D: Dial>(mut w: World<D>) {
    let mut first = partition(&w, 1).await;
    w.one(&[b"DEL", keys().head().as_bytes()]).await;
    let second = partition(&w, 2).await;
    assert_eq!((first.reign.counter, first.head.seq), (second.reign.counter, second.head.seq));
    let fenced = first.turn(None, Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
    // It is over: what it would still commit goes nowhere.
    let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
    assert!(first.turn(Some(&commit), Ask::default()).await.is_err());
    assert_eq!(w.number(&["EXISTS", &keys().counters()]).await, 0, "nothing was written");
    assert_eq!(w.number(&["HGET", &keys().head(), "seq"]).await, second.head.seq as i64);
}

async fn trap_3_the_exec_of_one_partition_leaves_the_watch_of_another<D: Dial>(mut w: World<D>) {
    let other = PartitionId(5);
    let all = all_keys();
    let take = |random| Partition::take(&w.dial, &all, other, random);
    let mut here = partition(&w, 1).await;
    let mut there = take(1).await.expect("free");
    let rival = take(2).await.expect("free");
    let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
    here.turn(Some(&commit), Ask::default()).await.expect("nobody else is here");
    let fenced = there.turn(Some(&commit), Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
    let others = all.partition(other);
    assert_eq!(w.number(&["EXISTS", &others.counters()]).await, 0, "nothing of it was written");
    assert_eq!(w.number(&["HGET", &others.head(), "seq"]).await, rival.head.seq as i64, "the head is the rival's");
    assert_eq!(w.number(&["HGET", &keys().counters(), "x"]).await, 1, "the other partition went on");
}

/// Reading and committing on one connection, so never on different servers.
async fn trap_4_a_reign_dials_once_and_a_turn_is_one_trip<D: Dial>(w: World<D>) {
    let wire = Wire::over(vec![w.dial.clone()]);
    let mut reigns = 0;
    for random in 1..=3 {
        let mut partition = Partition::take(&wire, &all_keys(), PARTITION, random).await.expect("free");
        reigns += 1;
        let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
        for commit in [None, Some(&commit), Some(&commit), None] {
            let before = wire.trips();
            let extra = vec![redis::cmd("PING")];
            let ask = Ask { count: 10, after: partition.head.offset, block: None, extra };
            partition.turn(commit, ask).await.expect("nobody else is here");
            assert_eq!(wire.trips() - before, 1, "commit, look, chore and read are one round trip");
        }
        assert_eq!(wire.dials(), reigns);
    }
}

async fn trap_4_an_owner_has_one_connection_for_a_whole_run<D: Dial>(mut w: World<D>) {
    let wire = Wire::over(vec![w.dial.clone()]);
    let run = w.submit(&chain(3)).await;
    let mut owner = own(&wire, 1, Memory::default()).await.expect("free");
    let mut worker = w.worker(1);
    for _ in 0..100 {
        owner.turn(false).await.expect("no faults");
        let jobs = worker.take(10).await.unwrap_or_default();
        if !jobs.is_empty() {
            worker.answer(jobs.into_iter().map(|(of, _)| (of, Outcome::Completed(None))).collect()).await.expect("up");
        } else if w.state(run).await.is_some_and(State::is_finished) {
            break;
        }
    }
    assert_eq!(w.state(run).await, Some(State::Completed));
    assert_eq!(wire.dials(), 1, "inputs, timers and upkeep too go over the one connection");
    let before = wire.trips();
    owner.turn(false).await.expect("no faults");
    assert_eq!(wire.trips() - before, 1);
}

async fn the_first_commit_of_a_reign_is_fenced<D: Dial>(mut w: World<D>) {
    let mut old = partition(&w, 1).await;
    let _new = partition(&w, 2).await;
    let commit = Commit { counters: [("x", 1)].into(), ..Commit::default() };
    let fenced = old.turn(Some(&commit), Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
    assert_eq!(w.number(&["EXISTS", &keys().counters()]).await, 0, "nothing of it was written");
}

async fn an_owner_with_nothing_to_commit_notices_that_another_reigns<D: Dial>(w: World<D>) {
    let mut old = partition(&w, 1).await;
    let _new = partition(&w, 2).await;
    // Its WATCH is armed anew by this trip, over a head that is another's.
    let fenced = old.turn(None, Ask::default()).await;
    assert!(matches!(fenced, Err(TurnError::Fenced)), "{fenced:?}");
}

async fn trap_5_a_late_result_of_a_replaced_job_is_recorded_without_effect<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let first = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    let lost = Lost { worker: worker.id.clone(), counted: false, jobs: vec![first.0.clone()], seen: Vec::new() };
    w.client.append(Body::Lost(lost)).await.expect("up");
    let second = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    assert_eq!(first.1.attempt, second.1.attempt, "an uncounted loss keeps the number");
    assert_ne!(first.0.job, second.0.job);
    worker.answer(vec![(first.0, Outcome::Completed(None))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    let at = w.stored(run).await;
    assert_ne!(at.record.state, State::Completed, "the old job completes nothing");
    assert!(at.history.iter().any(|t| t.to_string().contains("Ignored")), "it is recorded");
    worker.answer(vec![(second.0, Outcome::Completed(None))]).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
}

async fn trap_7_a_result_written_before_the_loss_wins<D: Dial>(mut w: World<D>) {
    let run = w.submit(&chain(1)).await;
    let (mut owner, mut worker) = (w.own().await, w.worker(1));
    let (of, _) = w.jobs(&mut owner, &mut worker).await.swap_remove(0);
    worker.answer(vec![(of.clone(), Outcome::Completed(None))]).await.expect("up");
    let lost = Lost { worker: worker.id.clone(), counted: true, jobs: vec![of], seen: Vec::new() };
    w.client.append(Body::Lost(lost)).await.expect("up");
    w.turns(&mut owner, 3).await;
    assert_eq!(w.state(run).await, Some(State::Completed));
    assert!(worker.take(10).await.expect("up").is_empty(), "nothing is dispatched again");
}

async fn a_torn_commit_stops_the_partition<D: Dial>(mut w: World<D>) {
    let mut p = partition(&w, 1).await;
    w.one(&[b"SET", keys().counters().as_bytes(), b"a stranger was here"]).await;
    let torn = p.turn(Some(&Commit { counters: [("x", 1)].into(), ..Commit::default() }), Ask::default()).await;
    assert!(matches!(torn, Err(TurnError::Torn(_))), "{torn:?}");
}
