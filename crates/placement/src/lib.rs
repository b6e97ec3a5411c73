//! Placement: what the cluster map should be, as pure functions of the known nodes.
//!
//! [`place`] chooses the nodes of each shard's replicas; [`first_map`] makes the map of a new
//! cluster from them. Nothing here reads a clock, a file or the network, and equal arguments give
//! equal answers on every platform: founders compute the same map.
//!
//! **Boundary.** This crate only proposes: the rules of the replicated state machine decide whether
//! a change of the map is legal, and the node drives the change.

mod first_map;
mod ring;

pub use first_map::{Founding, META_VOTERS_MAX, first_map, meta_replicas};
pub use ring::{Candidate, place};
