//! Any graph, any order of events, any outcome: what must hold holds after every decision, and nothing hangs.

use std::{collections::BTreeSet, fmt::Write};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRunner},
};
use stepfleet_coordinator::{
    machine::{
        event::{Event, Timer},
        rules::Rules,
        run::Undoing,
    },
    workflow::check_policies_value,
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    id::{JobId, StreamId},
    message::{JobRef, Outcome, Resolution, Returned, Verb},
    state::State,
    value::Payload,
};

use super::{plans::plan, world::World};

/// One thing that may happen: what, to which of those it may happen to, and how.
type Chance = (u8, u16, u8);

fn graph() -> impl Strategy<Value = String> {
    let random = prop::collection::vec(any::<u64>(), 1..60).prop_map(|masks| {
        let word = |(index, mask): (usize, u64)| {
            let needs: Vec<String> =
                (0..index.min(60)).filter(|n| mask >> n & mask >> (n / 2) & 1 == 1).map(|n| format!("s{n}")).collect();
            format!("s{index}:{}", needs.join(","))
        };
        masks.into_iter().enumerate().map(word).collect::<Vec<_>>().join(" ")
    });
    let chain = (1usize..60).prop_map(|n| {
        let word = |i: usize| if i == 0 { "s0".into() } else { format!("s{i}:s{}", i - 1) };
        (0..n).map(word).collect::<Vec<String>>().join(" ")
    });
    let diamonds = (1usize..15).prop_map(|n| {
        let word = |i: usize| format!("b{i}:a{i} c{i}:a{i} a{}:b{i},c{i}", i + 1);
        format!("a0 {}", (0..n).map(word).collect::<Vec<_>>().join(" "))
    });
    let wide = (100u32..300).prop_map(|n| format!("a w*{n}:a z:w*"));
    let roots = (100u32..300).prop_map(|n| format!("w*{n} y:w7 z:w*"));
    prop_oneof![6 => random, 2 => chain, 2 => diamonds, 1 => wide, 1 => roots]
}

fn settings() -> impl Strategy<Value = String> {
    let max = prop_oneof![Just(1u32), Just(2), Just(3), Just(5)];
    let run = prop_oneof![Just("0"), Just("3s"), Just("1h")];
    let timeout = prop_oneof![Just("0"), Just("2s")];
    let end = prop_oneof![Just("fail"), Just("suspend"), Just("compensate")];
    let start = prop_oneof![3 => Just(""), 1 => Just(" start=200ms")];
    let words = (some_steps(), some_steps(), some_steps(), start);
    let jitter = prop_oneof![Just("none"), Just("full")];
    (max, run, timeout, end, jitter, words).prop_map(|(max, run, timeout, end, jitter, (go, skip, undo, start))| {
        let words = format!("go={go} skip={skip} undo={undo}{start}");
        format!("max={max} run={run} timeout={timeout} fail={end} jitter={jitter} base=100ms cap=1s {words}")
    })
}

/// Names of some steps, of any kind of graph.
fn some_steps() -> impl Strategy<Value = String> {
    let names = any::<u64>().prop_map(|mask| {
        let of = |n: u64| ["s", "w", "a", "b", "c"].map(|stem| format!("{stem}{n}"));
        (0..60).filter(|n| mask >> n & mask >> (n * 7 % 60) & 1 == 1).flat_map(of).collect::<Vec<_>>().join(",")
    });
    prop_oneof![1 => Just(String::new()), 1 => names]
}

fn pick<T: Clone>(of: &[T], by: u16) -> Option<T> {
    (!of.is_empty()).then(|| of[usize::from(by) % of.len()].clone())
}

