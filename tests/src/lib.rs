//! The harness: real servers and the built program as children of a test.
//!
//! A test owns what it starts. [`Server`], [`Cluster`], [`Sentinel`] and [`Program`] live in temporary folders on free
//! loopback ports, end when they are dropped, and are killed by the kernel (on Linux) if the test process dies first, so
//! tests run in parallel and leave nothing behind. There are no sleeps: whoever waits uses [`wait::until`].

pub mod binary;
pub mod chaos;
mod child;
pub mod cluster;
pub mod kubernetes;
pub mod lab;
pub mod otlp;
pub mod port;
pub mod program;
pub mod sentinel;
pub mod server;
mod server_options;
mod tls;
pub mod wait;

pub use cluster::Cluster;
pub use nix::sys::signal::Signal;
pub use program::Program;
pub use sentinel::Sentinel;
pub use server::Server;
pub use server_options::{Fsync, ServerOptions};
