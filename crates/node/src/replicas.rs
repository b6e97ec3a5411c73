//! The replicas of this node at startup: opens the storage, and the replicas in it.

mod open;
mod raft_config;
mod startup;

pub(crate) use open::open_replicas;
pub(crate) use raft_config::raft_config;
pub(crate) use startup::{OpenFailed, Storage, open_storage};