impl World {
    fn happen(&mut self, (what, which, how): Chance) {
        match what % 16 {
            0..=3 => {
                if let Some(index) = pick(&self.ready.iter().copied().collect::<Vec<_>>(), which) {
                    self.apply(Event::Release { index });
                }
            }
            4..=8 => {
                let jobs: Vec<(JobId, u32)> = self.jobs.iter().map(|(job, index)| (*job, *index)).collect();
                if let Some((job, index)) = pick(&jobs, which) {
                    let of = self.job_ref(job, index);
                    self.report(of, how);
                }
            }
            9 => {
                if let Some(of) = pick(&self.answered.clone(), which) {
                    self.report(of, how);
                }
            }
            10 | 11 => {
                let late = if how.is_multiple_of(3) { u64::from(which) } else { 0 };
                self.fire_next(late);
            }
            12 => self.now_ms += u64::from(how),
            13 => self.go_on(),
            14 if how < 110 => self.wish(which, how),
            14 => self.go_on(),
            _ => self.forget_and_audit(which),
        }
    }

    fn go_on(&mut self) {
        if let Some(work) = self.todo.front().copied() {
            self.apply(Event::Continue(work));
        }
    }

    fn report(&mut self, of: JobRef, how: u8) {
        let retryable = [None, None, None, Some(true), Some(false)][usize::from(how / 24) % 5];
        let fail = |category| Outcome::Failed(Failure { retryable, ..Failure::new(category, "no luck") });
        let worker = Self::worker();
        let outcome = match how % 24 {
            0..=6 => Outcome::Completed(None),
            7 => Outcome::Completed(Some(Payload::Inline(vec![1].into()))),
            8 => fail(Category::Data),
            9 => fail(Category::Permanent),
            n @ 10..=14 => fail(Category::ALL[usize::from(n - 10)]),
            15 => Outcome::Returned(Returned::Drain),
            16 => Outcome::Returned(Returned::Surplus),
            17 => {
                self.now_ms += 300_000 * u64::from(how % 2);
                Outcome::Returned(Returned::NoHandler)
            }
            18 => Outcome::Cancelled,
            n @ 19..=20 => return drop(self.apply(Event::Lost { of, worker, counted: n == 19, seen: None })),
            n @ 21..=22 => {
                let step = self.run.step(of.index);
                if step.state == State::Queued && step.job == Some(of.job) && step.in_flight {
                    let failure = Failure::new(Category::Data, "no such field");
                    let unrenderable = Event::Unrenderable { index: of.index, job: of.job, failure };
                    let deferred = Event::Deferred { index: of.index, job: of.job };
                    self.apply(if n == 21 { unrenderable } else { deferred });
                }
                return;
            }
            _ => return drop(self.apply(Event::Started { of, worker, running_ms: u64::from(how) * 10 })),
        };
        self.apply(Event::Result { of, worker, run_ms: u64::from(how), outcome });
    }

    fn fire_next(&mut self, late_ms: u64) -> bool {
        let Some((&timer, &due)) = self.timers.iter().min_by_key(|(timer, due)| (**due, **timer)) else { return false };
        self.now_ms = self.now_ms.max(due + late_ms);
        self.apply(Event::Timer(timer));
        true
    }

    fn wish(&mut self, which: u16, how: u8) {
        let steps = self.run.plan.steps.len();
        let letters: Vec<(StreamId, u32)> = self.letters.iter().map(|(letter, index)| (*letter, *index)).collect();
        let index = u32::from(which) % (steps as u32 + 1);
        let verb = match how % 18 {
            12 | 13 => Verb::RetryFrom { index },
            14 => Verb::Resolve { index, resolution: Resolution::Completed(None) },
            15 => {
                let output = Some(Payload::Inline(vec![1].into()));
                Verb::Resolve { index, resolution: Resolution::Completed(output) }
            }
            16 => Verb::Resolve { index, resolution: Resolution::Failed("by hand".into()) },
            17 => Verb::Compensate,
            0 if which.is_multiple_of(4) => Verb::Cancel,
            0 | 1 => Verb::Suspend { now: false },
            2 | 3 => Verb::Suspend { now: true },
            4..=6 => Verb::Resume,
            7 | 8 => Verb::Retry,
            n => match pick(&letters, which) {
                Some((letter, index)) => {
                    let input = (n == 9).then(|| Payload::Inline(vec![1].into()));
                    Verb::Replay { index, letter, input }
                }
                None => Verb::Replay { index, letter: StreamId { ms: 1, seq: 1 }, input: None },
            },
        };
        let command = self.command(verb);
        self.apply(command);
    }

