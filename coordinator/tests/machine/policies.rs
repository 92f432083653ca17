//! Policies and what steps do by them: which level decides, how often and when a step is tried again, who is told.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};
use stepfleet_coordinator::{
    machine::{
        decision::{Cause, Decision, Effect, Why},
        event::{Event, Timer},
        plan::Plan,
        rules::Rules,
    },
    workflow::check_policies_value,
};
use stepfleet_protocol::{
    failure::{Category, Failure},
    limits::{LOSSES_MAX, RETRY_AFTER_MS_MAX},
    message::{JobRef, Outcome, Verb},
    state::State,
    workflow::Workflow,
};

use super::world::World;

/// What each level says about retries, from the step down to the fleet; null for nothing.
#[derive(Debug, Clone, Default)]
struct Written {
    step: Value,
    workflow: Value,
    handler: Value,
    fleet: Value,
}

impl Written {
    fn world(&self) -> World {
        let workflow = json!({ "workflow": "w", "timeout": "0", "defaults": { "retry": self.workflow },
            "steps": { "a": { "handler": "work", "retry": self.step } } });
        let workflow: Workflow = serde_json::from_value(workflow).expect("a legal workflow");
        let policies = json!({ "retry": self.fleet, "handlers": { "work": { "retry": self.handler } } });
        let mut world = World::new(Arc::new(Plan::compile("hash".into(), &workflow)));
        world.rules = Rules::new(1, check_policies_value(&policies).expect("legal policies"));
        let submit = world.submit();
        world.apply(submit);
        world
    }
}

/// The job of the only step, from where it stands: its retry falls due, and it is released.
fn job(world: &mut World) -> JobRef {
    if let Some((&timer, &due)) = world.timers.iter().find(|(timer, _)| matches!(timer, Timer::Retry { .. })) {
        world.now_ms = world.now_ms.max(due);
        world.apply(Event::Timer(timer));
    }
    if world.ready.contains(&0) {
        world.apply(Event::Release { index: 0 });
    }
    let (job, index) = world.jobs.first_key_value().map(|(job, index)| (*job, *index)).expect("a job");
    world.job_ref(job, index)
}

/// The job of the only step fails.
fn fail(world: &mut World, failure: Failure) -> Decision {
    let of = job(world);
    world.apply(Event::Result { of, worker: World::worker(), run_ms: 5, outcome: Outcome::Failed(failure) })
}

/// Fails always with `category` until the step gives up: tries, and the cause of the letter.
fn until_given_up(world: &mut World, category: Category) -> (u32, Cause) {
    for tries in 1..=2_000 {
        let decision = fail(world, Failure::new(category, "no luck"));
        let letter = decision.effects.iter().find_map(|e| match e {
            Effect::Letter(letter) => Some(letter.cause),
            _ => None,
        });
        if let Some(cause) = letter {
            return (tries, cause);
        }
    }
    panic!("the step never gives up");
}

#[test]
fn each_category_is_tried_as_often_as_the_first_level_says_that_says_something() {
    let mends = |c: Category| !matches!(c, Category::Data | Category::Permanent);
    for category in Category::ALL {
        let built_in = until_given_up(&mut Written::default().world(), category);
        let expected = match category {
            Category::Data => (1, Cause::Data),
            Category::Permanent => (1, Cause::Permanent),
            _ => (3, Cause::Exhausted),
        };
        assert_eq!(built_in, expected, "{category}: built-in");
        // Every level says its own number, in general or for the category; then level by level falls silent from the top.
        for special in [false, true] {
            let say = |tries: u32| match special {
                false => json!({ "max_attempts": tries }),
                true => json!({ "categories": { category.as_str(): { "max_attempts": tries, "retry": true } } }),
            };
            let mut written = Written { step: say(7), workflow: say(6), handler: say(5), fleet: say(4) };
            for (level, tries) in [("step", 7), ("workflow", 6), ("handler", 5), ("fleet", 4)] {
                let found = until_given_up(&mut written.world(), category);
                let is_tried = special || mends(category);
                let expected = if is_tried { (tries, Cause::Exhausted) } else { expected };
                assert_eq!(found, expected, "{category}: {level}, for the category: {special}");
                match level {
                    "step" => written.step = Value::Null,
                    "workflow" => written.workflow = Value::Null,
                    _ => written.handler = Value::Null,
                }
            }
        }
        // Inside a level the category goes first; across levels the level does.
        let both =
            json!({ "max_attempts": 2, "categories": { category.as_str(): { "max_attempts": 4, "retry": true } } });
        let inside = Written { handler: both.clone(), ..Written::default() };
        assert_eq!(until_given_up(&mut inside.world(), category), (4, Cause::Exhausted), "{category}: inside a level");
        let across = Written { step: json!({ "max_attempts": 5 }), handler: both, ..Written::default() };
        assert_eq!(until_given_up(&mut across.world(), category), (5, Cause::Exhausted), "{category}: across levels");
        let never = json!({ "categories": { category.as_str(): { "retry": false } } });
        let never = until_given_up(&mut Written { workflow: never, ..Written::default() }.world(), category);
        assert_eq!(never.0, 1, "{category}: never tried again");
    }
}

