//! The cluster map as its readers use it: which shard owns a hash, which node holds which replica.
//!
//! The map is a routing hint. Group 0 decides the target; a group's own state is authoritative for
//! its ownership, and apply checks it again.

use quorate_proto::hash::owner;
use quorate_proto::map::voters;
use quorate_proto::v1::{ClusterMap, MapNode, MapReplica, MapShard};
use quorate_raft::{GroupId, NodeId, Replica, ReplicaId};

/// A cluster map with its lookups.
#[derive(Debug, PartialEq)]
pub struct Map {
    proto: ClusterMap,
}

impl Map {
    /// Wraps a valid map ([`crate::map_rules`]): its shards are in order of their ranges, which
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
    /// If the ranges do not cover the hash space, which the rules of a map exclude.
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

/// The voters of the map in the form of a group's configuration, the preferred leader first.
#[must_use]
pub fn voters_of(replicas: &[MapReplica]) -> Vec<Replica> {
    let replica =
        |of: &MapReplica| Replica { id: ReplicaId(of.replica_id), node: NodeId(of.node_id) };
    voters(replicas).map(replica).collect()
}
