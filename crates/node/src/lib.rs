//! The Quorate server as a library: what the binary `kvnode` is made of.

pub mod apply;
pub mod bootstrap;
pub mod boottime;
pub mod bridge;
pub mod cli;
pub mod command;
pub mod config;
pub mod core;
pub mod dev;
pub mod engine;
pub mod exit;
pub mod health;
pub mod health_probe;
pub mod identity;
pub mod leadership;
pub mod limits;
pub mod listener;
pub mod map;
pub mod metrics;
pub mod node;
pub mod reply;
pub mod service;
pub mod session_id;
pub mod telemetry;
pub mod transport;
