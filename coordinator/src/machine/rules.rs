//! What holds for a step when it fails: the first level that says something, number by number.
//!
//! The order is step, workflow, handler, fleet, built-in; inside a level a category goes before the general setting. The rules
//! of one version are given to every decision of a batch, so that a decision stays pure.

use std::sync::Arc;

use stepfleet_protocol::{
    failure::Category,
    gate::{About, Gate},
    name::Name,
    policy::{BreakerPolicy, Classification, Policies, Preset},
    workflow::{BACKOFF_BASE, BACKOFF_CAP, BACKOFF_FACTOR, Backoff, CategoryRetry, Jitter, MAX_ATTEMPTS, Retry},
};

use super::plan::{Plan, PlanStep};

/// The fleet's policies of one version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Which version; 0 if nobody ever wrote one.
    pub version: u64,
    /// What was written.
    pub policies: Arc<Policies>,
}

/// Where a setting was written.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// In the step.
    Step,
    /// In the defaults of the workflow.
    Workflow,
    /// In the fleet's policies, for the handler.
    Handler,
    /// In the fleet's policies, for everything.
    Fleet,
    /// Nowhere.
    BuiltIn,
}

/// A setting, and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct From<T> {
    /// What holds.
    pub value: T,
    /// Where it was written.
    pub level: Level,
    /// It was written for the category.
    pub for_category: bool,
}

/// What holds for failures of one category.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effective {
    /// Whether it is tried again, unless the handler says.
    pub retry: From<bool>,
    /// Tries in all.
    pub max_attempts: From<u32>,
    /// The wait after the first failed try, in milliseconds.
    pub base_ms: From<u64>,
    /// What each wait is multiplied with for the next one.
    pub factor: From<f64>,
    /// The longest wait, in milliseconds.
    pub cap_ms: From<u64>,
    /// How much of a wait is random.
    pub jitter: From<Jitter>,
    /// The failure that is an escalation, counted from 1; 0 for none.
    pub escalate_after: From<u32>,
    /// Whether giving up is an escalation.
    pub notify: From<bool>,
}

/// Numbers of a category when nobody wrote any.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BuiltIn {
    retry: bool,
    max_attempts: u32,
    base_ms: u64,
    cap_ms: u64,
}

impl BuiltIn {
    fn of(preset: Preset, category: Option<Category>) -> Self {
        let (max_attempts, base_ms, cap_ms) = match preset {
            Preset::Default => (MAX_ATTEMPTS, BACKOFF_BASE.0, BACKOFF_CAP.0),
            Preset::Production => (5, 2_000, 120_000),
        };
        let with = |base_ms| Self { retry: true, max_attempts, base_ms, cap_ms };
        match category {
            None | Some(Category::Transient | Category::Timeout) => with(base_ms),
            Some(Category::RateLimited) => with(30_000),
            Some(Category::System) => with(5_000),
            Some(Category::WorkerLost) => with(0),
            // The waits are for a failure whose handler says that it may be retried.
            Some(Category::Data | Category::Permanent) => Self { retry: false, ..with(base_ms) },
        }
    }
}

/// What one level says, its category first.
struct Said<'a> {
    level: Level,
    category: Option<&'a CategoryRetry>,
    general: &'a Retry,
}

impl Said<'_> {
    fn get<T>(
        &self,
        special: impl Fn(&CategoryRetry) -> Option<T>,
        general: impl Fn(&Retry) -> Option<T>,
    ) -> Option<From<T>> {
        let found = |value, for_category| From { value, level: self.level, for_category };
        let first = self.category.and_then(special).map(|value| found(value, true));
        first.or_else(|| general(self.general).map(|value| found(value, false)))
    }

    fn backoff<T>(&self, of: impl Fn(&Backoff) -> Option<T>) -> Option<From<T>> {
        self.get(|c| c.backoff.as_ref().and_then(&of), |r| r.backoff.as_ref().and_then(&of))
    }
}

impl Rules {
    /// Rules of these policies.
    pub fn new(version: u64, policies: Policies) -> Self {
        Self { version, policies: Arc::new(policies) }
    }

    fn preset(&self) -> Preset {
        self.policies.preset.unwrap_or_default()
    }

    /// Whether categories have policies; if not, the handler's own verdict decides.
    pub fn classifies(&self) -> bool {
        self.policies.classification.unwrap_or_default() == Classification::Category
    }

