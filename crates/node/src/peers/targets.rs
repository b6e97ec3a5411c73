//! The input of the transport: the peers that it dials (the nodes of the newest map, otherwise the
//! founders), the description of this node, and the bounds of its queues.

use std::collections::BTreeMap;

use quorate_config::Config;
use quorate_proto::ids::Incarnation;
use quorate_proto::v1::ClusterMap;
use quorate_raft::NodeId;
use quorate_transport::{PeerTarget, PeerTargets, TransportConfig};

/// The peers of a map.
#[must_use]
pub(crate) fn targets(map: &ClusterMap) -> PeerTargets {
    map.nodes
        .iter()
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
