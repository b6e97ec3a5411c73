//! The Quorate server as a library: what the binary `kvnode` is made of.

pub mod apply;
pub mod bootstrap;
pub mod boottime;
pub mod cli;
pub mod command;
pub mod config;
pub mod dev;
pub mod exit;
pub mod health_probe;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod reply;
pub mod session_id;
pub mod telemetry;
pub mod transport;
