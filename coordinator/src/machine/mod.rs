//! What is decided: pure rules about runs.
//!
//! No Redis, no clock, no randomness, no log and no `Result`: the time, the ids and the policies come in as arguments, and
//! what is to happen comes out as a value. Whatever a rule of this module forbids is an assertion, which the shell turns into
//! a quarantined entry.

pub mod decide;
pub mod decision;
pub mod event;
pub mod fingerprint;
pub mod limits;
pub mod plan;
pub mod retry;
pub mod rules;
pub mod run;
pub mod verdict;
