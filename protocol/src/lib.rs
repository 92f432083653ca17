//! What crosses Redis: ids, names, keys, messages, states, limits. No I/O and no clock.
//!
//! Everything here is a promise to another process, perhaps of another version: fields are added with defaults and unknown
//! fields are tolerated.

pub mod duration;
pub mod limits;
pub mod name;
pub mod workflow;
