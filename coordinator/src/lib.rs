//! The coordinator: `machine` decides, `store` remembers, `shell` acts.

pub mod machine;
pub mod store;
pub mod workflow;
