//! What the whole-system tests share: real release binaries, clusters of real processes, ports,
//! links that can be cut, and what a test needs beyond a plain user.

pub mod binaries;
pub mod cluster;
pub mod disks;
pub mod files;
pub mod history;
pub mod logs;
pub mod named;
pub mod needs;
mod plain;
pub mod ports;
pub mod proxy;
pub mod raw;
pub mod registers;
pub mod wait;
pub mod watched;

pub use cluster::{Cluster, ClusterOptions, Exit};
pub use wait::{until, until_async};
pub use watched::Watched;
