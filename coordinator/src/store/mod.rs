//! The only user of Redis in the coordinator, and its memory twin.

pub mod commit;
pub mod history;
pub mod link;
pub mod memory;
pub mod pack;
pub mod partition;
pub mod record;
pub mod reply;
pub mod room;
pub mod server;