    /// A step falls out of the ready set, a job off its stream, a letter or a work item is lost, and an auditor sees it.
    fn forget_and_audit(&mut self, which: u16) {
        let letters: Vec<(StreamId, u32)> = self.letters.iter().map(|(letter, index)| (*letter, *index)).collect();
        let lost_work = !self.todo.is_empty() && !self.run.rewinding && self.run.undoing == Undoing::None;
        if lost_work && which.is_multiple_of(2) {
            self.apply(Event::AuditWork);
        } else if let Some((letter, index)) = pick(&letters, which).filter(|_| which.is_multiple_of(3)) {
            self.apply(Event::AuditLetter { index, letter });
            assert!(!self.letters.contains_key(&letter) && self.letters.len() == letters.len());
        } else if which.is_multiple_of(5) {
            self.apply(Event::AuditTimeout);
        } else if let Some(index) = pick(&self.ready.iter().copied().collect::<Vec<_>>(), which) {
            self.ready.remove(&index);
            self.apply(Event::Audit { index });
        } else if let Some((job, index)) = pick(&self.jobs.iter().map(|(j, i)| (*j, *i)).collect::<Vec<_>>(), which) {
            self.apply(Event::AuditJob { index, job });
        } else {
            self.apply(Event::AuditRun);
        }
    }

    /// Every worker answers well, nobody wishes anything, and no run is ever too late: until nothing is left to do.
    fn calm_down(&mut self) {
        self.timers.remove(&Timer::Run);
        loop {
            if !self.todo.is_empty() {
                self.go_on();
            } else if let Some(index) = self.ready.first().copied() {
                self.apply(Event::Release { index });
            } else if let Some((job, index)) = self.jobs.first_key_value().map(|(job, index)| (*job, *index)) {
                let of = self.job_ref(job, index);
                let outcome = if self.stops.contains(&job) { Outcome::Cancelled } else { Outcome::Completed(None) };
                self.apply(Event::Result { of, worker: Self::worker(), run_ms: 1, outcome });
            } else if !self.fire_next(0) {
                return;
            }
            self.timers.remove(&Timer::Run);
        }
    }
}

fn lives(graph: &str, fleet: &serde_json::Value, chances: &[Chance]) {
    let mut world = World::new(plan(graph));
    let policies = check_policies_value(&serde_json::json!({ "retry": fleet })).expect("legal policies");
    world.rules = Rules::new(1, policies);
    let submit = world.submit();
    world.apply(submit);
    for chance in chances {
        world.happen(*chance);
    }
    world.calm_down();
    let calm = world.run.state;
    assert!(calm.is_finished() || calm == State::Suspended, "the run hangs in {calm}");
    assert!(world.stops.is_empty(), "nobody is told to stop what is over");
    // What stopped can be taken up again, and then it is done.
    let mut taken_up = 0;
    while matches!(world.run.state, State::Failed | State::Suspended) {
        if world.run.state == State::Failed && world.run.undoing == Undoing::Done {
            // It is not taken up again, and cancelled so that nobody tries.
            let command = world.command(Verb::Cancel);
            world.apply(command);
            world.calm_down();
            break;
        }
        let resumes = world.run.undoing == Undoing::Running || world.run.given_up() == 0;
        let resumes = resumes && world.run.state == State::Suspended && !world.run.is_held_failure();
        let verb = if resumes { Verb::Resume } else { Verb::Retry };
        let command = world.command(verb);
        world.apply(command);
        world.calm_down();
        taken_up += 1;
        assert!(taken_up < 3, "taken up again and again");
    }
    assert!(world.run.state.is_final(), "the run hangs in {}", world.run.state);
    if world.run.state == State::Completed {
        let regular = &world.run.steps()[..world.run.plan.regular as usize];
        assert!(regular.iter().all(|s| s.tolerated || matches!(s.state, State::Completed | State::Skipped)));
        let borne = world.run.errors.iter().all(|e| world.run.step(e.index).tolerated);
        assert!(world.letters.is_empty() && borne, "nothing of a completed run is open");
    }
    if world.run.state == State::Cancelled {
        assert!(world.letters.is_empty(), "nobody waits for a letter of a cancelled run");
    }
    assert!(world.timers.is_empty() && world.ready.is_empty() && world.jobs.is_empty() && world.todo.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, max_shrink_iters: 4_000, ..Default::default() })]

    #[test]
    fn no_run_hangs_and_no_rule_breaks(
        graph in graph(),
        settings in settings(),
        fleet in super::policies::retry(),
        chances in prop::collection::vec(any::<Chance>(), 0..300),
    ) {
        lives(&format!("{graph} | {settings}"), &fleet, &chances);
    }
}

