//! The only user of Redis in the coordinator, and its memory twin.

pub mod link;
pub mod memory;
