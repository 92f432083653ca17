//! What crosses Redis: ids, names, keys, messages, states, limits. No I/O and no clock.
//!
//! Everything here is a promise to another process, perhaps of another version: fields are added with defaults and unknown
//! fields are tolerated.

pub mod audit;
pub mod beat;
pub mod call;
pub mod codec;
pub mod duration;
pub mod failure;
pub mod gate;
pub mod id;
pub mod keys;
pub mod limits;
pub mod message;
pub mod missing;
pub mod name;
pub mod pod;
pub mod policy;
pub mod rate;
pub mod span;
pub mod state;
pub mod trace;
pub mod value;
pub mod workflow;
