//! What a reader of a cluster map takes states and roles for, also those that it does not know.
//!
//! A newer node may have made the map. Its unknown fields are passed over and its unknown numbers
//! are kept; keys are routed by the ranges alone.

use crate::v1::{MapNode, MapNodeState, MapReplica, MapReplicaRole, MapShard, MapShardState};

impl MapNode {
    /// Whether it is a member that serves. False also for a state that this version does not know.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.state == MapNodeState::Unspecified as i32
    }
}

impl MapShard {
    /// Whether it is in the middle of nothing. False also for a state that this version does not
    /// know.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.state == MapShardState::Unspecified as i32
    }

    /// Whether one of its voters is on this node.
    #[must_use]
    pub fn has_voter_on(&self, node_id: u64) -> bool {
        voters(&self.replicas).any(|replica| replica.node_id == node_id)
    }
}

impl MapReplica {
    /// Whether it votes. False also for a role that this version does not know.
    #[must_use]
    pub fn is_voter(&self) -> bool {
        self.role == MapReplicaRole::Unspecified as i32
    }
}

/// The voters among the replicas of a group; the first one is its preferred leader.
pub fn voters(replicas: &[MapReplica]) -> impl Iterator<Item = &MapReplica> {
    replicas.iter().filter(|replica| replica.is_voter())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::hash::key_hash;
    use crate::v1::ClusterMap;

    /// A map of two shards with a learner, and with numbers and a field that no version has yet.
    #[test]
    fn a_newer_map_is_read_and_routes_by_its_ranges() {
        let replica = |role| MapReplica { replica_id: 4, node_id: 2, role };
        let half = u64::MAX / 2;
        let learner = replica(MapReplicaRole::Learner as i32);
        let lower = MapShard {
            id: 1,
            last: half,
            state: 77,
            replicas: vec![learner, replica(99), MapReplica { node_id: 3, ..replica(0) }],
            ..MapShard::default()
        };
        let upper = MapShard { id: 2, first: half + 1, last: u64::MAX, ..MapShard::default() };
        let nodes = vec![MapNode { id: 2, state: 55, ..MapNode::default() }];
        let map = ClusterMap { nodes, shards: vec![lower, upper], ..ClusterMap::default() };
        let mut bytes = map.encode_to_vec();
        // Field 100, a number.
        bytes.extend_from_slice(&[0xa0, 0x06, 0x01]);

        let read = ClusterMap::decode(Bytes::from(bytes)).unwrap();
        assert_eq!(read, map, "numbers that are not known are kept");
        for key in [&b"a"[..], b"b", b"c", b"d", b"{tag}x"] {
            let owner = read.shard_of(key).map(|shard| shard.id);
            assert_eq!(owner, Some(if key_hash(key) > half { 2 } else { 1 }));
        }
        let [lower, upper] = &read.shards[..] else { panic!("{read:?}") };
        assert!(!read.nodes[0].is_member() && !lower.is_settled() && upper.is_settled());
        assert_eq!(voters(&lower.replicas).map(|one| one.node_id).collect::<Vec<_>>(), [3]);
        assert!(lower.has_voter_on(3) && !lower.has_voter_on(2));
    }
}
