//! The only user of Redis in the coordinator, and its memory twin.
//!
//! The owner's side is [`partition`], [`commit`] and [`record`]; the clients' side is [`client`], [`submit`] and [`workflows`], which
//! append to logs, and [`read`], which only reads.

pub mod admission;
pub mod ask;
pub mod campaigns;
pub mod client;
pub mod commit;
pub mod gates;
pub mod history;
pub mod intent;
pub mod kept;
pub mod letters;
pub mod limits;
pub mod link;
pub mod memory;
pub mod outbox;
pub mod pack;
pub mod partition;
pub mod patch;
pub mod plans;
pub mod policies;
pub mod read;
pub mod record;
pub mod repair;
mod replies;
pub mod reply;
pub mod room;
pub mod script;
pub mod server;
pub mod submit;
pub mod workflows;
pub mod young;

pub use ask::AskError;
