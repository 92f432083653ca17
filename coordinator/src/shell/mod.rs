//! What acts: reads the log and the clock, feeds events in, commits what comes out.

pub mod auditor;
pub mod cache;
pub mod campaign;
pub mod core;
pub mod dispatcher;
pub mod fleet;
pub mod gates;
pub mod inputs;
pub mod intake;
pub mod lanes;
pub mod lease;
mod letters;
pub mod links;
pub mod metrics;
pub mod observer;

pub mod owner;
pub mod policies;
pub mod retention;
pub mod schedule;
pub mod spans;
pub mod tally;
pub mod told;
pub mod upkeep;
mod young;
