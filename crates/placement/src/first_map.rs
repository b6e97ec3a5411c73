//! The first map of a cluster, which the first leader of the meta group proposes.

use std::collections::BTreeMap;

use quorate_proto::hash::even_range;
use quorate_proto::v1::{ClusterMap, MapNode, MapReplica, MapShard};

use crate::ring::{Candidate, place};

/// The largest number of voters of the meta group; they are on the initial nodes with the lowest
/// ids.
pub const META_VOTERS_MAX: usize = 5;

/// The parameters of a new cluster that its initial nodes agreed on.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The cluster id, 16 bytes.
    pub cluster_id: [u8; 16],
    /// The cluster's name.
    pub cluster_name: String,
    /// The number of shards at the start, 1 to 4,096.
    pub shards: u64,
    /// The number of replicas that each shard should have.
    pub replicas: u32,
    /// The initial nodes, in any order.
    pub nodes: Vec<MapNode>,
}

/// The replicas of the meta group. They depend only on the list of members, so that group 0 can
/// elect a leader before there is a map. Their ids are the first ones, in node order.
#[must_use]
pub fn meta_replicas(node_ids: impl IntoIterator<Item = u64>) -> Vec<MapReplica> {
    let mut nodes: Vec<u64> = node_ids.into_iter().collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.truncate(META_VOTERS_MAX);
    // An even number of voters tolerates no more failures than one fewer, so the number is made
    // odd.
    if nodes.len().is_multiple_of(2) && nodes.len() > 2 {
        nodes.pop();
    }
    (1..).zip(nodes).map(|(replica_id, node_id)| voter(replica_id, node_id)).collect()
}

fn voter(replica_id: u64, node_id: u64) -> MapReplica {
    MapReplica { replica_id, node_id, ..MapReplica::default() }
}

/// The map with epoch 1: shards 1…N in range order on the nodes that [`place`] chooses.
#[must_use]
pub fn first_map(founding: &Founding) -> ClusterMap {
    let mut nodes = founding.nodes.clone();
    nodes.sort_by_key(|node| node.id);
    let candidates: Vec<_> = nodes
        .iter()
        .map(|node| Candidate { node: node.id, zone: node.labels.get("zone").cloned() })
        .collect();
    let placed = place(&candidates, founding.shards, founding.replicas as usize);
    let meta_replicas = meta_replicas(nodes.iter().map(|node| node.id));
    let mut next_replica_id = meta_replicas.len() as u64 + 1;
    let shards = shards(&placed, founding.shards, &mut next_replica_id);
    ClusterMap {
        cluster_id: founding.cluster_id.to_vec().into(),
        cluster_name: founding.cluster_name.clone(),
        // A new cluster's history is as random as its id: the id was made from the founders'
        // incarnations, 128 random bits each.
        history: founding.cluster_id.to_vec().into(),
        epoch: 1,
        nodes,
        shards,
        meta_replicas,
        next_replica_id,
        next_shard_id: founding.shards + 1,
        cluster_version: 1,
        replicas_wanted: founding.replicas,
        lineage: Vec::new(),
    }
}

fn shards(
    placed: &BTreeMap<u64, Vec<u64>>,
    count: u64,
    next_replica_id: &mut u64,
) -> Vec<MapShard> {
    placed
        .iter()
        .map(|(&id, nodes)| {
            let replicas = nodes
                .iter()
                .map(|&node_id| {
                    let replica_id = *next_replica_id;
                    *next_replica_id += 1;
                    voter(replica_id, node_id)
                })
                .collect();
            let (first, last) = even_range(id - 1, count);
            MapShard { id, first, last, epoch: 1, replicas, ..MapShard::default() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use quorate_proto::hash::owner;

    use super::*;

    fn founding(nodes: u64, shards: u64) -> Founding {
        let nodes = (1..=nodes).map(|id| MapNode { id, ..MapNode::default() }).collect();
        Founding { cluster_id: [7; 16], cluster_name: "quorate".into(), shards, replicas: 3, nodes }
    }

    #[test]
    fn ranges_cover_the_hash_space_in_shard_order() {
        for count in [1, 2, 3, 7, 8, 64, 1000, 4096] {
            let map = first_map(&founding(3, count));
            assert_eq!(map.shards.len() as u64, count);
            let mut expected = 0u128;
            for (shard, id) in map.shards.iter().zip(1..) {
                assert_eq!((shard.id, u128::from(shard.first)), (id, expected));
                assert!(shard.first <= shard.last);
                expected = u128::from(shard.last) + 1;
            }
            assert_eq!(expected, 1 << 64);
        }
    }

    #[test]
    fn both_ends_of_each_range_have_their_shard_as_owner() {
        let map = first_map(&founding(3, 7));
        for (at, shard) in map.shards.iter().enumerate() {
            assert_eq!(owner(&map.shards, shard.first), Some(at));
            assert_eq!(owner(&map.shards, shard.last), Some(at));
        }
    }

    #[test]
    fn replica_ids_are_assigned_once_and_without_gaps() {
        let map = first_map(&founding(7, 16));
        let mut ids: Vec<u64> =
            map.meta_replicas.iter().map(|replica| replica.replica_id).collect();
        ids.extend(map.shards.iter().flat_map(|s| s.replicas.iter().map(|r| r.replica_id)));
        let expected: Vec<u64> = (1..map.next_replica_id).collect();
        assert_eq!(ids, expected);
        assert_eq!(map.meta_replicas.len(), 5);
    }

    #[test]
    fn the_meta_group_has_an_odd_number_of_voters_except_with_two_nodes() {
        let voters = |nodes: u64| meta_replicas(1..=nodes).len();
        assert_eq!([1, 2, 3, 4, 5, 6, 9].map(voters), [1, 2, 3, 3, 5, 5, 5]);
    }
}
