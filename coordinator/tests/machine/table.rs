//! Tables: files of scenarios, each a plan and a script of events with the whole outcome of every event below it.
//!
//! `UPDATE=1` rewrites the outcomes; read the difference before it is committed.

use std::{fmt::Write, path::Path};

use stepfleet_coordinator::machine::event::{Event, Timer};
use stepfleet_protocol::{
    duration::Millis,
    failure::{Category, Failure},
    id::{JobId, StreamId},
    message::{JobRef, Outcome, Resolution, Returned, Verb},
    value::{Payload, ValueRef},
};

use super::{plans::plan, world::World};

/// Plays `tables/<name>.txt` and compares every outcome with what is written there.
fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/machine/tables/{name}.txt"));
    let written = std::fs::read_to_string(&path).expect("the table is there");
    let played = play(&written);
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(&path, played).expect("the table can be written");
    }
    for (at, (found, expected)) in played.lines().zip(written.lines()).enumerate() {
        assert_eq!(found, expected, "{name}.txt line {}; UPDATE=1 rewrites", at + 1);
    }
    assert_eq!(played.lines().count(), written.lines().count(), "{name}.txt ends elsewhere; UPDATE=1 rewrites");
}

fn play(text: &str) -> String {
    let mut out = String::new();
    let mut scene = None;
    for line in text.lines().filter(|l| !l.starts_with("  ")) {
        writeln!(out, "{line}").expect("text takes everything");
        if let Some(steps) = line.strip_prefix("plan ") {
            scene = Some(Scene { world: World::new(plan(steps)), by_hand: false });
        } else if !line.is_empty() && !line.starts_with('#') {
            let scene = scene.as_mut().expect("a plan comes first");
            out += &scene.line(line);
        }
    }
    out
}

struct Scene {
    world: World,
    /// Ready steps wait for `release`; else the shell releases them at once.
    by_hand: bool,
}

impl Scene {
    /// Plays one line; `quiet` hides what comes of it.
    fn line(&mut self, line: &str) -> String {
        let (quiet, line) = line.strip_prefix("quiet ").map_or((false, line), |rest| (true, rest));
        let words: Vec<&str> = line.split_whitespace().collect();
        let out = match words[..] {
            ["by", "hand"] => {
                self.by_hand = true;
                String::new()
            }
            ["show"] => self.world.show(),
            ["wait", time] => self.wait(Millis::parse(time).expect("a duration").0),
            ["continue", "all"] => {
                let mut out = String::new();
                while !self.world.todo.is_empty() {
                    out += &self.one("continue", &[]);
                }
                out
            }
            ["pass", time] => {
                self.world.now_ms += Millis::parse(time).expect("a duration").0;
                String::new()
            }
            [verb, of, ref rest @ ..] if of.contains('*') => {
                let stem = of.trim_end_matches('*');
                let open: Vec<u32> = self.world.jobs.values().copied().collect();
                let named = |i: &u32| self.name(*i).strip_prefix(stem).is_some_and(|n| n.parse::<u32>().is_ok());
                let of: Vec<String> = open.into_iter().filter(named).map(|i| self.name(i)).collect();
                of.iter().map(|name| self.one(verb, &[&[name.as_str()], rest].concat())).collect()
            }
            [verb, ref rest @ ..] => self.one(verb, rest),
            [] => String::new(),
        };
        if quiet { String::new() } else { out }
    }

    fn one(&mut self, verb: &str, words: &[&str]) -> String {
        let event = self.event(verb, words);
        self.play(event)
    }

    fn play(&mut self, event: Event) -> String {
        let mut decisions = vec![self.world.apply(event)];
        while let Some(index) = self.world.ready.first().copied().filter(|_| !self.by_hand) {
            decisions.push(self.world.apply(Event::Release { index }));
        }
        self.world.render(&decisions)
    }

    fn name(&self, index: u32) -> String {
        self.world.name(index)
    }