#[test]
fn with_classification_by_handler_only_its_own_word_counts() {
    for category in Category::ALL {
        let mut world = Written::default().world();
        let policies = json!({ "classification": "handler", "retry": { "max_attempts": 2,
            "categories": { category.as_str(): { "max_attempts": 9, "retry": true } } } });
        world.rules = Rules::new(2, check_policies_value(&policies).expect("legal policies"));
        let says = |retryable| Failure { retryable, ..Failure::new(category, "no luck") };
        fail(&mut world, says(Some(true)));
        assert_eq!(world.run.step(0).state, State::Retrying, "{category}: the handler says so");
        fail(&mut world, says(Some(true)));
        assert_eq!(world.run.step(0).state, State::Failed, "{category}: after two tries, not nine");
        let retry = world.command(Verb::Retry);
        world.apply(retry);
        while let Some(work) = world.todo.front().copied() {
            world.apply(Event::Continue(work));
        }
        fail(&mut world, says(None));
        assert_eq!(world.run.step(0).state, State::Failed, "{category}: the handler does not say so");
    }
}

fn escalations(decision: &Decision) -> Vec<String> {
    let remarks = decision.transitions.iter().filter(|t| t.why == Why::Escalated);
    remarks.map(|t| format!("#{} {}", t.attempt, t.note.as_deref().unwrap_or_default())).collect()
}

#[test]
fn a_step_escalates_once_in_a_budget_and_when_it_gives_up() {
    let fleet = json!({ "max_attempts": 4, "notify": true, "backoff": { "base": "1s", "jitter": "none" },
        "categories": { "timeout": { "escalate_after": 2 }, "transient": { "escalate_after": 3 } } });
    let mut world = Written { fleet, ..Written::default() }.world();
    let categories = [Category::Transient, Category::Timeout, Category::Transient, Category::Transient];
    for budget in 0..2 {
        let told: Vec<Vec<String>> =
            categories.map(|c| escalations(&fail(&mut world, Failure::new(c, "no luck")))).into();
        let [second, last] = [2 + 4 * budget, 4 + 4 * budget];
        let by_count = format!("#{second} failure 2 of this budget, escalated from 2 on: timeout: no luck");
        let at_end = format!("#{last} the step gave up: transient: no luck");
        assert_eq!(told, [vec![], vec![by_count], vec![], vec![at_end]], "budget {budget}");
        let retry = world.command(Verb::Retry);
        world.apply(retry);
        while let Some(work) = world.todo.front().copied() {
            world.apply(Event::Continue(work));
        }
    }
}

#[test]
fn an_escalation_changes_nothing_but_the_history() {
    let plain = json!({ "backoff": { "base": "1s" } });
    let loud = json!({ "backoff": { "base": "1s" }, "escalate_after": 1, "notify": true });
    let [mut plain, mut loud] = [plain, loud].map(|fleet| Written { fleet, ..Written::default() }.world());
    for _ in 0..3 {
        let [quiet, mut told] =
            [&mut plain, &mut loud].map(|world| fail(world, Failure::new(Category::Transient, "no luck")));
        told.transitions.retain(|t| t.why != Why::Escalated);
        assert_eq!(told, quiet);
    }
    assert_eq!(plain.run, loud.run);
}