    fn levels<'a>(
        &'a self,
        (step, workflow): (Option<&'a Retry>, Option<&'a Retry>),
        handler: Option<&Name>,
        category: Option<Category>,
    ) -> impl Iterator<Item = Said<'a>> {
        let category = category.filter(|_| self.classifies());
        let of_handler = handler.and_then(|h| self.policies.handlers.get(h)).and_then(|h| h.retry.as_ref());
        let written = [
            (Level::Step, step),
            (Level::Workflow, workflow),
            (Level::Handler, of_handler),
            (Level::Fleet, self.policies.retry.as_ref()),
        ];
        written.into_iter().filter_map(move |(level, general)| {
            let general = general?;
            Some(Said { level, category: category.and_then(|c| general.categories.get(&c)), general })
        })
    }

    /// Tries in all; of failures of no particular category if none is given.
    pub fn max_attempts(&self, plan: &Plan, step: &PlanStep, category: Option<Category>) -> u32 {
        let written = (step.retry.as_deref(), plan.retry.as_ref());
        let said = self
            .levels(written, Some(&step.handler), category)
            .find_map(|l| l.get(|c| c.max_attempts, |r| r.max_attempts));
        said.map_or_else(|| BuiltIn::of(self.preset(), None).max_attempts, |said| said.value)
    }

    /// Everything that holds for failures of a category of a step.
    pub fn effective(&self, plan: &Plan, step: &PlanStep, category: Category) -> Effective {
        self.resolve((step.retry.as_deref(), plan.retry.as_ref()), Some(&step.handler), category)
    }

    /// Everything that holds for failures of a category: `written` is what the step and its workflow say. Without a handler it
    /// is what holds for handlers that nobody speaks of.
    pub fn resolve(
        &self,
        written: (Option<&Retry>, Option<&Retry>),
        handler: Option<&Name>,
        category: Category,
    ) -> Effective {
        let built_in = BuiltIn::of(self.preset(), Some(category).filter(|_| self.classifies()));
        let all: Vec<Said<'_>> = self.levels(written, handler, Some(category)).collect();
        let first = |value| From { value, level: Level::BuiltIn, for_category: false };
        let number = |special: fn(&CategoryRetry) -> Option<u32>, general: fn(&Retry) -> Option<u32>, none| {
            all.iter().find_map(|l| l.get(special, general)).unwrap_or(first(none))
        };
        let millis = |of: fn(&Backoff) -> Option<u64>, none| {
            all.iter().find_map(|l| l.backoff(of)).unwrap_or(From {
                value: none,
                level: Level::BuiltIn,
                for_category: true,
            })
        };
        let nothing = |level| From { value: false, level, for_category: false };
        Effective {
            retry: all.iter().find_map(|l| l.get(|c| c.retry, |_| None)).unwrap_or(From {
                value: built_in.retry && self.classifies(),
                level: Level::BuiltIn,
                for_category: true,
            }),
            max_attempts: number(|c| c.max_attempts, |r| r.max_attempts, built_in.max_attempts),
            base_ms: millis(|b| b.base.map(|d| d.0), built_in.base_ms),
            factor: all.iter().find_map(|l| l.backoff(|b| b.factor)).unwrap_or(From {
                value: BACKOFF_FACTOR,
                level: Level::BuiltIn,
                for_category: false,
            }),
            cap_ms: millis(|b| b.cap.map(|d| d.0), built_in.cap_ms),
            jitter: all.iter().find_map(|l| l.backoff(|b| b.jitter)).unwrap_or(From {
                value: Jitter::default(),
                level: Level::BuiltIn,
                for_category: false,
            }),
            escalate_after: number(|c| c.escalate_after, |r| r.escalate_after, 0),
            notify: all.iter().find_map(|l| l.get(|c| c.notify, |r| r.notify)).unwrap_or(nothing(Level::BuiltIn)),
        }
    }

    /// The circuit breaker of this name.
    pub fn breaker_of(&self, gate: &Gate) -> Breaker {
        match gate.about() {
            About::Handler(name) => {
                Name::new(name).map_or_else(|_| self.breaker_of_target(name), |n| self.breaker_of_handler(&n))
            }
            About::Target(text) | About::Queue(text) => self.breaker_of_target(text),
        }
    }

    /// The circuit breaker of a handler.
    pub fn breaker_of_handler(&self, handler: &Name) -> Breaker {
        let own = self.policies.handlers.get(handler).and_then(|h| h.breaker.as_ref());
        // A stock handler speaks to whatever its input says, so that it is no dependency by itself.
        let stock =
            STOCK.contains(&handler.as_str()).then(|| BreakerPolicy { enabled: Some(false), ..Default::default() });
        self.breaker(own, stock)
    }

    /// The circuit breaker of a target.
    pub fn breaker_of_target(&self, target: &str) -> Breaker {
        self.breaker(self.policies.targets.get(target), None)
    }

    /// The circuit breaker of handlers and targets that nobody speaks of.
    pub fn breaker_of_others(&self) -> Breaker {
        self.breaker(None, None)
    }

    fn breaker(&self, own: Option<&BreakerPolicy>, stock: Option<BreakerPolicy>) -> Breaker {
        let nothing = BreakerPolicy::default();
        let said = own.unwrap_or(&nothing).over(&stock.unwrap_or_default());
        let said = said.over(self.policies.breaker.as_ref().unwrap_or(&nothing));
        let (failures, break_ms) = match self.preset() {
            Preset::Default => (5, 60_000),
            Preset::Production => (10, 300_000),
        };
        let break_ms = said.break_for.map_or(break_ms, |d| d.0);
        Breaker {
            enabled: said.enabled.unwrap_or(true),
            failures: said.failures.unwrap_or(failures),
            ratio: said.ratio.unwrap_or(0.5),
            minimum_calls: said.minimum_calls.unwrap_or(10),
            window_ms: said.window.map_or(60_000, |d| d.0),
            break_ms,
            break_cap_ms: said.break_cap.map_or(break_ms.saturating_mul(10), |d| d.0).max(break_ms),
            canaries: said.canaries.unwrap_or(3),
        }
    }
}

