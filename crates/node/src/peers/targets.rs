//! The input of the transport: the peers that it dials (the nodes of the newest map, otherwise the
//! founders), the description of this node, and the bounds of its queues.

use std::collections::BTreeMap;

use quorate_config::Config;
use quorate_proto::ids::Incarnation;
use quorate_proto::v1::ClusterMap;
use quorate_raft::NodeId;
use quorate_transport::{PeerTarget, PeerTargets, TransportConfig};

/// The peers of a map, but for nodes without an address, as removed ones of a newer map may be.
#[must_use]
pub(crate) fn targets(map: &ClusterMap) -> PeerTargets {
    map.nodes
        .iter()
        .filter(|node| !node.peer_address.is_empty())
        .filter_map(|node| {
            let incarnation = Incarnation::from_bytes(&node.incarnation)?;
            Some((NodeId(node.id), PeerTarget { address: node.peer_address.clone(), incarnation }))
        })
        .collect()
}

/// The peers of a node without a map: the other founders, at the addresses of `--initial-cluster`.
#[must_use]
pub(crate) fn founders(config: &Config, members: &BTreeMap<NodeId, Incarnation>) -> PeerTargets {
    let founders = members.iter().filter_map(|(node, incarnation)| {
        let address = config.initial_cluster.get(node)?.to_string();
        Some((*node, PeerTarget { address, incarnation: *incarnation }))
    });
    founders.collect()
}

/// The configuration of the transport in a cluster of `nodes` nodes.
pub(crate) fn transport_config(config: &Config, nodes: usize) -> TransportConfig {
    let peers = nodes.saturating_sub(1).max(1);
    let own =
        TransportConfig::new(config.advertise.to_string(), config.advertise_client.to_string());
    TransportConfig {
        // The share of the transport, divided by the peers.
        bulk_queue_bytes: (config.memory.transport_queue as usize / peers).clamp(2 << 20, 8 << 20),
        labels: config.locality.clone(),
        ..own
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{MapNode, MapNodeState};

    use super::*;

    #[test]
    fn a_node_without_an_address_is_not_dialled() {
        let node = |id: u64, address: &str| MapNode {
            id,
            peer_address: address.to_owned(),
            incarnation: vec![id as u8; 16].into(),
            ..MapNode::default()
        };
        let removed = MapNode { state: MapNodeState::Removed.into(), ..node(2, "") };
        let nodes = vec![node(1, "n1:7411"), removed, node(3, "n3:7411")];
        let peers = targets(&ClusterMap { nodes, ..ClusterMap::default() });
        assert_eq!(peers.into_keys().collect::<Vec<_>>(), [NodeId(1), NodeId(3)]);
    }
}
