//! The whole of Stepfleet on real servers: what users do, and what must not happen. Every test has its own server and its own
//! programs; deadlines are at least five times what is promised, as the machine may be busy.

mod commands;
mod coordinator_death;
mod failures;
mod flows;
mod load;
mod names;
mod poison;
mod redis_death;
mod retention;
mod scaling;
mod topologies;
mod web;
mod worker_death;