/// Handlers that come with every worker.
const STOCK: [&str; 4] = ["exec", "http", "sleep", "fail"];

/// When a circuit breaker opens, and how it closes: every number filled in. See [`BreakerPolicy`].
#[derive(
    Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
pub struct Breaker {
    /// Whether it opens by itself.
    pub enabled: bool,
    /// Failures in a row that open it.
    pub failures: u32,
    /// The share of failures in the window that opens it.
    pub ratio: f64,
    /// Calls in the window below which it never opens.
    pub minimum_calls: u32,
    /// The sliding window, in milliseconds.
    pub window_ms: u64,
    /// How long it stays open the first time, in milliseconds.
    pub break_ms: u64,
    /// The longest time it stays open, in milliseconds.
    pub break_cap_ms: u64,
    /// Jobs that are let through to try.
    pub canaries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(policies: Policies) -> Rules {
        Rules::new(1, policies)
    }

    #[test]
    fn both_presets_can_be_had() {
        let numbers = |preset| {
            let rules = with(Policies { preset: Some(preset), ..Policies::default() });
            let (by, breaker) = (rules.resolve((None, None), None, Category::Transient), rules.breaker_of_others());
            let retry = (by.max_attempts.value, by.base_ms.value, by.cap_ms.value);
            (retry, breaker.failures, breaker.minimum_calls, breaker.break_ms)
        };
        assert_eq!(numbers(Preset::Default), ((3, 1_000, 60_000), 5, 10, 60_000));
        assert_eq!(numbers(Preset::Production), ((5, 2_000, 120_000), 10, 10, 300_000));
    }

    #[test]
    fn every_number_says_where_it_was_written() {
        let fleet = Retry { max_attempts: Some(4), notify: Some(true), ..Retry::default() };
        let rules = with(Policies { retry: Some(fleet), ..Policies::default() });
        let special = CategoryRetry { escalate_after: Some(2), ..CategoryRetry::default() };
        let step = Retry { categories: [(Category::System, special)].into(), ..Retry::default() };
        let workflow = Retry { max_attempts: Some(9), ..Retry::default() };
        let by = rules.resolve((Some(&step), Some(&workflow)), None, Category::System);
        let from = |level, for_category| (level, for_category);
        assert_eq!((by.max_attempts.value, by.max_attempts.level), (9, Level::Workflow));
        assert_eq!(from(by.escalate_after.level, by.escalate_after.for_category), (Level::Step, true));
        assert_eq!(from(by.notify.level, by.notify.for_category), (Level::Fleet, false));
        assert_eq!((by.base_ms.value, by.base_ms.level), (5_000, Level::BuiltIn));
    }
}
