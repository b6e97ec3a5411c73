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

    /// The preferred leader of a group, the first of its voters; group 0 is the meta group.
    #[must_use]
    pub fn preferred_leader(&self, group: GroupId) -> Option<Replica> {
        let replicas = match group {
            GroupId(0) => &self.proto.meta_replicas,
            group => &self.shard(group)?.replicas,
        };
        voters_of(replicas).first().copied()
    }

    /// The shards of which a node makes a voter by itself when the map assigns one to it. A shard
    /// in a state that this version does not know is left out: how its replicas begin is not known
    /// either.
    pub fn assigned_to(&self, node: NodeId) -> impl Iterator<Item = &MapShard> {
        let assigned = move |shard: &&MapShard| shard.is_settled() && shard.has_voter_on(node.0);
        self.proto.shards.iter().filter(assigned)
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
