//! The rules of runs: tables of events and their whole outcome, and properties over generated graphs and orders.

mod plans;
mod properties;
mod world;
