//! What was packed reads back, stays small, and says what it cannot know.

use proptest::prelude::*;
use stepfleet_protocol::id::PartitionId;

use super::*;
use crate::machine::event::{Timer, Work, WorkKind};

fn job() -> impl Strategy<Value = JobId> {
    // As large as they get in centuries: a reign every second, a million commits a second, a full batch.
    (0u64..1 << 34, any::<u64>(), 0u64..1 << 55, 0u32..1 << 24).prop_map(|(counter, random, seq, n)| JobId {
        reign: Reign { counter, random },
        seq,
        n,
    })
}

proptest! {
    #[test]
    fn steps_read_back_and_stay_compact(
        state in 0u8..10, flags: [bool; 6], attempts in 0u32..2_000, spent in 0u32..2_000, losses in 0u8..4,
        generation in 1u32..100, needs_left in 0u32..100_000, job in proptest::option::of(job()),
        letter in proptest::option::of((0u64..1 << 44, any::<u64>())), unhandled_ms in 0u64..1 << 44,
        start_by_ms in 0u64..1 << 44,
    ) {
        let mut step = Step::fresh(needs_left);
        step.state = State::from_u8(state).expect("a state");
        (step.attempts, step.spent, step.losses, step.generation) = (attempts, spent, losses, generation);
        [step.in_flight, step.stopping, step.timed, step.patched, step.has_output, step.tolerated] = flags;
        (step.job, step.unhandled_ms) = (job, unhandled_ms);
        step.letter = letter.map(|(ms, seq)| StreamId { ms, seq });
        // One that waits for its start has no letter.
        step.start_by_ms = if letter.is_none() { start_by_ms } else { 0 };
        let packed = pack_step(&step);
        prop_assert!(packed.len() <= 64, "{} bytes", packed.len());
        prop_assert_eq!(unpack_step(&packed), Ok(step));
    }

    #[test]
    fn broken_records_are_refused_without_panic(bytes: Vec<u8>) {
        let _ = (unpack_step(&bytes), unpack_run(&bytes), unpack_timer(&bytes), unpack_ready(&bytes), unpack_work(&bytes));
    }

    #[test]
    fn timers_and_work_read_back(random: u64, index: u32, job in job(), next: u32, of: u32) {
        let run = RunId::new(PartitionId(9), 77, random);
        let start = Timer::Start { index, by_ms: random };
        for timer in [Timer::Run, Timer::Retry { index, job }, Timer::Attempt { index, job }, start] {
            prop_assert_eq!(unpack_timer(&pack_timer(run, timer)), Some((run, timer)));
        }
        prop_assert_eq!(unpack_ready(&pack_ready(run, index)), Some((run, index)));
        let spread = [WorkKind::Fan { of }, WorkKind::Skip { of }, WorkKind::Rewind { of }, WorkKind::Restart { of }];
        let sweep = [WorkKind::Roots, WorkKind::Stop, WorkKind::Resume, WorkKind::Reopen, WorkKind::Halt];
        for kind in spread.into_iter().chain(sweep).chain([WorkKind::Recount { from: of }]) {
            let work = Work { run, kind, next };
            prop_assert_eq!(unpack_work(&pack_work(&work)), Some(work));
        }
    }
}

#[test]
fn a_newer_record_says_so() {
    assert_eq!(unpack_run(&[3]), Err(RecordError::Newer { what: "run record", version: 3 }));
    assert_eq!(unpack_step(&[0x30]), Err(RecordError::Newer { what: "step state", version: 3 }));
}

#[test]
fn the_urgent_come_first_and_then_the_oldest() {
    let year_2500 = 16_725_225_600_000;
    assert!(ready_score(9, year_2500) < ready_score(8, 0));
    assert!(ready_score(5, 1) < ready_score(5, 2));
    assert_eq!(priority_of(ready_score(7, year_2500)), 7);
    assert!(ready_score(0, year_2500) < 1 << 53);
}

#[test]
fn a_run_record_of_the_first_version_is_written_until_something_new_is_in_use() {
    use std::sync::Arc;

    use crate::machine::plan::Plan;

    let workflow = serde_json::json!({ "workflow": "w", "steps": { "a": { "handler": "h" } } });
    let workflow = serde_json::from_value(workflow).expect("a legal workflow");
    let plan = Arc::new(Plan::compile("00".repeat(16).into(), &workflow));
    let id = RunId::new(PartitionId(9), 77, 5);
    let mut run = Run::new(id, plan.clone());
    assert_eq!(pack_run(&run)[0], VERSION);
    (run.tolerated, run.skipped, run.failed, run.rewinding) = (300, 7, 301, true);
    for undoing in [Undoing::None, Undoing::Running, Undoing::Done, Undoing::Failed] {
        run.undoing = undoing;
        let packed = pack_run(&run);
        assert_eq!(packed[0], NEWEST);
        let record = unpack_run(&packed).expect("a record of ours");
        let back = restore_run(id, &record, None, plan.clone());
        assert_eq!((back.tolerated, back.skipped, back.failed), (300, 7, 301));
        assert_eq!((back.undoing, back.rewinding), (undoing, true));
    }
}