/// Every legal move, by who takes it.
const TAKEN: &str = "
    runs: created -> queued
    runs: queued -> processing | suspended | cancelled
    runs: processing -> completed | failed | suspended | cancelled
    runs: failed -> retrying | suspended | cancelled
    runs: retrying -> queued
    runs: suspended -> queued | failed | cancelled
    steps: created -> queued | cancelled | skipped
    steps: queued -> processing | suspended | cancelled
    steps: processing -> queued | completed | failed | suspended | cancelled
    steps: failed -> retrying | suspended | cancelled
    steps: retrying -> queued | suspended | cancelled
    steps: suspended -> queued | completed | failed | cancelled
    reserved: created -> failed
    reserved: processing -> waiting
    reserved: waiting -> processing | failed | suspended | cancelled";

/// The legal moves in the form of [`TAKEN`]: those of runs, of steps, and the reserved ones, which nobody takes.
fn told(taken: impl Fn(bool, State, State) -> bool) -> String {
    let mut out = String::new();
    let belongs = |kind: &str, from, to| match kind {
        "runs" => taken(false, from, to),
        "steps" => taken(true, from, to),
        _ => !taken(false, from, to) && !taken(true, from, to),
    };
    for kind in ["runs", "steps", "reserved"] {
        for from in State::ALL {
            let to: Vec<&str> = State::ALL
                .into_iter()
                .filter(|to| from.may_become(*to) && belongs(kind, from, *to))
                .map(State::as_str)
                .collect();
            if !to.is_empty() {
                write!(out, "\n    {kind}: {from} -> {}", to.join(" | ")).expect("text takes everything");
            }
        }
    }
    out
}

#[test]
fn the_generated_lives_take_every_move_that_is_not_reserved_and_give_every_reason() {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
    );
    let lives = (graph(), settings(), prop::collection::vec(any::<Chance>(), 1..300));
    let (mut seen, mut moves) = (BTreeSet::new(), BTreeSet::new());
    for life in 0..250 {
        let (graph, settings, chances) = lives.new_tree(&mut runner).expect("a life").current();
        let mut world = World::new(plan(&format!("{graph} | {settings}")));
        let submit = world.submit();
        world.apply(submit);
        if life % 50 == 0 {
            // Called off before anybody began.
            let cancel = world.command(Verb::Cancel);
            world.apply(cancel);
        }
        for chance in chances {
            world.happen(chance);
        }
        world.calm_down();
        seen.extend(world.reasons.iter().copied());
        moves.extend(world.moves.iter().copied());
    }
    assert_eq!(told(|of, from, to| moves.contains(&(of, from, to))), TAKEN);
    let missing: Vec<u8> = (0..=19).chain(22..=26).filter(|why| !seen.contains(why)).collect();
    assert_eq!(missing, [0u8; 0], "reasons that no life reached: the generator is too tame");
}
