//! The rules of runs: tables of events and their whole outcome, and properties over generated graphs and orders.

mod notation;
mod plans;
mod policies;
mod properties;
mod table;
mod world;