#[test]
fn a_run_that_is_being_stopped_escalates_nothing() {
    let loud = json!({ "escalate_after": 1, "notify": true });
    let mut world = Written { fleet: loud, ..Written::default() }.world();
    world.apply(Event::Release { index: 0 });
    let cancel = world.command(Verb::Cancel);
    world.apply(cancel);
    while let Some(work) = world.todo.front().copied() {
        world.apply(Event::Continue(work));
    }
    let decision = fail(&mut world, Failure::new(Category::Permanent, "no luck"));
    assert_eq!((escalations(&decision), world.run.step(0).state), (vec![], State::Cancelled));
}

/// Anything that one level may say about retries.
pub(super) fn retry() -> impl Strategy<Value = Value> {
    let tries = || prop::option::of(1u32..7);
    let backoff = || {
        let jitter = prop_oneof![Just("full"), Just("equal"), Just("none")];
        (0u64..5_000, 1.0f64..10.0, 0u64..20_000, jitter).prop_map(|(base, factor, cap, jitter)| {
            json!({ "base": format!("{base}ms"), "factor": factor, "cap": format!("{cap}ms"), "jitter": jitter })
        })
    };
    let of_category = (tries(), prop::option::of(any::<bool>()), prop::option::of(backoff()));
    let category = of_category
        .prop_map(|(tries, retry, backoff)| json!({ "max_attempts": tries, "retry": retry, "backoff": backoff }));
    let categories = prop::collection::btree_map(0usize..7, category, 0..7).prop_map(|of| {
        of.into_iter().map(|(at, value)| (Category::ALL[at].to_string(), value)).collect::<BTreeMap<_, _>>()
    });
    prop_oneof![
        1 => Just(Value::Null),
        3 => (tries(), tries(), any::<bool>(), prop::option::of(backoff()), categories).prop_map(
            |(tries, escalate_after, notify, backoff, categories)| {
                json!({ "max_attempts": tries, "backoff": backoff, "categories": categories,
                    "escalate_after": escalate_after, "notify": notify })
            }
        ),
    ]
}

/// A failure: category (beyond the last one a loss), the handler's verdict, the server's wait.
type Blow = (u8, Option<bool>, Option<u64>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_schedule_of_failures_and_crashes_burns_more_tries_than_allowed_and_waits_stay_in_bounds(
        (step, workflow, handler, fleet) in (retry(), retry(), retry(), retry()),
        blows in prop::collection::vec(
            (0u8..9, prop::option::weighted(0.3, any::<bool>()), prop::option::weighted(0.3, 0u64..200_000_000)),
            1..25,
        ),
    ) {
        let blows: Vec<Blow> = blows;
        let mut world = Written { step, workflow, handler, fleet }.world();
        let plan = world.run.plan.clone();
        let highest = Category::ALL.map(|c| world.rules.effective(&plan, &plan.steps[0], c).max_attempts.value);
        let highest = highest.into_iter().max().expect("some category");
        let (mut tries, mut losses) = (0, 0);
        for (category, retryable, retry_after_ms) in blows {
            let Some(category) = Category::from_u8(category) else {
                losses += 1;
                let of = job(&mut world);
                world.apply(Event::Lost { of, worker: World::worker(), counted: true, seen: None });
                prop_assert_eq!(world.run.step(0).attempts, tries, "a loss is no try");
                prop_assert_eq!(world.run.step(0).state == State::Failed, losses == LOSSES_MAX);
                if losses == LOSSES_MAX { break } else { continue }
            };
            tries += 1;
            let by = world.rules.effective(&plan, &plan.steps[0], category);
            fail(&mut world, Failure { retryable, retry_after_ms, ..Failure::new(category, "no luck") });
            prop_assert!(tries <= highest && world.run.step(0).attempts == tries);
            let again = retryable.unwrap_or(by.retry.value) && tries < by.max_attempts.value;
            prop_assert_eq!(world.run.step(0).state != State::Failed, again, "try {} of {:?}", tries, by);
            if !again {
                prop_assert_eq!(world.letters.len(), 1);
                break;
            }
            let wait_ms = world.timers.values().next().map_or(0, |due| due - world.now_ms);
            let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MS_MAX);
            prop_assert!(wait_ms >= asked && wait_ms <= by.cap_ms.value.max(asked), "{} ms by {:?}", wait_ms, by);
        }
    }
}