    /// Time passes, and every timer fires when it is due.
    fn wait(&mut self, ms: u64) -> String {
        let end = self.world.now_ms + ms;
        let mut out = String::new();
        loop {
            let next = self.world.timers.iter().map(|(t, due)| (*due, *t)).min().filter(|(due, _)| *due <= end);
            let Some((due, timer)) = next else { break };
            self.world.now_ms = self.world.now_ms.max(due);
            out += &self.play(Event::Timer(timer));
        }
        self.world.now_ms = end;
        if out.is_empty() { "  nothing\n".into() } else { out }
    }

    /// The step, and its latest job or the one that `a#1` names.
    fn job(&self, word: &str) -> (u32, JobId) {
        let (name, which) = word.split_once('#').map_or((word, None), |(name, n)| (name, n.parse::<usize>().ok()));
        let index = self.index(name);
        let jobs = &self.world.history[&index];
        (index, which.map_or_else(|| *jobs.last().expect("a job"), |n| jobs[n - 1]))
    }

    fn index(&self, name: &str) -> u32 {
        let count = self.world.run.plan.steps.len() as u32;
        (0..count).find(|index| self.world.name(*index) == name).expect("a step of the plan")
    }

    fn at(&self, word: &str) -> JobRef {
        let (index, job) = self.job(word);
        self.world.job_ref(job, index)
    }

    fn event(&self, verb: &str, words: &[&str]) -> Event {
        let result = |of: &str, outcome| Event::Result { of: self.at(of), worker: World::worker(), run_ms: 5, outcome };
        let wish = |verb| self.world.command(verb);
        match (verb, words) {
            ("submit", []) => self.world.submit(),
            ("release", [step]) => Event::Release { index: self.index(step) },
            ("audit", [step]) => Event::Audit { index: self.index(step) },
            ("audit", []) => Event::Audit { index: 999 },
            ("audit-timeout", []) => Event::AuditTimeout,
            ("audit-work", []) => Event::AuditWork,
            ("audit-letter", [step]) => {
                let index = self.index(step);
                let letter = self.world.run.step(index).letter.expect("an open letter");
                Event::AuditLetter { index, letter }
            }
            ("continue", []) => Event::Continue(self.world.todo.front().copied().expect("a work item")),
            ("done", [of]) => result(of, Outcome::Completed(None)),
            ("done", [of, "inline"]) => result(of, Outcome::Completed(Some(Payload::Inline(vec![1].into())))),
            ("done", [of, "ref"]) => {
                let value = ValueRef { id: format!("v-of-{of}"), bytes: 9_999 };
                result(of, Outcome::Completed(Some(Payload::Ref(value))))
            }
            ("fail", [of, category, more @ ..]) => result(of, Outcome::Failed(failure(category, more))),
            ("return", [of, why]) => {
                let why = match *why {
                    "drain" => Returned::Drain,
                    "no_handler" => Returned::NoHandler,
                    "surplus" => Returned::Surplus,
                    other => panic!("unknown reason `{other}`"),
                };
                result(of, Outcome::Returned(why))
            }
            ("halted", [of]) => result(of, Outcome::Cancelled),
            ("lost", [of]) => Event::Lost { of: self.at(of), worker: World::worker(), counted: true, seen: None },
            ("undelivered", [of]) => {
                Event::Lost { of: self.at(of), worker: World::worker(), counted: false, seen: None }
            }
            ("started", [of, ms]) => {
                let running_ms = Millis::parse(ms).expect("a duration").0;
                Event::Started { of: self.at(of), worker: World::worker(), running_ms }
            }
            ("unrenderable", [of]) => {
                let (index, job) = self.job(of);
                Event::Unrenderable { index, job, failure: failure("data", &[]) }
            }
            ("timer", ["retry", of]) => {
                let (index, job) = self.job(of);
                Event::Timer(Timer::Retry { index, job })
            }
            ("timer", ["attempt", of]) => {
                let (index, job) = self.job(of);
                Event::Timer(Timer::Attempt { index, job })
            }
            ("timer", ["start", of]) => {
                let index = self.index(of);
                Event::Timer(Timer::Start { index, by_ms: self.world.run.step(index).start_by_ms })
            }
            ("timer", ["run"]) => Event::Timer(Timer::Run),
            ("cancel", []) => wish(Verb::Cancel),
            ("suspend", []) => wish(Verb::Suspend { now: false }),
            ("suspend", ["now"]) => wish(Verb::Suspend { now: true }),
            ("resume", []) => wish(Verb::Resume),
            ("retry", []) => wish(Verb::Retry),
            ("retry", ["from", step]) => wish(Verb::RetryFrom { index: self.index(step) }),
            ("retry", ["nowhere"]) => wish(Verb::RetryFrom { index: 999 }),
            ("compensate", []) => wish(Verb::Compensate),
            ("resolve", [step, how]) => {
                let index = self.index(step);
                let resolution = match *how {
                    "done" => Resolution::Completed(None),
                    "inline" => Resolution::Completed(Some(Payload::Inline(vec![1].into()))),
                    text => Resolution::Failed(text.to_owned()),
                };
                wish(Verb::Resolve { index, resolution })
            }
            ("replay", [step, more @ ..]) => {
                let index = self.index(step);
                let letter = self.world.run.step(index).letter.unwrap_or(StreamId { ms: 1, seq: 1 });
                let input = more.contains(&"patched").then(|| Payload::Inline(vec![1, 2].into()));
                wish(Verb::Replay { index, letter, input })
            }
            ("discard", [step]) => {
                let index = self.index(step);
                let letter = self.world.run.step(index).letter.unwrap_or(StreamId { ms: 1, seq: 1 });
                wish(Verb::Discard { index, letter })
            }
            (verb, words) => panic!("unknown line `{verb} {words:?}`"),
        }
    }
}

