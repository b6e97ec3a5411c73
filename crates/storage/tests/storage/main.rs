//! The storage through its public interface: contracts, crashes at every write, damage, space, and
//! readers.
#![allow(clippy::unwrap_used, reason = "tests and their helpers fail by panicking")]

mod collect_crash;
mod contract;
mod database_damage;
mod log_crash;
mod log_damage;
mod log_reading;
mod log_space;
mod model;
mod state_contract;
mod state_crash;
mod state_damage;
mod state_readers;
mod support;
