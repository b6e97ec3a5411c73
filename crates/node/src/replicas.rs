//! The replicas of this node when it starts: the storage is opened, and what it holds.

mod open;
mod raft_config;
mod startup;

pub(crate) use open::open_replicas;
pub(crate) use raft_config::raft_config;
pub(crate) use startup::{OpenFailed, Storage, open_storage};
