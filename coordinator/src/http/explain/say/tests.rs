//! The table: a situation in, its word and sentence out.

use std::sync::Arc;

use stepfleet_protocol::{
    failure::Failure,
    id::{JobId, PartitionId, Reign, RunId, StreamId},
    workflow::Workflow,
};

use super::*;
use crate::{
    machine::run::{AttemptError, Step, Undoing},
    store::{read::explain::Readers, record::RunRecord},
};

const NOW_MS: u64 = 1_700_000_000_000;

fn found(change: impl FnOnce(&mut RunRecord)) -> Found {
    let id = RunId::new(PartitionId(0), NOW_MS - 60_000, 1);
    let mut record = RunRecord {
        plan: String::new(),
        version: None,
        state: State::Processing,
        ending: None,
        review: false,
        has_input: false,
        has_errors: false,
        finished_ms: 0,
        completed: 1,
        failed: 0,
        tolerated: 0,
        skipped: 0,
        active: 1,
        undoing: Undoing::None,
        rewinding: false,
        work: 0,
    };
    change(&mut record);
    Found { id, record, trace: None, workflow: None::<Arc<Workflow>> }
}

fn situation(state: State, change: impl FnOnce(&mut Situation)) -> Situation {
    let mut step = Step::fresh(0);
    step.state = state;
    let mut situation = Situation {
        name: "charge".into(),
        handler: "pay".into(),
        queue: "cards".into(),
        step,
        needs: Vec::new(),
        due_ms: None,
        error: None,
        place: Spot::None,
        readers: Readers { live: 2, able: 2, slots: 8, running: 8 },
    };
    change(&mut situation);
    situation
}

fn error(category: Category, message: &str) -> AttemptError {
    AttemptError {
        index: 0,
        attempt: 3,
        generation: 1,
        job: JobId { reign: Reign::default(), seq: 1, n: 0 },
        worker: None,
        at_ms: NOW_MS - 5_000,
        run_ms: 10,
        failure: Failure::new(category, message),
    }
}

fn told(whys: &[(Why, &str, &str)]) -> Vec<Transition> {
    let one = |(why, actor, note): &(Why, &str, &str)| Transition {
        step: None,
        from: State::Processing,
        to: State::Suspended,
        at_ms: NOW_MS - 600_000,
        attempt: 0,
        why: *why,
        worker: None,
        actor: Some((*actor).into()),
        note: Some((*note).into()),
    };
    whys.iter().map(one).collect()
}

#[track_caller]
fn check(situation: &Situation, reason: &str, parts: &[&str]) {
    let run = found(|_| {});
    let letter = situation.step.letter.map(|letter| format!("0-{letter}"));
    let seen = Seen { run: &run, history: &[], now_ms: NOW_MS, letter };
    let told = step(&seen, situation);
    assert_eq!(told.reason, reason, "{told:?}");
    let all = format!("{} {}", told.sentence, told.next.join(" "));
    for part in parts {
        assert!(all.contains(part), "`{part}` is not in `{all}`");
    }
    assert!(!told.sentence.contains('\n') && told.sentence.ends_with('.'), "one sentence: {}", told.sentence);
}

