//! Placement: what the cluster map should be, as pure functions of what is known.
//!
//! [`place`] chooses the nodes of each shard's replicas; [`first_map`] makes the map of a new cluster of
//! them. Nothing here reads a clock, a file or the network, and equal arguments give equal answers on
//! every platform: founders compute the same map.
//!
//! **Boundary.** This crate proposes; whether a change of the map is legal is decided by the rules of
//! the replicated state machine, and who drives it is the node's business.

mod first_map;
mod ring;

pub use first_map::{Founding, META_VOTERS_MAX, first_map, meta_replicas};
pub use ring::{Candidate, place};
