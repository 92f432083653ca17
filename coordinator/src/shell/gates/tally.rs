//! What results say about a dependency, counted until it is told.

use stepfleet_protocol::{failure::Category, message::Outcome};

/// What became of a job that tried whether a dependency is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The dependency answered.
    Ok,
    /// It did not.
    Failed,
    /// Nobody knows; another job may try.
    None,
    /// The job is still at it.
    Held,
}

impl Verdict {
    /// What a result says about the dependency behind it. Data and permanent failures are the work's own; a permanent one is an
    /// answer nevertheless.
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed(_) => Self::Ok,
            Outcome::Failed(failure) if weight(failure.category) > 0 => Self::Failed,
            Outcome::Failed(failure) if failure.category == Category::Permanent => Self::Ok,
            Outcome::Failed(_) | Outcome::Returned(_) | Outcome::Cancelled => Self::None,
        }
    }

    /// The word for it in the script.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::None => "none",
            Self::Held => "held",
        }
    }
}

/// How much a failure counts against the dependency: not at all if it is the work's own, or the worker's.
fn weight(category: Category) -> u32 {
    match category {
        Category::Transient | Category::Timeout | Category::RateLimited => 1,
        Category::System => 2,
        Category::WorkerLost | Category::Data | Category::Permanent => 0,
    }
}

/// Calls of one dependency in a moment. Failures are weights: one of the system counts double.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Successes.
    pub ok: u32,
    /// Failures.
    pub failed: u32,
    /// Failures before the first success.
    pub first: u32,
    /// The most failures in a row.
    pub most: u32,
    /// Failures since the last success.
    pub last: u32,
}

impl Tally {
    /// Counts a result. False if it says nothing about the dependency.
    pub fn count(&mut self, outcome: &Outcome) -> bool {
        let failed = match outcome {
            Outcome::Completed(_) => 0,
            Outcome::Failed(failure) if weight(failure.category) > 0 => weight(failure.category),
            Outcome::Failed(_) | Outcome::Returned(_) | Outcome::Cancelled => return false,
        };
        let one = Self { ok: u32::from(failed == 0), failed, first: failed, most: failed, last: failed };
        self.add(&one);
        true
    }

    /// Counts what came after.
    pub fn add(&mut self, later: &Self) {
        let whole = |t: &Self| t.ok == 0;
        let row = self.last + later.first;
        let most = self.most.max(later.most).max(row);
        *self = Self {
            ok: self.ok + later.ok,
            failed: self.failed + later.failed,
            first: if whole(self) { row } else { self.first },
            most,
            last: if whole(later) { row } else { later.last },
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stepfleet_protocol::failure::Failure;

    use super::*;

    fn failed(category: Category) -> Outcome {
        Outcome::Failed(Failure::new(category, "no"))
    }

    #[test]
    fn only_failures_that_speak_about_the_dependency_count_and_those_of_the_system_double() {
        let counted = |category| {
            let mut tally = Tally::default();
            tally.count(&failed(category)).then_some(tally.failed)
        };
        let weights = Category::ALL.map(counted);
        assert_eq!(weights, [Some(1), Some(1), Some(1), Some(2), None, None, None]);
    }

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole(results: Vec<bool>, cut: prop::sample::Index) {
            let count = |part: &[bool]| {
                let mut tally = Tally::default();
                for ok in part {
                    tally.count(&if *ok { Outcome::Completed(None) } else { failed(Category::Transient) });
                }
                tally
            };
            let cut = if results.is_empty() { 0 } else { cut.index(results.len()) };
            let mut parts = count(&results[..cut]);
            parts.add(&count(&results[cut..]));
            let rows: Vec<usize> = results.split(|ok| *ok).map(<[bool]>::len).collect();
            let ok = results.iter().filter(|ok| **ok).count();
            let expected = Tally {
                ok: ok as u32,
                failed: (results.len() - ok) as u32,
                first: rows[0] as u32,
                most: rows.iter().copied().max().unwrap_or(0) as u32,
                last: rows[rows.len() - 1] as u32,
            };
            prop_assert_eq!(parts, expected);
            prop_assert_eq!(count(&results), expected);
        }
    }
}
