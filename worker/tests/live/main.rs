//! Workers against a real server. The test is the coordinator: it dispatches jobs and reads the logs.

mod built;
mod calls;
mod capacity;
mod cluster;
mod connections;
mod health;
mod outcomes;
mod owner;
mod server;
mod stock;
mod stops;