#[test]
fn lesson_32_a_step_that_does_not_run_says_what_it_waits_for() {
    use State::{Completed, Created, Queued, Retrying};
    let needs = vec![("a".into(), Completed), ("b".into(), Retrying)];
    check(&situation(Created, |s| s.needs = needs), "needs_unmet", &["`b` (retrying)", "runs explain"]);
    let retry = |s: &mut Situation| {
        (s.due_ms, s.error) = (Some(NOW_MS + 90_000), Some(error(Category::Transient, "503")));
        s.step.attempts = 1;
    };
    check(&situation(Retrying, retry), "retry_waits", &["Try 1", "transient: 503", "in 90 s"]);
    let waiting = |ahead, per_second| Spot::Waiting { ahead, since_ms: NOW_MS - 30_000, per_second };
    check(
        &situation(Queued, |s| s.place = waiting(39, Some(4.0))),
        "slots_busy",
        &["39 are before it", "8 of 8 slots", "in about 10 s"],
    );
    check(&situation(Queued, |s| s.place = waiting(3, Some(0.0))), "slots_busy", &["no job of the queue was taken"]);
    let gate = GateFacts {
        gate: "target:bank".into(),
        ahead: 7,
        parked: 9,
        since_ms: Some(NOW_MS - 240_000),
        opens_ms: Some(NOW_MS + 1_000),
        why: Some("12 of 20 failed".into()),
        limit: None,
    };
    let parts = ["`target:bank`", "shut for 4 min", "12 of 20 failed", "7 before it", "breakers show target:bank"];
    check(&situation(Queued, |s| s.place = Spot::Gate(gate)), "gated", &parts);
    let pause = GateFacts { gate: "queue:cards".into(), ..GateFacts::default() };
    check(&situation(Queued, |s| s.place = Spot::Gate(pause)), "gated", &["queues resume cards"]);
    let limit = GateFacts {
        gate: "handler:charge".into(),
        ahead: 3,
        limit: Some("20 of 20 at once are in use".into()),
        ..GateFacts::default()
    };
    let parts = ["waits for the limit of `handler:charge` (20 of 20", "3 before it", "limits list"];
    check(&situation(Queued, |s| s.place = Spot::Gate(limit)), "gated", &parts);
    check(&situation(Queued, |_| {}), "moving", &["on its way", "auditor"]);
}

#[test]
fn lesson_06_a_queue_without_a_worker_that_can_is_named() {
    let waiting = Spot::Waiting { ahead: 0, since_ms: NOW_MS - 300_000, per_second: None };
    let nobody = |s: &mut Situation| (s.place, s.readers) = (waiting.clone(), Readers::default());
    check(
        &situation(State::Queued, nobody),
        "no_worker",
        &["queue `cards`", "5 min", "stepfleet worker --queue cards"],
    );
    let unable = |s: &mut Situation| {
        (s.place, s.readers) = (waiting.clone(), Readers { live: 3, ..Readers::default() });
    };
    check(&situation(State::Queued, unable), "no_handler", &["handler `pay`", "10 min"]);
}

#[test]
fn a_step_at_work_says_where_for_how_long_and_how_far() {
    let held = |silent, running_ms, progress| {
        situation(State::Processing, |s| {
            s.place = Spot::Held { worker: "w@1".into(), silent, running_ms, progress };
        })
    };
    check(&held(false, Some(180_000), Some(40)), "held", &["worker w@1 for 3 min, at 40 %", "workers show w@1"]);
    check(&held(false, None, None), "held", &["had not begun it"]);
    check(&held(true, Some(1), None), "worker_silent", &["not been heard of"]);
    let delivered = Spot::Delivered { worker: "w@1".into(), idle_ms: 2_500 };
    check(&situation(State::Queued, |s| s.place = delivered), "delivered", &["2 s ago"]);
}

#[test]
fn a_step_that_gave_up_says_why_and_how_to_replay_it() {
    let gave_up = |category| {
        situation(State::Failed, |s| {
            s.error = Some(error(category, "no such card"));
            s.step.letter = Some(StreamId { ms: 5, seq: 1 });
        })
    };
    check(&gave_up(Category::Permanent), "dead_letter", &["no such card", "dead-letters replay 0-5-1`", "runs retry"]);
    check(&gave_up(Category::Data), "dead_letter", &["dead-letters replay 0-5-1 --input JSON"]);
}

#[test]
fn a_run_says_who_holds_it_and_why() {
    let say = |change: fn(&mut RunRecord), history: &[Transition]| {
        let run = found(change);
        super::run(&Seen { run: &run, history, now_ms: NOW_MS, letter: None }, None)
    };
    let held = say(|r| r.state = State::Suspended, &told(&[(Why::Suspended, "ann", "the bank is down")]));
    assert_eq!(held.reason, "run_suspended");
    assert!(held.sentence.contains("by ann because \"the bank is down\", 10 min ago"), "{}", held.sentence);
    let stopping = say(|r| r.ending = Some(Ending::Cancelled), &told(&[(Why::Cancelled, "bob", "twice")]));
    assert_eq!(stopping.reason, "run_stopping");
    assert!(stopping.sentence.contains("by bob"), "{}", stopping.sentence);
    assert_eq!(say(|r| r.work = 2, &[]).reason, "in_progress");
    assert_eq!(say(|r| r.active = 0, &[]).reason, "nothing_to_wait_for");
}
