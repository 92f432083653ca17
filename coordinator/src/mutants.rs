//! Deliberate bugs, for the test of the simulation: it has to find each of them. None is in a program that people run.
//!
//! A call site asks `mutant("name")`, which is `false` at compile time unless the program is built with
//! `--cfg stepfleet_mutants`; then the variable `STEPFLEET_MUTANT` names the one that is there. The list of them, with what
//! each breaks, is in `coordinator/tests/simulation/mutants/list.rs`.

/// Whether this deliberate bug is there.
#[cfg(not(stepfleet_mutants))]
#[inline(always)]
pub const fn mutant(_name: &str) -> bool {
    false
}

/// Whether this deliberate bug is there.
#[cfg(stepfleet_mutants)]
pub fn mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("STEPFLEET_MUTANT").ok()).as_deref() == Some(name)
}
