//! The coordinator: `machine` decides, `store` remembers, `shell` acts.

#[cfg(test)]
extern crate self as stepfleet_coordinator;

pub mod http;
pub mod machine;
#[doc(hidden)]
pub mod mutants;
pub mod shell;
pub mod store;
pub mod time;
pub mod workflow;
