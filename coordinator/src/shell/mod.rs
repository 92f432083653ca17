//! What acts: reads the log and the clock, feeds events in, commits what comes out.

pub mod cache;
pub mod core;
pub mod inputs;
pub mod intake;

pub mod owner;
pub mod schedule;
pub mod upkeep;
