//! The cluster map as a node holds it: which shard owns a hash, which node holds which replica.
//!
//! The map is a routing hint. Group 0 decides what shall be; a group's own state is the truth about
//! what it owns, and apply checks it again (design §5, "Truth about ownership").

pub mod first;
pub mod keeper;
pub mod placement;

use std::sync::Arc;

use quorate_proto::hash::owner;
use quorate_proto::v1::{ClusterMap, MapNode, MapShard};
use quorate_raft::{GroupId, NodeId};
use tokio::sync::watch;

/// A cluster map with what a lookup needs beside it.
#[derive(Debug, PartialEq)]
pub struct Map {
    proto: ClusterMap,
}

impl Map {
    /// Wraps a map whose rules hold (`apply::map_rules`): shards in order of their ranges, which
    /// cover the hash space.
    #[must_use]
    pub fn new(proto: ClusterMap) -> Self {
        Self { proto }
    }

    /// The map as it is stored and sent.
    #[must_use]
    pub fn proto(&self) -> &ClusterMap {
        &self.proto
    }

    /// The epoch; grows with every change.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.proto.epoch
    }

    /// The shard whose range holds `hash`.
    ///
    /// # Panics
    ///
    /// Panics if the ranges do not cover the hash space, which the rules of a map exclude.
    #[must_use]
    pub fn shard_of(&self, hash: u64) -> &MapShard {
        match owner(&self.proto.shards, hash) {
            Some(at) => &self.proto.shards[at],
            None => panic!("map epoch {}: no shard owns hash {hash:#018x}", self.proto.epoch),
        }
    }

    /// The shard with this id.
    #[must_use]
    pub fn shard(&self, id: GroupId) -> Option<&MapShard> {
        self.proto.shards.iter().find(|shard| shard.id == id.0)
    }

    /// The shards in the order of their ranges.
    #[must_use]
    pub fn shards(&self) -> &[MapShard] {
        &self.proto.shards
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&MapNode> {
        self.proto.nodes.iter().find(|node| node.id == id.0)
    }
}

/// The newest map that this node knows of. Readers never wait; a new map wakes those who watch.
#[derive(Clone, Debug)]
pub struct MapCell {
    sender: Arc<watch::Sender<Option<Arc<Map>>>>,
}

impl Default for MapCell {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(None)) }
    }
}

impl MapCell {
    /// The newest map; `None` until the cluster has one.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Map>> {
        self.sender.borrow().clone()
    }

    /// The epoch of the newest map; 0 while there is none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.sender.borrow().as_ref().map_or(0, |map| map.epoch())
    }

    /// Takes the map if it is newer than the one held, and says whether it was.
    pub fn offer(&self, map: ClusterMap) -> bool {
        self.sender.send_if_modified(|held| {
            let newer = held.as_ref().is_none_or(|held| held.epoch() < map.epoch);
            if newer {
                *held = Some(Arc::new(Map::new(map)));
            }
            newer
        })
    }

    /// A receiver that wakes with each newer map.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Map>>> {
        self.sender.subscribe()
    }
}