fn failure(category: &str, more: &[&str]) -> Failure {
    let category = Category::ALL.into_iter().find(|c| c.as_str() == category).expect("a category");
    let mut failure = Failure::new(category, "no luck");
    for word in more {
        match *word {
            "retryable" => failure.retryable = Some(true),
            "final" => failure.retryable = Some(false),
            word => {
                let after = word.strip_prefix("after=").expect("after=DURATION, retryable or final");
                failure.retry_after_ms = Some(Millis::parse(after).expect("a duration").0);
            }
        }
    }
    failure
}

#[test]
fn steps_run_in_the_order_of_their_needs() {
    check("order");
}

#[test]
fn failed_attempts_are_tried_again_or_give_up() {
    check("retries");
}

#[test]
fn late_and_doubled_reports_change_nothing() {
    check("late");
}

#[test]
fn losses_and_returns_do_not_count_as_tries() {
    check("losses");
}

#[test]
fn time_outs_of_attempts_and_runs() {
    check("time_outs");
}

#[test]
fn cancel_stops_a_run_from_every_state() {
    check("cancel");
}

#[test]
fn suspend_holds_and_resume_lets_go() {
    check("suspend");
}

#[test]
fn retry_and_replay_take_a_run_up_again() {
    check("reopen");
}

/// What others had: a parent that waits for ever because a child failed.
#[test]
fn a_failed_step_that_the_run_bears_lets_its_dependants_go_on_or_skips_them() {
    check("bearing");
}

#[test]
fn a_step_that_is_not_started_in_time_expires() {
    check("start_within");
}

#[test]
fn a_run_goes_back_to_a_step_and_does_everything_behind_it_again() {
    check("retry_from");
}

#[test]
fn an_operator_says_what_became_of_a_step() {
    check("resolve");
}

#[test]
fn completed_steps_are_undone_in_reverse_order() {
    check("compensation");
}

#[test]
fn large_graphs_change_part_by_part() {
    check("parts");
}
